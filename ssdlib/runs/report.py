"""report.html: one file with a summary and the executed notebooks, readable with no network at all.

Figures are embedded, formulas become MathML when the report is written, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdlib.common import files
from ssdlib.common.tables import number
from ssdlib.evaluation import tables
from ssdlib.evaluation.tables import result_sections, result_table
from ssdlib.runs.folder import read_stages

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from nbformat import NotebookNode

    from ssdlib.runs.folder import RunFolder

WIDGET = "application/vnd.jupyter.widget-view+json"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".webp")

_MATH = re.compile(
    r"(?P<code>```.*?```|~~~.*?~~~|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?<!\\)\$\$(?P<block>.+?)\$\$"
    r"|(?<![\\$])\$(?![\s$])(?P<inline>(?:\\.|[^$\n\\])+?(?<!\s))\$(?![\d$])",
    re.DOTALL,
)


def write_report(run: RunFolder) -> Path:
    """Write `report.html` of the run and return its path; stages not run yet are listed as such."""
    path = run.path / "report.html"
    files.write_text(path, render_report(run))
    return path


def render_report(run: RunFolder) -> str:
    """The whole page as text."""
    stages = read_stages(run.path)
    notebooks = sorted((run.path / "notebooks").glob("*.ipynb"))
    parts = [notebook_section(path) for path in notebooks]
    style = (Path(__file__).parents[1] / "common/page.css").read_text(encoding="utf-8")
    return _PAGE.format(
        title=html.escape(run.name),
        style=style,
        contents="".join(section.contents for section in parts),
        summary=_summary(run, stages),
        notebooks="".join(section.body for section in parts),
        script=_SCRIPT,
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – SSD300 blood cells</title>
<style>
{style}</style>
</head>
<body>
<div class="page">
<nav class="contents" aria-label="Contents">
<details open><summary>Contents</summary><ol><li><a href="#summary">Summary</a></li>{contents}</ol></details>
</nav>
<main id="summary">
{summary}
{notebooks}</main>
</div>
{script}</body>
</html>
"""

PICTURE = "figures/06_triptych.png"
"""The figure on top of the report."""

_SCRIPT = """<script>
const toggle = document.querySelector("button.toggle");
const cells = [...document.querySelectorAll("details.code")];
toggle.hidden = cells.length === 0;
toggle.addEventListener("click", () => {
  const open = toggle.getAttribute("aria-pressed") !== "true";
  toggle.setAttribute("aria-pressed", open);
  toggle.textContent = open ? "Hide all code" : "Show all code";
  cells.forEach(cell => { cell.open = open; });
});
if (matchMedia("(max-width: 60rem)").matches) document.querySelector("nav.contents details").open = false;
</script>
"""


# ---------------------------------------------------------------------------------------------- summary


def _summary(run: RunFolder, stages: Sequence[Mapping[str, Any]]) -> str:
    """Everything above the notebooks."""
    metrics = run.metrics()
    environment = _read_if_there(run.path / "environment.json")
    sources = {"bccd": "BCCD", "smears": "synthetic smears"}
    data = sources.get(metrics["data"]["source"], metrics["data"]["root"])
    created = html.escape(_when(run.config.get("created")))
    seconds = sum(entry.get("seconds", 0) for entry in stages)
    blocks = [
        f"<header><h1>{html.escape(run.name)}</h1><p>SSD300 blood-cell detector · profile "
        f"<b>{run.profile.name}</b> · data <b>{html.escape(str(data))}</b> · made {created} · "
        f"{_duration(seconds)} in notebooks</p></header>",
    ]
    if metrics["data"].get("synthetic"):
        blocks.append(f'<p class="notice" role="note">{html.escape(metrics["data"]["notice"])}</p>')
    blocks += [
        f'<p class="failure" role="alert">{html.escape(entry.get("error", ""))}</p>'
        for entry in stages
        if entry["state"] in ("failed", "interrupted")
    ]
    blocks.append(_tiles(metrics))
    blocks.append(_picture(run))
    blocks.append('<button class="toggle" type="button" aria-pressed="false">Show all code</button>')
    blocks += _metric_tables(metrics)
    blocks += _analysis(run, metrics)
    blocks.append("<h3>Stages</h3>" + _stage_table(run, stages))
    blocks.append(
        '<details class="block"><summary>Environment: versions, processor, device, data</summary>'
        f"{_table((), _flat_rows(environment))}</details>"
    )
    settings = html.escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    blocks.append(
        f'<details class="block"><summary>All settings of this run</summary><pre>{settings}</pre></details>'
    )
    blocks.append(_file_lists(run))
    return "\n".join(block for block in blocks if block)


def _tiles(metrics: Mapping[str, Any]) -> str:
    sections = list(result_sections(metrics).items())
    if not sections:
        return ""
    split, section = sections[-1]
    values = [(f"mAP at IoU 0.5, {split}", section.get("map_50")), ("COCO mAP", section.get("map"))]
    values += [(f"AP50 {name}", entry.get("ap_50")) for name, entry in section["per_class"].items()]
    tiles = "".join(
        f'<div class="tile"><b>{number(v)}</b><span>{html.escape(k)}</span></div>' for k, v in values
    )
    return f'<div class="tiles">{tiles}</div>'


def _picture(run: RunFolder) -> str:
    """Fields beside what was found in them, before any number: what the whole run is about."""
    return _figure(run, PICTURE, "Left to right: the field, what was found in it, and its ground truth.")


def _figure(run: RunFolder, name: str, caption: str) -> str:
    """A saved figure of the run inside the page; nothing where it is not there."""
    path = run.path / name
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure class="output"><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _metric_tables(metrics: Mapping[str, Any]) -> list[str]:
    results = result_sections(metrics)
    blocks = []
    for name, section in results.items():
        results_of_split = result_table(section)
        scalars = {k: v for k, v in section.items() if not isinstance(v, dict | list)}
        facts = " · ".join(f"{html.escape(k)} {html.escape(_plain(v))}" for k, v in scalars.items())
        title = html.escape(name.replace("_", " "))
        blocks.append(
            f"<h3>Results: {title}</h3>{_table(results_of_split.header, results_of_split.rows)}<p>{facts}</p>"
        )
        if intervals := section.get("intervals"):
            every = tables.interval_table(intervals)
            blocks.append(
                '<details class="block"><summary>Every figure with its 95 % interval</summary>'
                f"{_table(every.header, every.rows, total=False)}</details>"
            )
    others = {k: v for k, v in metrics.items() if k not in results and k not in ("profile", "data", ANALYSIS)}
    for name, section in others.items():
        title = html.escape(name.replace("_", " ")).capitalize()
        blocks.append(
            f'<details class="block"><summary>{title}</summary>'
            f"{_table((), _flat_rows({name: section}))}</details>"
        )
    return blocks


def _analysis(run: RunFolder, metrics: Mapping[str, Any]) -> list[str]:
    """Errors by kind, counts and calibration of the test split, with words for who reads nothing else."""
    section = metrics.get(ANALYSIS)
    if not section:
        return []
    parts = (
        ("What it gets wrong", _ERRORS, tables.error_table(section["errors"]), _ERROR_FIGURES),
        ("How well it counts", _COUNTS, tables.counting_table(section["counting"]), _COUNT_FIGURES),
        ("Can its scores be believed?", _SCORES, tables.calibration_table(section["calibration"]),
         _SCORE_FIGURES),
    )  # fmt: skip
    return [
        f"<h3>{title}</h3><p>{words}</p>{_table(table.header, table.rows, total=table.total)}"
        + "".join(_figure(run, name, caption) for name, caption in figures.items())
        for title, words, table, figures in parts
    ]


ANALYSIS = "analysis"
"""The section of metrics.json that `ssdlib.evaluation.evaluate.analysis_section` fills."""

_ERRORS = (
    "Points of AP at IoU 0.5 that fixing one kind of error, and nothing else, would add on the test "
    "images; in brackets how many there are among all detections with a score of at least 0.01. "
    "<b>class</b>: the box fits a cell of another class. <b>localization</b>: it touches a cell of its "
    "class but fits badly. <b>both</b>: both of these. <b>duplicate</b>: a cell found twice. "
    "<b>background</b>: no labeled cell there, which is no error of the detector where a label is "
    "missing. <b>missed</b>: nothing found there."
)
_COUNTS = (
    "Cells on the test images, counted from the score on that counted best on val. Accuracy compares the "
    "totals over all images, where errors of different images cancel; the mean |difference| is what to "
    "expect on one image. The bias is the mean difference, counted less true; 95 % of single differences "
    "are expected within the limits beside it. In brackets 95 % intervals over the images."
)
_SCORES = (
    "Of all detections with a score near 0.7, seven in ten should be right. ECE is the mean gap between "
    "score and precision, over ten bins; scaled: after one temperature fitted on val. Scores below 0.05"
    " are left out."
)
_ERROR_FIGURES = {
    "figures/05_errors.png": "mAP to gain by fixing each kind, on test and on the same images out of focus.",
    "figures/05_worst_images.png": "The test images with the most errors.",
    "figures/05_worst_crops.png": "The false positives with the highest scores, then missed cells.",
    "figures/05_confusion.png": "What became of each cell at the working thresholds.",
}
_COUNT_FIGURES = {
    "figures/05_counts.png": "Each dot is a test image. Above: counted against true; below: the difference "
    "against the mean (Bland and Altman), with bias and 95 % limits; last, the same images out of focus.",
}
_SCORE_FIGURES = {"figures/05_calibration.png": "Score and precision: equal on the diagonal."}


def _stage_table(run: RunFolder, stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return "<p>No stage has run yet.</p>"
    rows = []
    for entry in stages:
        state, name = entry["state"], html.escape(entry["name"])
        linked = (run.path / "notebooks" / f"{entry['name']}.ipynb").exists()
        label = f'<a href="#{_slug(entry["name"])}">{name}</a>' if linked else name
        spent = _duration(entry["seconds"]) if "seconds" in entry else ""
        started = html.escape(_when(entry.get("started")))
        rows.append(
            f'<tr><td>{label}</td><td class="state {state.replace(" ", "-")}">{state}</td>'
            f'<td class="number">{spent}</td><td>{started}</td></tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th>stage</th><th>state</th><th class="number">duration</th>'
        f"<th>started</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _file_lists(run: RunFolder) -> str:
    """Two folded lists, linked relative to the report: figures, and every other file of the run."""
    saved = [(name, size) for name, size in run.saved_files() if name != "report.html"]
    figures = [item for item in saved if item[0].lower().endswith(IMAGE_SUFFIXES)]
    others = [item for item in saved if item not in figures]
    blocks = []
    for title, items in (("Figures", figures), ("Files", others)):
        if items:
            rows = "".join(
                f'<tr><td class="path"><a href="{html.escape(_url(name))}">{html.escape(name)}</a></td>'
                f'<td class="number">{_size(size)}</td></tr>'
                for name, size in items
            )
            blocks.append(
                f'<details class="block"><summary>{title} ({len(items)})</summary>'
                f'<div class="scroll"><table>{rows}</table></div></details>'
            )
    return "\n".join(blocks)


def _url(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _read_if_there(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.exists() else {}


def _flat_rows(values: Any, prefix: str = "") -> list[list[str]]:
    """Nested dictionaries as (dotted name, value) rows."""
    if isinstance(values, Mapping):
        return [
            row for k, v in values.items() for row in _flat_rows(v, f"{prefix}.{k}" if prefix else str(k))
        ]
    return [[prefix, _plain(values)]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = True) -> str:
    """A table whose last row, with `total`, is set off from the others; without a header, of plain pairs."""
    head = "".join(f'<th class="{"number" if i else ""}">{html.escape(h)}</th>' for i, h in enumerate(header))
    kind = "number" if header else "path"
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind if i else ""}">{html.escape(cell)}</td>' for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    style = ' class="total"' if header and total else ""
    return f'<div class="scroll"><table{style}>{head}<tbody>{body}</tbody></table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "n/a" if value is None else str(value)


def _when(stamp: Any) -> str:
    """An ISO time as people write it, to the minute."""
    return str(stamp or "")[:16].replace("T", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


# -------------------------------------------------------------------------------------------- notebooks


class Section:
    """One notebook in the page: its HTML and its entry in the contents list."""

    def __init__(self, body: str, contents: str) -> None:
        self.body, self.contents = body, contents


def notebook_section(path: Path) -> Section:
    """Convert an executed notebook. One that cannot be read becomes a section that says so."""
    import nbformat
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    name = path.stem
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:
        body = (
            f'<h2 id="{_slug(name)}">{html.escape(name)}</h2><p class="failure">{html.escape(str(error))}</p>'
        )
        return Section(body, f'<li><a href="#{_slug(name)}">{html.escape(name)}</a></li>')
    formulas = _prepare(notebook)
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    converted, _ = exporter.from_notebook_node(
        notebook, resources={"metadata": {"name": name, "path": str(path.parent)}}
    )
    page = BeautifulSoup(converted, "html.parser")
    contents = _number_headings(page, name)
    _fold_code(page, notebook)
    _mend_links(page)
    text = str(page)
    for token, formula in formulas.items():
        text = text.replace(token, formula)
    return Section(f'<section class="notebook">{text}</section>\n', contents)


def _prepare(notebook: NotebookNode) -> dict[str, str]:
    """Make cells fit for a page without a network, in place; returns {placeholder: MathML}."""
    formulas: dict[str, str] = {}
    # The summary already names the failing cell; papermill's own marker would stand above the heading.
    notebook.cells = [
        c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", ())
    ]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            # A badge is a picture from the network around a link: of no use in a report.
            cell.source = re.sub(r"\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)", "", cell.source)
            cell.source = re.sub(r"!\[([^\]]*)\]\(https?://[^)]*\)", r"\1", cell.source)
            cell.source = replace_math(cell.source, lambda mathml: _keep(formulas, mathml))
        elif cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _clean_output(output))]
    notebook.metadata.pop("widgets", None)
    return formulas


def _keep(formulas: dict[str, str], mathml: str) -> str:
    # Letters only, so that no Markdown rule touches it.
    token = f"MATHML{len(formulas):05d}PLACEHOLDER"
    formulas[token] = mathml
    return token


def replace_math(markdown: str, put: Callable[[str], str] = str) -> str:
    """Replace `$...$` and `$$...$$` in Markdown by `put(MathML)`; code is left alone, and so is `\\$`."""

    def one(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found[0]
        block = found["block"] is not None
        return put(to_mathml(found["block"] if block else found["inline"], block=block))

    return _MATH.sub(one, markdown)


def to_mathml(latex: str, *, block: bool = False) -> str:
    """MathML of a LaTeX formula; the LaTeX itself, as code, if it cannot be converted."""
    from latex2mathml.converter import convert

    try:
        return convert(latex.strip(), display="block" if block else "inline")
    except Exception:
        return f"<code>{html.escape(latex.strip())}</code>"


def _clean_output(output: NotebookNode) -> NotebookNode | None:
    """The output without scripts, live widgets and overwritten progress bars; None if nothing is left."""
    if output.output_type == "stream":
        output.text = settle_lines(output.text)
        if output.name == "stderr":
            kept = [line for line in output.text.splitlines(keepends=True) if not _is_bar(line)]
            output.text = "".join(kept)
        return output if output.text.strip() else None
    data = output.get("data")
    if data is None:
        return output
    data.pop(WIDGET, None)
    data.pop("application/javascript", None)
    if "text/html" in data:
        data["text/html"] = re.sub(r"(?is)<(script|link|iframe)\b.*?(</\1>|/?>)", "", data["text/html"])
    return output if data else None


def settle_lines(text: str) -> str:
    """What a terminal would show in the end: each line after its last carriage return."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(next((p for p in reversed(line.split("\r")) if p.strip()), "") for line in lines)


def _is_bar(line: str) -> bool:
    return (
        re.search(r"\d+%\|.*\|", line) is not None or re.search(r"\d+(it|\w*) \[\d\d:\d\d", line) is not None
    )


def _number_headings(page: BeautifulSoup, name: str) -> str:
    """Demote headings by one level, give each an id of its own, and return the contents entry."""
    section, used = _slug(name), set()
    title, entries = name, []
    for heading in page.find_all(re.compile(r"^h[1-5]$")):
        for anchor in heading.find_all("a", class_="anchor-link"):
            anchor.decompose()
        level, text = int(heading.name[1]), heading.get_text(" ", strip=True)
        first = level == 1 and section not in used
        anchor_id = section if first else f"{section}-{_slug(text)}"
        while anchor_id in used:
            anchor_id += "-"
        used.add(anchor_id)
        heading["id"] = anchor_id
        heading.name = f"h{level + 1}"
        if first:
            title = text
        elif level == 2:
            entries.append(f'<li><a href="#{anchor_id}">{html.escape(text)}</a></li>')
    if section not in used:
        heading = page.new_tag("h2", id=section)
        heading.string = name
        page.insert(0, heading)
    inner = f"<ol>{''.join(entries)}</ol>" if entries else ""
    return f'<li><a href="#{section}">{html.escape(title)}</a>{inner}</li>'


def _fold_code(page: BeautifulSoup, notebook: NotebookNode) -> None:
    """Put each code cell's input into a closed <details>, and give the parts the report's class names."""
    for prompt in page.find_all(class_="prompt"):
        prompt.decompose()
    for source in page.select("div.input"):
        details = page.new_tag("details", attrs={"class": "code"})
        summary = page.new_tag("summary")
        first_line = source.get_text().strip().split("\n")[0].strip()
        summary.string = f"code: {first_line[:70]}" if first_line.startswith("#") else "code"
        source.wrap(details)
        details.insert(0, summary)
    for kind, css in (
        ("output_wrapper", "output"),
        ("text_cell", "text"),
        ("output_stderr", "stderr"),
        ("output_error", "error"),
    ):
        for block in page.find_all("div", class_=kind):
            block["class"] = css
    for table in page.select(".text table"):
        table.wrap(page.new_tag("div", attrs={"class": "scroll"}))
    for cell in page.select("div.code_cell"):
        cell["class"] = "cell"


def _mend_links(page: BeautifulSoup) -> None:
    """Links to other notebooks lead to their section; pictures from the network give way to their text."""
    for link in page.find_all("a", href=True):
        target = re.fullmatch(r"(?:\./)?(\d\d_\w+)\.ipynb(?:#.*)?", link["href"])
        if target:
            link["href"] = f"#{_slug(target[1])}"
    for element in page.find_all(src=re.compile(r"^(https?:)?//")):
        element.replace_with(element.get("alt", ""))
    for element in page.find_all(["script", "link", "iframe"]):
        element.decompose()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
