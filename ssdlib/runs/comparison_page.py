"""comparison.html: runs side by side in one file that needs no network; .json and .csv beside it."""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssdlib.common import files
from ssdlib.plots.style import GRID, INK, MUTED, STYLE, mark_synthetic
from ssdlib.plots.style import LINE_COLORS as GROUP_COLORS
from ssdlib.plots.training import map_curves, training_loss_curves
from ssdlib.runs.comparison import Comparison, Group, RunSummary, short_name, value_text

ON_DARK = ("#8ab4ff", "#ffa36b", "#5fd3a5", "#e59bf0", "#e3c04a", "#5cc8e0", "#ff8fa6", "#b7a1ff")
"""GROUP_COLORS as they are told apart on a dark page."""
LEGEND_LIMIT = len(GROUP_COLORS)


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write comparison.html, .json and .csv into `folder` and return the page's path."""
    folder = Path(folder)
    files.write_json(folder / "comparison.json", comparison.to_dict())
    files.write_text(folder / "comparison.csv", comparison.to_csv())
    files.write_text(folder / "comparison.html", render_comparison(comparison, folder))
    return folder / "comparison.html"


def render_comparison(comparison: Comparison, folder: str | Path) -> str:
    """The whole page as text, with links to the runs' reports relative to `folder`."""
    here = Path(__file__)
    styles = [
        path.read_text(encoding="utf-8")
        for path in (here.parents[1] / "common/page.css", here.with_suffix(".css"))
    ]
    title = html.escape(comparison.title)
    body = "\n".join(
        (
            _header(comparison),
            _tiles(comparison),
            _curves(comparison),
            _group_table(comparison),
            _run_table(comparison, Path(folder)),
            _failures(comparison),
            _shared_settings(comparison),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – SSD300 blood cells</title>\n"
        f"<style>\n{''.join(styles)}{_palette()}</style>\n</head>\n"
        f'<body>\n<div class="page"><main>\n{body}\n</main></div>\n</body>\n</html>\n'
    )


def _palette() -> str:
    def variables(colors: Sequence[str]) -> str:
        return " ".join(f"--g{i}: {color};" for i, color in enumerate(colors))

    return (
        f":root {{ {variables(GROUP_COLORS)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(ON_DARK)} }} }}\n"
    )


# ---------------------------------------------------------------------------------------------- on top


def _header(comparison: Comparison) -> str:
    runs = comparison.runs
    done = sum(run.state == "done" for run in runs)
    profiles = sorted({str(run.settings["name"]) for run in runs})
    sources = {"bccd": "BCCD", "smears": "synthetic smears"}
    data = sorted({sources.get(run.data.get("source"), str(run.data.get("root", "unknown"))) for run in runs})
    seconds = sum(run.seconds or 0 for run in runs)
    facts = [
        f"<b>{len(runs)}</b> runs, {'all' if done == len(runs) else done} done",
        f"{'profile' if len(profiles) == 1 else 'profiles'} <b>{html.escape(', '.join(profiles))}</b>",
        f"data <b>{html.escape(', '.join(data))}</b>",
        f"compared by {html.escape(', '.join(map(short_name, comparison.columns)) or 'nothing but name')}",
        f"{duration(seconds)} of training",
    ]
    notices = "".join(f'\n<p class="notice" role="note">{html.escape(n)}</p>' for n in comparison.notices)
    return f"<header><h1>{html.escape(comparison.title)}</h1><p>{' · '.join(facts)}</p></header>{notices}"


def _tiles(comparison: Comparison) -> str:
    run, group = comparison.best_run, comparison.best_group
    if run is None or group is None:
        why = "" if run or not comparison.same_data else "No run has been trained to its end yet."
        return f'<p class="note">{why}</p>' if why else ""
    spread = f" <small>± {number(group.deviation)}</small>" if group.deviation is not None else ""
    count = f"{len(group.results)} run{'s' if len(group.results) > 1 else ''}"
    tiles = [
        ("best", number(run.result), f"best run on val: {run.name}, epoch {run.history.best_epoch}"),
        ("best", number(group.mean) + spread, f"best settings on val: {group.label} ({count})"),
        ("", number(run.test_map_50), "mAP of the best run on test"),
        *(("", number(value), f"{name}, best run on val") for name, value in run.val_ap_50.items()),
    ]
    cells = "".join(
        f'<div class="tile {kind}"><b>{value}</b><span>{html.escape(text)}</span></div>'
        for kind, value, text in tiles
    )
    verdict = f"<p>{html.escape(comparison.verdict())}</p>" if comparison.verdict() else ""
    return (
        f'<div class="tiles">{cells}</div>{verdict}<p class="note">Figures are mAP or AP at IoU 0.5. Best '
        "means best on val. Test is told of that one run only: a test split that helps to choose is "
        "none.</p>"
    )


# ---------------------------------------------------------------------------------------------- curves


def _curves(comparison: Comparison) -> str:
    groups = {group.label: [run.history for run in group.runs] for group in comparison.groups}
    if not any(history.epochs for histories in groups.values() for history in histories):
        return ""
    synthetic = any(run.data.get("synthetic") for run in comparison.runs)
    panels = "".join(
        f"<figure><figcaption>{title}</figcaption>{_svg(draw, groups, title, synthetic)}</figure>"
        for title, draw in (
            ("mAP@0.5 on val against epochs", map_curves),
            ("Training loss against epochs", training_loss_curves),
        )
    )
    several = any(len(histories) > 1 for histories in groups.values())
    entries = [
        f"<li>{_dot(rank)}{html.escape(label)}</li>"
        for rank, label in enumerate(groups)
        if rank < LEGEND_LIMIT
    ]
    if len(groups) > LEGEND_LIMIT:
        entries.append(f"<li>{_dot(LEGEND_LIMIT)}{len(groups) - LEGEND_LIMIT} others</li>")
    lines = '<p class="note">Thin lines are runs, thick ones the mean over the seeds.</p>' if several else ""
    return (
        f'<h2>Curves</h2><div class="curves">{panels}</div><ul class="legend">{"".join(entries)}</ul>{lines}'
    )


def _svg(
    draw: Callable[[Axes, Mapping[str, Sequence]], Axes],
    groups: Mapping[str, Sequence],
    title: str,
    synthetic: bool,
) -> str:
    """A plot as inline SVG whose colors and font are the page's, dark or light."""
    with rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        draw(figure.subplots(), groups)
        if synthetic:
            mark_synthetic(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    paints = {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)", "#9a3412": "var(--warn-ink)"}
    paints |= {color: f"var(--g{i})" for i, color in enumerate(GROUP_COLORS)}
    for color, variable in paints.items():
        text = text.replace(color, variable)
    # Two figures in one page must not share ids.
    prefix = re.sub(r"\W+", "", title)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


# ---------------------------------------------------------------------------------------------- tables


def _group_table(comparison: Comparison) -> str:
    names = list(comparison.groups[0].settings)
    results = [value for group in comparison.groups for value in group.results]
    low, high = min(results, default=0), max(results, default=1)
    rows = []
    for rank, group in enumerate(comparison.groups):
        best = group is comparison.best_group
        label = _dot(rank) + html.escape(group.label) + (_BADGE if best else "")
        values = [number(group.mean), number(group.deviation) if group.results else "n/a", _range(group)]
        if len(group.results) == 1:
            values[1:] = ["", ""]  # one run has no spread
        cells = [str(len(group.results)), *values, _strip(group, rank, low, high)]
        rows.append(_row(label, cells, best))
    head = ["settings" if names else "runs", "n", "mean val mAP@0.5", "std", "min – max", "each run"]
    return (
        f"<h2>Settings compared</h2>{_wide(head, rows)}"
        '<p class="note">n counts runs trained to their end; std is the standard deviation over them '
        "(divided by n − 1), and one run has none.</p>"
    )


def _range(group: Group) -> str:
    return f"{min(group.results):.3f} – {max(group.results):.3f}" if group.results else "n/a"


def _strip(group: Group, rank: int, low: float, high: float) -> str:
    """A dot for each run and a tick at their mean, on an axis that all groups share."""
    if not group.results:
        return ""

    def x(value: float) -> float:
        return 100.0 if high == low else round(10 + 180 * (value - low) / (high - low), 1)

    dots = "".join(f'<circle cx="{x(value)}" cy="12" r="4"/>' for value in group.results)
    ends = x(min(group.results)), x(max(group.results))
    return (
        f'<svg class="strip" viewBox="0 0 200 24" style="{_paint(rank)}" aria-hidden="true">'
        '<line class="axis" x1="4" x2="196" y1="12" y2="12"/>'
        f'<line class="range" x1="{ends[0]}" x2="{ends[1]}" y1="12" y2="12"/>{dots}'
        f'<line x1="{x(group.mean)}" x2="{x(group.mean)}" y1="3" y2="21"/></svg>'
    )


def _run_table(comparison: Comparison, folder: Path) -> str:
    ranks = {id(run): rank for rank, group in enumerate(comparison.groups) for run in group.runs}
    classes = comparison.class_names
    rows = []
    for run in comparison.runs:
        best = run is comparison.best_run
        label = _dot(ranks[id(run)]) + _link(run, folder) + (_BADGE if best else "")
        cells = [
            *(html.escape(value_text(run.settings.get(name))) for name in comparison.columns),
            _val(run),
            *(number(run.val_ap_50.get(name)) for name in classes),
            number(run.val_map),
            f"{run.history.best_epoch or '–'}/{run.settings['recipe.epochs']}",
            duration(run.seconds) if run.seconds is not None else "n/a",
            f"{run.images_per_second:.1f}" if run.images_per_second is not None else "n/a",
            f'<span class="state {run.state.replace(" ", "-")}">{run.state}</span>',
        ]
        rows.append(_row(label, cells, best))
    head = [
        "run",
        *map(short_name, comparison.columns),
        "mAP@0.5",
        *classes,
        "COCO mAP",
        "best epoch",
        "time",
        "img/s",
        "state",
    ]
    note = (
        "All results are on val, best first; those of the classes are AP at IoU 0.5. A value in italics is "
        "of a training that is not at its end, and counts for nothing above. COCO mAP and the classes come "
        "from stage 05, time and images a second (img/s) from training."
    )
    return f'<h2>Runs</h2>{_wide(head, rows)}<p class="note">{note}</p>'


def _val(run: RunSummary) -> str:
    if run.result is not None or run.val_map_50 is None:
        return number(run.result)
    return f'<span class="so-far" title="not trained to its end">{number(run.val_map_50)}</span>'


def _link(run: RunSummary, folder: Path) -> str:
    name = html.escape(run.name).replace(",", ",<wbr>")
    report = run.path / "report.html"
    if not report.exists():
        return name
    target = Path(os.path.relpath(report.resolve(), folder.resolve())).as_posix()
    return f'<a href="{html.escape(quote(target, safe="/=,+"))}">{name}</a>'


def _failures(comparison: Comparison) -> str:
    blocks = [
        f'<p class="failure" role="alert">{html.escape(run.name)}: {html.escape(run.error or run.state)}</p>'
        for run in comparison.runs
        if run.state in ("failed", "interrupted")
    ]
    return f"<h2>What went wrong</h2>{''.join(blocks)}" if blocks else ""


def _shared_settings(comparison: Comparison) -> str:
    """The settings in which all runs agree, folded."""
    first = comparison.runs[0].settings
    shared = {
        name: value
        for name, value in first.items()
        if all(run.settings.get(name) == value for run in comparison.runs)
    }
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='path'>{html.escape(value_text(value))}</td></tr>"
        for name, value in shared.items()
    )
    return (
        '<details class="block"><summary>Settings that all runs share</summary>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


_BADGE = '<span class="badge">best on val</span>'


def _row(label: str, cells: Sequence[str], best: bool) -> str:
    inner = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr{' class=best' if best else ''}><td>{label}</td>{inner}</tr>"


def _wide(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(
        f"<th{' class=number' if i else ''}>{html.escape(name)}</th>" for i, name in enumerate(head)
    )
    body = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll wide"><table>{body}</table></div>'


def _paint(rank: int) -> str:
    return f"--group: var(--g{rank})" if rank < LEGEND_LIMIT else ""


def _dot(rank: int) -> str:
    return f'<span class="dot" style="{_paint(rank)}"></span>'


def number(value: float | None) -> str:
    """Three decimals, or n/a."""
    return "n/a" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Such as "48 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
