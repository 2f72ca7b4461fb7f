"""Decisions about issues: the file that keeps them, a session that takes them, a widget to click through.

`decisions.json` holds the issues themselves with a decision each, so that it can be applied, or gone on
with, without anything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import read_json, write_json
from ssdlib.tools.label_errors.rank import ACTIONS, LabelIssue

if TYPE_CHECKING:
    import ipywidgets

    from ssdlib.data.source import DataSource

DECISIONS = ("accept", "refuse", "skip")
FORMAT = "ssdlib-decisions-1"


def write_decisions(path: str | Path, source: DataSource, issues: Sequence[LabelIssue]) -> int:
    """Write a fresh decisions.json, keeping what was already decided there, and return how many those are.

    A issue decided on earlier and no longer found stays in the file with its decision, at the end.
    Raises DataError if the file belongs to other data.
    """
    path, data = Path(path), source.describe(root=False)
    kept: dict[str, dict[str, Any]] = {}
    if path.exists():
        stored = _read(path)
        _check_data(path, stored, source)
        kept = {item["id"]: item for item in stored["issues"] if item.get("decision")}
    records = [{**s.to_dict(), "decision": kept.pop(s.id, {}).get("decision")} for s in issues]
    records += kept.values()
    write_json(path, {"format": FORMAT, "data": data, "issues": records})
    return sum(record["decision"] is not None for record in records)


def read_decisions(path: str | Path, source: DataSource | None = None) -> list[tuple[LabelIssue, str | None]]:
    """(issue, accept / refuse / skip / None) in the file's order.

    Raises SsdError for a file that is missing or damaged, DataError if it was made for other data than
    `source`.
    """
    content = _read(Path(path))
    if source is not None:
        _check_data(Path(path), content, source)
    found = []
    for item in content["issues"]:
        values = dict(item)
        decision = values.pop("decision", None)
        if decision not in (*DECISIONS, None):
            raise DataError(
                f"{path}: {decision!r} is no decision; choose from {', '.join(DECISIONS)} or null."
            )
        found.append((LabelIssue.from_dict(values), decision))
    return found


def _read(path: Path) -> dict[str, Any]:
    hint = "`ssdlib data issues` writes it."
    content = read_json(path, hint=hint)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not a file of decisions: {hint}")
    return content


def _check_data(path: Path, content: dict[str, Any], source: DataSource) -> None:
    if content.get("data", {}).get("fingerprint") != source.fingerprint:
        raise DataError(
            f"{path} was made for other data than {source.folder}, or these have changed since: its objects "
            "cannot be told apart by number any more. Look for issues again into another folder."
        )


class ReviewSession:
    """Goes through the issues of a decisions.json one by one; every decision is on disk at once.

    Starts at the first one without a decision. `kinds` limits it to some kinds. `source` says where the data
    lie now, if not where they were found, and is checked to be the same. Raises DataError as
    `read_decisions`, ConfigError for an unknown decision.
    """

    def __init__(
        self, path: str | Path, source: DataSource | None = None, *, kinds: Iterable[str] | None = None
    ) -> None:
        self.path = Path(path)
        self._content = _read(self.path)
        self._records = self._content["issues"]
        pairs = read_decisions(self.path, source)
        wanted = None if kinds is None else set(kinds)
        self._order = [k for k, (s, _) in enumerate(pairs) if wanted is None or s.kind in wanted]
        found = [pairs[k][0] for k in self._order]
        self._issues = [issue.under(source) for issue in found] if source else found
        self.position = next((p for p in range(len(self)) if self.decision(p) is None), len(self))

    def __len__(self) -> int:
        return len(self._order)

    @property
    def current(self) -> LabelIssue | None:
        """The issue in question; None when all have been seen."""
        return self._issues[self.position] if self.position < len(self) else None

    @property
    def done(self) -> bool:
        """Whether the end is reached."""
        return self.current is None

    def decision(self, position: int) -> str | None:
        """What was decided about the issue at a position."""
        return self._records[self._order[position]].get("decision")

    def counts(self) -> dict[str, int]:
        """How many were accepted, refused, skipped, and are open."""
        found = Counter(self.decision(position) or "open" for position in range(len(self)))
        return {name: found[name] for name in (*DECISIONS, "open")}

    def decide(self, decision: str) -> LabelIssue | None:
        """Decide on the current issue, save, and go to the next, which is returned (None at the end).

        With nothing left to decide it does nothing. If the disk refuses, the decision is not taken either.
        """
        if decision not in DECISIONS:
            raise ConfigError(f"there is no decision {decision!r}; choose one of {', '.join(DECISIONS)}")
        if self.current is None:
            return None
        record = self._records[self._order[self.position]]
        before = record.get("decision")
        record["decision"] = decision
        try:
            write_json(self.path, self._content)
        except BaseException:
            record["decision"] = before
            raise
        self.position += 1
        return self.current

    def back(self) -> LabelIssue | None:
        """Go to the one before, whose decision stays until another is taken."""
        self.position = max(0, self.position - 1)
        return self.current


class ReviewWidget:
    """A issue's crop with buttons, for a notebook: `ReviewWidget("out/decisions.json").show()`.

    `widget` is the ipywidgets box, `buttons` its buttons by name: accept, refuse, skip, back.
    """

    def __init__(
        self, path: str | Path, source: DataSource | None = None, *, kinds: Iterable[str] | None = None
    ) -> None:
        import ipywidgets as widgets

        self.session = ReviewSession(path, source, kinds=kinds)
        colors = {"accept": "success", "refuse": "danger", "skip": "", "back": ""}
        self.buttons = {
            name: widgets.Button(description=name, button_style=color) for name, color in colors.items()
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._clicked(name))
        self.picture = widgets.Image(format="jpeg", width=480)
        self.text, self.message = widgets.HTML(), widgets.HTML()
        self.progress = widgets.IntProgress(min=0, max=max(1, len(self.session)))
        row = widgets.HBox(list(self.buttons.values()))
        self.widget: ipywidgets.VBox = widgets.VBox(
            [self.progress, self.text, self.picture, row, self.message]
        )
        self._draw()

    def show(self) -> None:
        """Display it in the notebook."""
        from IPython.display import display

        display(self.widget)

    def _clicked(self, name: str) -> None:
        # An exception in a callback would vanish in the kernel's log.
        from ssdlib.common.errors import SsdError

        try:
            if name == "back":
                self.session.back()
            else:
                self.session.decide(name)
            self.message.value = ""
            self._draw()
        except SsdError as error:
            self.message.value = f"<b style='color:#b91c1c'>{_escape(str(error))}</b>"

    def _draw(self) -> None:
        from ssdlib.data.images import encode_image
        from ssdlib.tools.label_errors.pages import crop_of

        session, issue = self.session, self.session.current
        counts = session.counts()
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.progress.value = len(session) - counts["open"]
        for name in DECISIONS:
            self.buttons[name].disabled = issue is None
        self.buttons["back"].disabled = session.position == 0
        if issue is None:
            what = "no issues" if not len(session) else "all issues have been seen"
            self.text.value = f"<b>{what}</b> ({said}). Decisions: {_escape(str(session.path))}"
            self.picture.value = b""
            return
        before = session.decision(session.position)
        self.text.value = (
            f"<b>{session.position + 1} of {len(session)}: {issue.kind.replace('_', ' ')}, "
            f"{_escape(issue.class_name)}</b>, score {issue.score:.2f}, {_escape(issue.image)}<br>"
            f"{_escape(issue.evidence)}. Accepting means: {ACTIONS[issue.action]}."
            f"{f' Decided before: {before}.' if before else ''}<br><small>{said}</small>"
        )
        self.picture.value = encode_image(crop_of(issue, side=480), ".jpg")


def _escape(text: str) -> str:
    import html

    return html.escape(text)
