"""The work of `ssdlib data label-errors`: predictions, ranking, and everything that is written about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ssdlib.common.files import tidy, write_text
from ssdlib.common.tables import CSV_ENCODING
from ssdlib.data.source import DataSource
from ssdlib.tools.label_errors.correct import write_overlay
from ssdlib.tools.label_errors.folds import FoldSettings, out_of_fold, read_predictions
from ssdlib.tools.label_errors.pages import write_page
from ssdlib.tools.label_errors.rank import CUTS, LabelIssue, find_label_issues, issues_csv
from ssdlib.tools.label_errors.review import write_decisions

CSV_FILE, PAGE_FILE, DECISIONS_FILE = "label_errors.csv", "label_errors.html", "decisions.json"


def search(
    source: DataSource,
    out: str | Path,
    settings: FoldSettings,
    *,
    predictions: str | Path | None = None,
    cuts: Mapping[str, float] = CUTS,
) -> list[LabelIssue]:
    """The label issues of a data set, which are written to `out` too; the data are only read.

    label_errors.csv, label_errors.html, overlay/Annotations/*.xml (labels and proposed boxes) and
    decisions.json, in which decisions already taken stay. Called again it goes on where it stopped.

    predictions: a folder of JSON files as `ssdlib detect --json` writes, used instead of training networks.
    The caller vouches that their detector was not trained on these labels.

    Raises errors as `out_of_fold` and `find_label_issues`.
    """
    out, dataset = Path(out), source.dataset(settings.split)
    if predictions is None:
        found = out_of_fold(source, out, settings)
    else:
        found = read_predictions(predictions, dataset)
    issues = find_label_issues(dataset, found, cuts)
    tidy(out, ("overlay",))
    # Decisions first: if they belong to other data, nothing else is overwritten.
    write_decisions(out / DECISIONS_FILE, source, issues)
    write_text(out / CSV_FILE, issues_csv(issues), CSV_ENCODING)
    write_overlay(issues, dataset, out / "overlay")
    title = f"Possible label errors in {len(dataset)} images"
    write_page(issues, dataset, out / PAGE_FILE, title=title, notice=source.notice)
    return issues
