"""report.html of a run: one file with a summary and the executed notebooks, readable without the internet.

Figures are embedded, formulas become MathML when the report is written, and nothing is loaded from elsewhere.
Whatever a run folder holds, no script of it is run: of notebooks only harmless elements are kept.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ssdlib.common import files, pages
from ssdlib.common.errors import StageError
from ssdlib.common.language import translate
from ssdlib.common.tables import Table, number
from ssdlib.config import flatten
from ssdlib.evaluation.tables import (
    calibration_table,
    counting_table,
    error_table,
    interval_table,
    notices,
    result_sections,
    result_table,
)
from ssdlib.runs.folder import data_name, read_stages

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter
    from nbformat import NotebookNode

    from ssdlib.runs.folder import RunFolder


MAX_NOTEBOOK_BYTES = 100_000_000
"""No executed notebook is larger."""


def write_report(run: RunFolder, known: Mapping[Path, NotebookSection] | None = None) -> Path:
    """Write `report.html` of the run and return its path; stages not run yet are listed as such.

    known: sections of the page that have been made already, by the path of their notebook.

    Raises SsdError if one of the run's files does not hold what the stages write.
    """
    try:
        page = _page(run, known or {})
    except (TypeError, ValueError, LookupError, AttributeError, TemplateError) as error:
        raise StageError(
            f"a report of {run.path} cannot be written, because metrics.json or another file in it does not "
            f"hold what the stages write ({type(error).__name__}: {error}). Remove it and run the "
            "stages again."
        ) from error
    path = run.path / "report.html"
    files.write_text(path, page)
    return path


def _page(run: RunFolder, known: Mapping[Path, NotebookSection]) -> str:
    metrics = run.metrics()
    sections, analysis = result_sections(metrics), metrics.get("analysis")
    paths = sorted((run.path / "notebooks").glob("*.ipynb"))
    notebooks = [known.get(path) or notebook_section(path) for path in paths]
    environment = run.path / "environment.json"
    others = {
        k: v for k, v in metrics.items() if k not in (*sections, "profile", "data", "borrowed", "analysis")
    }
    saved = [(name, size) for name, size in run.saved_files() if name != "report.html"]
    images = [(name, size) for name, size in saved if Path(name).suffix.lower() in pages.IMAGE_TYPES]
    return pages.render(
        "runs/report.html",
        title=run.name,
        profile=run.profile.name,
        data=data_name(metrics["data"]),
        created=str(run.config.get("created", "")),
        notices=notices(metrics),
        tiles=_tiles(sections),
        # By name without the notebook's number in front.
        figures={
            re.sub(r"^\d+_", "", path.name): files.read_limited(path)
            for path in sorted((run.path / "figures").glob("*.png"))
        },
        results={name: _result(section) for name, section in sections.items()},
        measurements={name: _facts({name: values}) for name, values in others.items()},
        analysis=analysis
        and {
            "errors": error_table(analysis["errors"]),
            "counting": counting_table(analysis["counting"]),
            "calibration": calibration_table(analysis["calibration"]),
        },
        stages=read_stages(run.path),
        environment=_facts(
            files.read_json(environment, shape=dict[str, Any]) if environment.exists() else {}
        ),
        settings=json.dumps(run.config, indent=2, ensure_ascii=False),
        saved_files={"Figures": images, "Files": [one for one in saved if one not in images]},
        notebooks=notebooks,
    )


def _tiles(sections: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, value) of the figures at the top: those of the split that was measured last."""
    if not sections:
        return []
    split, section = list(sections.items())[-1]
    figures = {f"mAP at IoU 0.5, {split}": section.get("map_50"), "COCO mAP": section.get("map")}
    figures |= {f"AP50 {name}": values.get("ap_50") for name, values in section["per_class"].items()}
    return [(name, number(value)) for name, value in figures.items()]


def _result(section: Mapping[str, Any]) -> dict[str, Any]:
    """One split's results: its table, that of all intervals, and the figures that are in neither."""
    intervals = section.get("intervals") or {}
    facts = {k: v for k, v in section.items() if not isinstance(v, dict | list)}
    return {
        "table": result_table(section),
        "facts": " · ".join(f"{translate(key)} {_value(value)}" for key, value in facts.items()),
        "intervals": interval_table(intervals) if "classes" in intervals else None,
    }


def _facts(values: Mapping[str, Any]) -> Table:
    """Nested values as pairs of a dotted name and a text."""
    return Table((), [(name, _value(value)) for name, value in flatten(values).items()])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "n/a" if value is None else str(value)


@dataclass(frozen=True)
class NotebookSection:
    """One notebook in the page."""

    name: str
    """The name of its file without the ending."""
    title: str
    headings: dict[str, str] = field(default_factory=dict)
    """{id: text} of the headings that the contents list."""
    body: str = ""
    """HTML."""
    error: str = ""
    """Why there is no body."""

    @property
    def id(self) -> str:
        return _slug(self.name)


def notebook_section(path: Path) -> NotebookSection:
    """An executed notebook as HTML. One that cannot be read becomes a section that says so, as does any where
    nbconvert (extra `lab`) is not installed."""
    import nh3
    from bs4 import BeautifulSoup

    from ssdlib.common.runtime import need_extra

    try:
        nbformat, _ = need_extra("lab", "nbformat"), need_extra("lab", "nbconvert")
        text = files.decode_text(files.read_limited(path, MAX_NOTEBOOK_BYTES), path)
        notebook = nbformat.reads(text, as_version=4)
        _tidy_outputs(notebook)
        resources = {"metadata": {"name": path.stem}}
        converted, _ = _exporter().from_notebook_node(notebook, resources=resources)
        page = BeautifulSoup(converted, "html.parser")
        _keep_offline(page)
        _describe_figures(page)
        title, headings = _number_headings(page, path.stem)
        # Last of all, so that it sees the page as a browser will.
        body = nh3.clean(
            page.decode(),
            tags=set(_ELEMENTS.split()),
            attributes={
                "*": set(_ATTRIBUTES.split()),
                "a": {"href"},
                "img": {"src"},
                **{f"h{level}": {"id"} for level in range(2, 7)},
            },
            attribute_filter=_harmless,
            url_schemes={"http", "https", "mailto", "data"},
            link_rel=None,
        )
    except Exception as error:  # of four libraries, which have none in common
        return NotebookSection(path.stem, path.stem, error=str(error)[:500])
    return NotebookSection(path.stem, title, headings, body)


_ELEMENTS = """
a b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img kbd li
ol p pre s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul
math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub msubsup msup mtable
mtd mtext mtr munder munderover
"""
"""What is kept of a notebook; the second half are formulas."""
_ATTRIBUTES = """
align alt class colspan height open rowspan scope start title width
accent columnalign columnlines columnspacing depth display displaystyle fence form linethickness lspace
mathbackground mathcolor mathsize mathvariant maxsize minsize movablelimits notation rowlines rowspacing
rspace scriptlevel separator stretchy voffset xmlns
"""
_LINK = re.compile(r"https?://|mailto:|[\w./%~ -]*([#?]|$)", re.IGNORECASE)
"""To the web, or inside the run's folder; nothing that a browser might run."""


def _harmless(element: str, name: str, value: str) -> str | None:
    """The value of an allowed attribute; None for a picture or a link that leads elsewhere."""
    if (name == "src" and not value.startswith("data:image/")) or (name == "href" and not _LINK.match(value)):
        return None
    return value


@cache
def _exporter() -> HTMLExporter:
    """nbconvert's exporter with formulas as MathML and the package's template."""
    from jinja2 import pass_context
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.highlight import Highlight2HTML
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """Markdown as nbconvert renders it, but for formulas."""

        def block_math(self, body: str) -> str:
            return self._mathml(body, "block")

        def inline_math(self, body: str) -> str:
            # As in Pandoc and on GitHub: the dollars of "costs $5 and $6" enclose no formula.
            return self._mathml(body, "inline") if body == body.strip() else super().inline_math(body)

        def _mathml(self, latex: str, display: str) -> str:
            try:
                return convert(latex.strip(), display=display)
            except Exception:  # the converter has no error of its own
                return self.codespan(latex.strip())

    class Exporter(HTMLExporter):
        def default_filters(self) -> Any:
            yield from super().default_filters()
            yield "code_title", _code_title
            yield "highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=self)

        def from_notebook_node(self, nb: NotebookNode, resources: Any = None, **options: Any) -> Any:
            # HTMLExporter's own would parse the page once more, for attributes that are not kept.
            return super(HTMLExporter, self).from_notebook_node(nb, resources, **options)

        @property
        def default_config(self) -> Any:
            config = super().default_config
            # Nothing that needs a script or a live kernel.
            unfit = ("application/vnd.jupyter.widget-view+json", "application/javascript", "text/vnd.mermaid")
            shown = config.NbConvertBase.display_data_priority
            config.NbConvertBase.display_data_priority = [kind for kind in shown if kind not in unfit]
            # What a carriage return overwrote is gone, as on a terminal.
            config.CoalesceStreamsPreprocessor.enabled = True
            # The summary names the failing cell; papermill's own marker would stand above the heading.
            config.TagRemovePreprocessor.enabled = True
            config.TagRemovePreprocessor.remove_cell_tags = ["papermill-error-cell-tag"]
            return config

        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            renderer = Renderer(
                escape=False,
                attachments=context.get("cell", {}).get("attachments", {}),
                exclude_anchor_links=True,
            )
            return MarkdownWithMath(renderer=renderer).render(source)

    return Exporter(
        template_name="classic",
        template_file=str(Path(__file__).with_name("notebook.html")),
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


def _tidy_outputs(notebook: NotebookNode) -> None:
    """Remove progress bars from stderr, and streams without text; make drawings images. In place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if drawing := output.get("data", {}).pop("image/svg+xml", None):
                known = output.get("metadata", {}).get("image/svg+xml")
                alt = known.get("alt") if isinstance(known, dict) else None
                text = f' alt="{html.escape(alt)}"' if isinstance(alt, str) else ""
                output.data["text/html"] = f'<img src="{pages.data_uri(drawing.encode(), ".svg")}"{text}>'
            if output.get("name") == "stderr":
                lines = output.text.splitlines(keepends=True)
                output.text = "".join(line for line in lines if not _PROGRESS_BAR.search(line))
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.output_type != "stream" or one.text.strip()]


def _code_title(source: str) -> str:
    """What a folded code cell is called: the comment that it begins with, else the first thing it defines.

    A title of Colab's (`# @title Answer: IoU`) stands for itself.
    """
    first = source.strip().partition("\n")[0].strip()
    if title := re.match(r"#\s*@title\s+(.+?)\s*(\{.*\})?$", first):
        return translate(title[1][:100])
    comment = re.match(r"#+(?![@%])\s*(.+)", first)
    named = comment or re.search(r"^((?:def|class) \w+)", source, re.MULTILINE)
    return translate(f"code: {named[1][:70]}" if named else "code")


_PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(it|\w*) \[\d\d:\d\d")
"""A line of tqdm's: `50%|####    | 1/2`, or without a known end `12it [00:03`."""


def _describe_figures(page: BeautifulSoup) -> None:
    """Give figures without a text of their own the first line of the Markdown above. In place."""
    for image in page.find_all("img", alt=False):
        above = image.find_previous("div", class_="text")
        first = above and above.find(["h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "td"])
        line = shorten(first.get_text(), 200, placeholder=" …") if first else ""
        image["alt"] = translate(f"Figure: {line}" if line else "Figure")


_ALIGNED = re.compile(r"text-align:\s*(left|center|right)")


def _keep_offline(page: BeautifulSoup) -> None:
    """Remove what is not in the file: pictures give way to their text, links to notebooks lead to sections.

    Links to the solutions and to other files of the course give way to their text. Also removed is what has
    text that is not to be read, such as scripts and styles.
    """
    for element in page.find_all(
        ["script", "style", "link", "iframe", "object", "template", "noscript", "title"]
    ):
        element.decompose()
    for element in page.find_all(src=lambda source: source and not source.startswith("data:image/")):
        if element.decomposed:  # with another picture of the same link
            continue
        if element.parent.name == "a" and not element.parent.get_text(strip=True):
            element.parent.decompose()  # a badge: a picture that is a link
        else:
            element.replace_with(element.get("alt", ""))
    for link in page.find_all("a", href=re.compile(r"^(\./)?\d\d_\w+\.ipynb(#.*)?$")):
        link["href"] = f"#{_slug(Path(link['href'].partition('#')[0]).stem)}"
    for link in page.find_all("a", href=re.compile(r"^[\w./-]+\.(ipynb|md|py)(#.*)?$")):
        link.unwrap()
    for cell in page.find_all(["td", "th"], style=_ALIGNED):  # styles are not kept
        cell["align"] = _ALIGNED.search(cell["style"])[1]


def _number_headings(page: BeautifulSoup, name: str) -> tuple[str, dict[str, str]]:
    """Demote headings by one level and give each an id of its own, in place.

    Returns the notebook's title and {id: text} of its second-level headings. The title is the first heading
    of level 1; a notebook without one gets `name`.
    """
    section = _slug(name)
    title, used, contents = name, set(), {}
    for heading in page.find_all(re.compile(r"^h[1-5]$")):
        level, text = int(heading.name[1]), heading.get_text(" ", strip=True)
        is_title = level == 1 and section not in used
        anchor = section if is_title else f"{section}-{_slug(text)}"
        while anchor in used:
            anchor += "-"
        used.add(anchor)
        heading["id"], heading.name = anchor, f"h{level + 1}"
        if is_title:
            title = text
        elif level == 2:
            contents[anchor] = text
    if section not in used:
        heading = page.new_tag("h2", id=section)
        heading.string = name
        page.insert(0, heading)
    return title, contents


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-") or "section"
