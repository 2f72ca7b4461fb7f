"""Decisions about label issues: the file that keeps them, a session that takes them, a widget for notebooks.

`decisions.json` holds each issue with its decision, so that it can be applied, or gone on with, alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.common.files import check_shape, read_json, shortened, write_json
from ssdlib.common.pages import render
from ssdlib.common.runtime import need_extra
from ssdlib.data.images import encode_image
from ssdlib.data.source import DataSource, resolve
from ssdlib.tools.label_errors.pages import crop_of
from ssdlib.tools.label_errors.rank import ACTIONS, LabelIssue

DECISIONS = ("accept", "refuse", "skip")
FORMAT = "ssdlib-decisions-2"


class _Content(TypedDict):
    data: dict[str, Any]
    issues: list[dict[str, Any]]


Decided = tuple[LabelIssue, str | None]
"""An issue and its decision: one of DECISIONS, None while it is open."""


def write_decisions(path: str | Path, source: DataSource, issues: Sequence[LabelIssue]) -> int:
    """The number of decisions in a fresh decisions.json, in which those already taken are kept.

    An issue decided on earlier and no longer found stays in the file with its decision, at the end.
    Raises DataError if the file belongs to other data.
    """
    path = Path(path)
    earlier = read_decisions(path, source) if path.exists() else []
    taken = {issue.id: (issue, decision) for issue, decision in earlier if decision}
    decided: list[Decided] = [(issue, taken.pop(issue.id, (issue, None))[1]) for issue in issues]
    decided += taken.values()
    _write(path, source.describe(), decided)
    return sum(decision is not None for _, decision in decided)


def read_decisions(path: str | Path, source: DataSource | None = None) -> list[Decided]:
    """Each issue of a decisions.json with its decision (None while it is open), in the file's order.

    Raises SsdError for a file that is missing or damaged, DataError if it was made for other data than
    `source`.
    """
    return _read(Path(path), source)[1]


def _read(path: Path, source: DataSource | None) -> tuple[dict[str, Any], list[Decided]]:
    hint = "`ssdlib data label-errors` writes it."
    content = read_json(path, hint=hint, shape=dict[str, Any])
    if content.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a file of decisions in the format {FORMAT}: find the label errors again, into "
            "another folder."
        )
    try:
        check_shape(content, _Content)
    except ValueError as error:
        raise DataError(f"{path} is not as label-errors writes it ({error}). {hint}") from error
    data = content["data"]
    if source is not None and data.get("fingerprint") != source.fingerprint:
        raise DataError(
            f"{path} was made for other data than {source.folder}, or these have changed since: its labels "
            "cannot be told apart by number any more. Find the label errors again, into another folder."
        )
    decided: list[Decided] = []
    for values in content["issues"]:
        decision = values.pop("decision", None)
        if decision not in (*DECISIONS, None):
            raise DataError(
                f"{path}: {shortened(decision)} is no decision; choose from {', '.join(DECISIONS)} or null."
            )
        issue = LabelIssue.from_dict(values)
        image = None if source is None else source.labels.by_id.get(issue.image)
        if source is not None and (image is None or image.error or not image.complete):
            raise DataError(
                f"{path}: there is no image {shortened(issue.image)} with sound labels in {source.folder}. "
                "Remove its issue."
            )
        decided.append((issue, decision))
    return data, decided


def _write(path: Path, data: dict[str, Any], decided: Iterable[Decided]) -> None:
    issues = [{**issue.to_dict(), "decision": decision} for issue, decision in decided]
    write_json(path, {"format": FORMAT, "data": data, "issues": issues})


class ReviewSession:
    """Goes through the issues of a decisions.json one by one; every decision is on disk at once.

    Starts at the first one without a decision. `kinds` limits it to some kinds; `source` is checked to be
    the data of the file. Raises errors as `read_decisions`.
    """

    def __init__(
        self, path: str | Path, source: DataSource | None = None, *, kinds: Iterable[str] | None = None
    ) -> None:
        self.path = Path(path)
        self.data, self._decided = _read(self.path, source)
        wanted = None if kinds is None else set(kinds)
        self._order = [k for k, (s, _) in enumerate(self._decided) if wanted is None or s.kind in wanted]
        self.position = next((p for p in range(len(self)) if self.decision(p) is None), len(self))

    def __len__(self) -> int:
        return len(self._order)

    @property
    def current(self) -> LabelIssue | None:
        """The issue to decide on; None when all have been seen."""
        return self._decided[self._order[self.position]][0] if self.position < len(self) else None

    def decision(self, position: int) -> str | None:
        """The decision about the issue at a position; None while it is open."""
        return self._decided[self._order[position]][1]

    def counts(self) -> dict[str, int]:
        """How many issues were accepted, refused and skipped, and how many are open."""
        found = Counter(self.decision(position) or "open" for position in range(len(self)))
        return {name: found[name] for name in (*DECISIONS, "open")}

    def decide(self, decision: str) -> LabelIssue | None:
        """Decide on the current issue, save, and go to the next, which is returned (None at the end).

        With nothing left to decide it does nothing. Raises ConfigError for an unknown decision, SsdError
        where it cannot be saved: then it is not taken either.
        """
        if decision not in DECISIONS:
            raise ConfigError(f"there is no decision {decision!r}; choose one of {', '.join(DECISIONS)}")
        if self.current is not None:
            decided = list(self._decided)
            decided[self._order[self.position]] = (self.current, decision)
            _write(self.path, self.data, decided)
            self._decided = decided
            self.position += 1
        return self.current

    def back(self) -> LabelIssue | None:
        """Go to the one before, whose decision stays until another is taken."""
        self.position = max(0, self.position - 1)
        return self.current


class ReviewWidget:
    """An issue's crop with buttons, for a notebook: `ReviewWidget("out/decisions.json").show()`.

    `widget` is the ipywidgets box, `buttons` its buttons by name: accept, refuse, skip, back. `source` is
    needed only where the data no longer lie where the issues were found. Raises errors as `ReviewSession`.
    """

    def __init__(
        self, path: str | Path, source: DataSource | None = None, *, kinds: Iterable[str] | None = None
    ) -> None:
        widgets = need_extra("lab", "ipywidgets")
        self.session = ReviewSession(path, source, kinds=kinds)
        self._dataset = (source or resolve(self.session.data["root"])).dataset("all")
        styles = {"accept": "success", "refuse": "danger", "skip": "", "back": ""}
        self.buttons = {name: widgets.Button(description=name, button_style=s) for name, s in styles.items()}
        for button in self.buttons.values():
            button.on_click(self._clicked)
        self.picture, self.text = widgets.Image(format="jpeg", width=480), widgets.HTML()
        self.widget = widgets.VBox([self.text, self.picture, widgets.HBox(list(self.buttons.values()))])
        self._draw()

    def show(self) -> None:
        """Display the widget in the notebook."""
        from IPython.display import display

        display(self.widget)

    def _clicked(self, button: Any) -> None:
        try:
            if button is self.buttons["back"]:
                self.session.back()
            else:
                self.session.decide(button.description)
            self._draw()
        except SsdError as error:  # it would vanish in the kernel's log
            self._write(error)

    def _draw(self) -> None:
        issue = self.session.current
        for name in DECISIONS:
            self.buttons[name].disabled = issue is None
        self.buttons["back"].disabled = self.session.position == 0
        self.picture.value = encode_image(crop_of(issue, self._dataset, side=480)) if issue else b""
        self._write()

    def _write(self, error: SsdError | None = None) -> None:
        values = {"session": self.session, "actions": ACTIONS, "error": error}
        self.text.value = render("tools/label_errors/review.html", **values)
