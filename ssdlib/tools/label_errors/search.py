"""The whole of `ssdlib data issues`: predictions, ranking, and everything that is written about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssdlib.common.files import write_text
from ssdlib.data.source import DataSource
from ssdlib.tools.label_errors.correct import write_overlay
from ssdlib.tools.label_errors.folds import out_of_fold, read_predictions
from ssdlib.tools.label_errors.pages import write_page, write_sheets
from ssdlib.tools.label_errors.rank import LabelIssue, find_issues, issues_csv
from ssdlib.tools.label_errors.review import write_decisions

DECISIONS_FILE = "decisions.json"


def search(
    source: DataSource,
    out: str | Path,
    *,
    split: str = "all",
    folds: int = 5,
    epochs: int | None = None,
    init: str = "scratch",
    predictions: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[LabelIssue]:
    """Find the issues of a dataset and write them to `out`; the original is only read.

    issues.csv, issues.html, sheets/KIND-01.png ..., overlay/Annotations/*.xml (labels and proposed boxes)
    and decisions.json, in which decisions already taken stay. Called again it goes on where it stopped. With
    `predictions`, a folder of JSON files as `ssdlib detect --json` writes, nothing is trained: whoever made
    them answers for it that the detector had not seen these labels. The rest as for `out_of_fold` and
    `find_issues`, whose errors it raises.
    """
    out = Path(out)
    dataset = source.dataset(split)
    if predictions is not None:
        found = read_predictions(predictions, dataset)
    else:
        found = out_of_fold(
            source,
            out,
            split=split,
            folds=folds,
            epochs=epochs,
            init=init,
            overrides=overrides,
            device=device,
            progress=progress,
        )
    issues = find_issues(dataset, found, min_score=min_score)
    # Decisions first: if they belong to other data, nothing else is overwritten.
    write_decisions(out / DECISIONS_FILE, source, issues)
    write_text(out / "issues.csv", issues_csv(issues))
    write_sheets(issues, out / "sheets")
    write_overlay(issues, out / "overlay")
    title = f"Doubtful labels of {len(dataset)} images"
    write_page(issues, out / "issues.html", title=title, notice=source.notice)
    return issues
