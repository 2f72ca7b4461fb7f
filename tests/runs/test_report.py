"""The report: one file, no internet, formulas and figures inside, honest about stages and data."""

import base64
import json
import os
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ssdlib.common.errors import SsdError
from ssdlib.data.smears import write_dataset
from ssdlib.runs.folder import RunFolder
from ssdlib.runs.pipeline import StageRecord
from ssdlib.runs.report import notebook_section, write_report

PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63f8ffff3f00"
        "05fe02fea72b9c8e0000000049454e44ae426082"
    )
).decode()
TEXT = """# Lesson {number}

[![Open](https://colab.example/assets/colab-badge.svg)](https://colab.example/x)

Loss $L = \\frac{{1}}{{N}} (L_{{conf}} + \\alpha * L_{{loc}})$ costs \\$5, and `$HOME` is code.
Next: [three](03_c.ipynb).

$$\\hat g_{{cx}} = \\frac{{g_{{cx}} - p_{{cx}}}}{{p_w}}$$

## Questions

| a | b |
| - | - |
| 1 | 2 |

<img src="https://example.org/remote.png" alt="remote picture"><script src="//example.org/x.js"></script>
"""
SECTION = {
    "images": 2,
    "map_50": 0.5,
    "map": None,
    "per_class": {"WBC": {"ap_50": 0.5, "ground_truth": 3}, "<b>": {"ap_50": None, "ground_truth": 0}},
}


TAG = """<img src=x onerror=alert(1)>"' onclick=alert(1) <script>alert(1)</script>"""


def lesson(number: int):
    outputs = [
        new_output("stream", name="stdout", text="0%\r50%\rdone\n"),
        new_output("stream", name="stderr", text="\r  0%|   | 0/9\r100%|###| 9/9 [00:01<00:00]\nsaid once\n"),
        new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"}),
        new_output("display_data", data={"text/html": "<p>kept</p><script>alert(1)</script>"}),
        new_output(
            "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a slider"}
        ),
        new_output("error", ename="ValueError", evalue="why", traceback=["\x1b[31mValueError\x1b[0m: why"]),
    ]
    code = new_code_cell("# Train\nx = 1", outputs=outputs, execution_count=1)
    return new_notebook(cells=[new_markdown_cell(TEXT.format(number=number)), code])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = write_dataset(folder / "tiny", train=2, val=1, test=1, progress=False)
    run = RunFolder.open(folder / "run <one>", profile="smoke", data=str(data), progress=False)
    (run.path / "notebooks").mkdir()
    names = [f"0{number}_{letter}" for number, letter in enumerate("abcdefg", start=1)]
    record = StageRecord(run.path, names)
    for number, name in enumerate(names, start=1):
        nbformat.write(lesson(number), run.path / f"notebooks/{name}.ipynb")
    with record.running("01_a"):
        pass
    with pytest.raises(ValueError), record.running("02_b"):
        raise ValueError("broke <here>")
    run.update_metrics("test", SECTION)
    run.update_metrics("train", {"best_epoch": 3})
    run.save("figures/curve.png", base64.b64decode(PIXEL))
    return run


def page_of(run) -> BeautifulSoup:
    return BeautifulSoup(write_report(run).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


def test_nothing_is_loaded_from_elsewhere(page):
    for element in page.find_all(True):
        for name in ("src", "srcset", "data", "poster"):
            assert not re.match(r"(https?:)?//", str(element.get(name, ""))), element
    assert not page.find_all(["link", "iframe", "object", "embed"])
    assert [script.get("src") for script in page.find_all("script")] == [None]
    style = page.find("style").get_text()
    assert "url(" not in style and "@import" not in style
    assert "colab-badge" not in str(page) and "remote picture" in page.get_text()


def test_all_seven_are_there_with_contents_that_lead_somewhere(page):
    titles = [heading.get_text() for heading in page.select("section.notebook h2")]
    assert titles == [f"Lesson {number}" for number in range(1, 8)]
    ids = [element["id"] for element in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [link["href"][1:] for link in page.find_all("a", href=re.compile("^#"))]
    assert set(links) <= set(ids) and "03-c-questions" in links
    assert page.find("a", string="three")["href"] == "#03-c"


def test_code_is_folded_and_outputs_are_clean(page):
    cell = page.select_one("section.notebook .cell")
    assert cell.select_one("details.code > summary").get_text() == "code: Train"
    text = cell.get_text()
    assert "done" in text and "50%" not in text, "what a carriage return overwrote is gone"
    assert "said once" in text and "9/9" not in text, "progress bars are gone, other notices stay"
    assert "kept" in text and "a slider" in text and "ValueError: why" in text
    assert cell.find("img")["src"].startswith("data:image/png;base64,")


def test_summary_tells_data_stages_results_and_files(page):
    summary = page.select_one("main").get_text(" ")
    assert "SYNTHETIC" in page.select_one(".notice").get_text()
    assert "broke <here>" in page.select_one(".failure").get_text()
    states = [cell.get_text() for cell in page.select("td.state")]
    assert states == ["done", "failed", *["not run"] * 5]
    assert page.select_one(".tile b").get_text() == "0.500" and "n/a" in summary
    assert "train.best_epoch" in summary and "figures/curve.png" in summary
    assert page.find("h1").get_text() == "run <one>"
    table = page.find("h3", string="Results: test").find_next("table")
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")] == [
        ["class", "AP50", "objects"], ["WBC", "0.500", "3"], ["<b>", "n/a", "0"], ["all", "0.500", "3"],
    ]  # fmt: skip


def test_the_figure_of_the_last_notebook_is_on_top(tmp_path, run):
    assert not page_of(run).select("main > figure")
    run.save("figures/07_triptych.png", b"pixels")
    picture = page_of(run).select_one("main > figure img")
    assert picture["src"] == "data:image/png;base64,cGl4ZWxz"


def test_formulas_become_mathml(page):
    lesson = page.select_one("section.notebook .text")
    assert len(lesson.find_all("math")) == 2 and lesson.find("math", display="block")
    assert "$5" in lesson.get_text() and "$HOME" in lesson.get_text()


def test_a_run_without_stages_still_has_a_report(tmp_path, run):
    empty = RunFolder.open(
        tmp_path / "empty", profile="smoke", data=run.config["data"]["request"], progress=False
    )
    text = page_of(empty).get_text()
    assert "No stage has run yet" in text
    (empty.path / "notebooks").mkdir()
    (empty.path / "notebooks/01_broken.ipynb").write_text("{")
    page = page_of(empty)
    assert page.select_one("section.notebook h2").get_text() == "01_broken"
    assert "JSON" in page.select_one("section.notebook .failure").get_text()


HOSTILE = f"""\
<script>alert(1)</script><SCRIPT/x>alert(1)</SCRIPT><style>@import "//x.example/"</style>
<img src=x onerror=alert(1)><img src="data:image/png;base64,{PIXEL}" onload=alert(1)
style="background:url(//x)">
<img src=" HTTP://x.example/a.png"><img src="data:text/html,<script>alert(1)</script>" alt="gone">
<object data="data:text/html,x"></object><embed src="javascript:alert(1)"><iframe srcdoc="x"></iframe>
<svg onload=alert(1)><a xlink:href="javascript:alert(1)"><text>drawn</text></a></svg>
<base href="//x.example/">
<form action="javascript:alert(1)">
<button formaction="javascript:alert(1)" onclick="alert(1)">b</button></form>
<meta http-equiv=refresh content="0;url=javascript:alert(1)">
<video><source onerror=alert(1)></video>
<a href="javascript:alert(1)">a</a><a href=" java&#115;cript&colon;alert(1)">a</a>
<a href="jav&#9;ascript:alert(1)">a</a>
<a href="data:text/html,x">a</a><a href="vbscript:x" onclick=alert(1)>a</a>
<details open ontoggle=alert(1)></details>
<math><mtext><table><mglyph><style><!--</style>
<img title="--&gt;&lt;img src=x onerror=alert(1)&gt;"></table></math>
<math href="javascript:alert(1)">m</math><!--><img src=x onerror=alert(1)>-->
<![CDATA[><img src=x onerror=alert(1)>]]>
<noscript><p title="</noscript><img src=x onerror=alert(1)>"></noscript><template><b>t</b></template>
<p id="summary" class="kept">kept <b>bold</b> <a href="https://x.example/?a=1&amp;b">web</a>
<a href="#there">there</a></p>
"""


def assert_harmless(page: BeautifulSoup) -> None:
    """That a browser would run and load nothing of this part of a page."""
    passive = {"script", "style", "object", "embed", "iframe", "svg", "base", "form", "button", "meta",
               "video", "source", "link", "template", "noscript", "mglyph", "input"}  # fmt: skip
    assert not page.find_all(passive)
    for element in page.find_all(True):
        assert not [name for name in element.attrs if name.startswith("on") or name in ("style", "srcdoc")]
        assert re.match(r"data:image/|$", element.get("src", "")), element
        assert re.match(r"https?://|#|$", element.get("href", "")), element


@pytest.mark.parametrize("parser", ["html.parser", "lxml"])
def test_notebooks_of_strangers_run_no_script(tmp_path, parser):
    html = new_output("display_data", data={"text/html": HOSTILE})
    drawing = f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>{HOSTILE}</svg>"
    outputs = [
        html,
        new_output("display_data", data={"image/svg+xml": drawing, "text/plain": "<Figure>"}),
        new_output("display_data", data={"text/latex": HOSTILE}),
        new_output("display_data", data={"text/markdown": HOSTILE}),
        new_output("display_data", data={"image/png": '"onerror="alert(1)'}),
        new_output("stream", name="stdout", text=HOSTILE),
        new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE]),
    ]
    code = new_code_cell(HOSTILE, outputs=outputs, metadata={"tags": ['"><img src=x onerror=alert(1)>']})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# T <b onclick=x>t</b>\n" + HOSTILE), code]),
                   tmp_path / "01_a.ipynb")  # fmt: skip
    section = notebook_section(tmp_path / "01_a.ipynb")
    assert not section.error
    page = BeautifulSoup(section.body, parser)
    assert_harmless(page)
    kept = page.find_all(class_="kept")
    assert len(kept) == 3, "in the text, in HTML and in Markdown"
    assert kept[0].b.get_text() == "bold" and not kept[0].get("id")
    assert [link["href"] for link in kept[0].find_all("a")] == ["https://x.example/?a=1&b", "#there"]
    assert page.find("img", src=re.compile("^data:image/svg"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", {"test": {"map_50": TAG, "images": TAG, "per_class": {TAG: {"ap_50": TAG}}}}),
        ("metrics.json", {"test": {**SECTION, "per_class": {"WBC": {"ap_50": TAG, "ground_truth": TAG}}}}),
        ("metrics.json", {TAG: {TAG: TAG}, "test": {**SECTION, "intervals": {"classes": TAG}}}),
        ("metrics.json", {"analysis": {"errors": TAG, "counting": TAG, "calibration": TAG}}),
        ("metrics.json", [TAG]),
        ("environment.json", {TAG: {TAG: [TAG, {TAG: TAG}]}}),
        ("environment.json", TAG),
        ("stages.json", {"stages": [{"name": TAG, "state": TAG, "started": TAG, "error": TAG}]}),
        ("stages.json", {"stages": [{"name": "01_a", "state": TAG, "seconds": TAG}]}),
        ("config.json", {"created": [TAG]}),
        ("config.json", {"created": TAG, TAG: TAG}),
    ],
)  # fmt: skip
def test_tampered_files_are_shown_as_text_or_named(tmp_path, run, name, content):
    data = run.config["data"]["request"]
    changed = RunFolder.open(tmp_path / "run", profile="smoke", data=data, progress=False)
    if name == "config.json":
        changed.config |= content
    else:
        (changed.path / name).write_text(json.dumps(content))
    try:
        page = page_of(changed)
    except SsdError as error:
        assert name in str(error) or "metrics.json or another file" in str(error)
        assert not (changed.path / "report.html").exists()
    else:
        page.select_one("body > script").decompose()  # the page's own
        assert "<script>alert(1)</script>" in page.get_text() and not page.find_all(["script", "img"])
        assert not [e for e in page.find_all(True) if any(key.startswith("on") for key in e.attrs)]


def shown(tmp_path, *cells) -> BeautifulSoup:
    """A notebook of these cells as the report shows it."""
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    return BeautifulSoup(notebook_section(tmp_path / "01_a.ipynb").body, "html.parser")


def picture(kind="image/png", data=PIXEL, **metadata):
    return new_output("display_data", data={kind: data}, metadata={kind: metadata} if metadata else {})


SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"


@pytest.mark.parametrize(
    ("outputs", "texts"),
    [
        ([picture(alt="a <b> \"c\""), picture("image/jpeg", alt="d")], ['a <b> "c"', "d"]),
        ([picture("image/svg+xml", SVG, alt="e <\"")], ['e <"']),
        ([picture(), picture("image/svg+xml", SVG), picture(alt=None)], ["Figure: 3. Priors"] * 3),
        ([new_output("display_data", data={"text/html": f'<img src="data:image/png;base64,{PIXEL}">'})],
         ["Figure: 3. Priors"]),
    ],
)  # fmt: skip
def test_every_figure_has_a_text(tmp_path, outputs, texts):
    above = new_markdown_cell("## 3. *Priors*\non a smear")
    page = shown(tmp_path, new_markdown_cell("# T"), above, new_code_cell("x", outputs=outputs))
    assert [image["alt"] for image in page.find_all("img")] == texts


@pytest.mark.parametrize(
    ("above", "text"),
    [
        ([], "Figure"),
        ([new_markdown_cell("")], "Figure"),
        ([new_markdown_cell("First, $x$ and\n`code`.\n\nSecond.")], "Figure: First, x and code."),
        ([new_markdown_cell("word " * 60)], "Figure: " + "word " * 39 + "…"),
    ],
)
def test_a_figure_without_a_text_is_named_by_what_stands_above(tmp_path, above, text):
    page = shown(tmp_path, *above, new_code_cell("x", outputs=[picture()]))
    assert page.find("img")["alt"] == text


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("# @title Answer: IoU of every pair\nx", "Answer: IoU of every pair"),
        ('# @title  Setup { display-mode: "form" }\nx', "Setup"),
        ("# Train\nx", "code: Train"),
        ("def my_iou(a, b):\n    ...", "code: def my_iou"),
        ("class MySSD300(nn.Module):\n    ...", "code: class MySSD300"),
        ("import math\n\n\ndef my_flip(image):\n    def inner(): ...", "code: def my_flip"),
        ("#@param\nx", "code"),
        ("x = 1", "code"),
        ("", "code"),
    ],
)
def test_folded_code_is_named_by_its_first_line(tmp_path, source, title):
    tags = {"tags": ["mine", "answer"], "jupyter": {"source_hidden": True}}
    cell = shown(tmp_path, new_code_cell(source, metadata=tags)).select_one("details.code.answer")
    assert cell.summary.get_text() == title and "open" not in cell.attrs
    assert cell.pre.get_text().strip() == source
    assert not shown(tmp_path, new_code_cell(source)).select("details.answer")


def test_tables_of_lessons_keep_caption_and_alignment(tmp_path, monkeypatch):
    from ssdlib.runs import lesson

    tables = []
    monkeypatch.setattr(lesson, "display", lambda table: tables.append(table.data))
    lesson.show_table(["class", "AP"], [["WBC", "0.9"]], "On test")
    html = new_output("display_data", data={"text/html": tables[0]})
    markdown = new_markdown_cell("| a | b |\n| - | -: |\n| 1 | 2 |")
    page = shown(tmp_path, new_markdown_cell("# T"), markdown, new_code_cell("x", outputs=[html]))
    table = page.select_one(".output table")
    assert table.caption.get_text() == "On test" and table.tbody.th["scope"] == "row"
    cells = [*table.find_all(["td", "th"]), *page.select(".text td")]
    assert [cell.get("align") for cell in cells] == ["left", "right", "left", "right", None, "right"]
    assert not page.find_all(style=True)


def test_links_lead_to_lessons_and_the_web_alone(tmp_path):
    text = "# T\n[a](02_b.ipynb#x) [b](solutions/01_a.ipynb) [c](../ssdlib/docs/x.md) [d](https://x.example/y.md)"
    page = shown(tmp_path, new_markdown_cell(text))
    assert [link["href"] for link in page.find_all("a")] == ["#02-b", "https://x.example/y.md"]
    assert "a b c d" in page.get_text()


@pytest.mark.parametrize(
    ("markdown", "formulas", "text"),
    [
        ("no formula", [], "no formula"),
        ("$x$", ["x"], ""),
        ("$$a\nb$$", ["ab"], ""),
        ("costs $5 and $6", [], "costs $5 and $6"),
        (r"\$x\$", [], "$x$"),
        ("`$x$` $y$", ["y"], "$x$"),
        ("``a ` $x$``", [], "a ` $x$"),
        ("```\n$x$\n```\n$y$", ["y"], "$x$"),
        ("$a$, $b_1 * c_2 * d$", ["a", "b1*c2*d"], ","),
        (r"$\{a\}$-th", ["{a}"], "-th"),
        (r"$\left( x < 1$", [], r"\left( x < 1"),
        (r"$$\begin{cases} 1 & |x| < 1 \\ 2 \end{cases}$$", ["{1|x|<12"], ""),
    ],
)
def test_what_counts_as_a_formula(tmp_path, markdown, formulas, text):
    page = shown(tmp_path, new_markdown_cell(markdown)).select_one(".text")
    found = [formula.extract() for formula in page.find_all("math")]
    assert [re.sub(r"\s", "", formula.get_text()) for formula in found] == formulas
    assert all((formula["display"] == "block") == ("$$" in markdown) for formula in found)
    assert page.get_text(strip=True) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a\n", "a"),
        ("a\rb", "b"),
        ("a\rb\r", "b"),
        ("a\r\nb", "a\nb"),
        ("1\r2\n3\r4\n", "2\n4"),
        ("\r\n", None),
    ],
)
def test_lines_are_shown_as_on_a_terminal(tmp_path, written, expected):
    output = new_output("stream", name="stdout", text=written)
    found = shown(tmp_path, new_code_cell("x", outputs=[output])).select_one(".output")
    text = found and "\n".join(line for line in found.get_text().split("\n") if line.strip())
    assert (text and text.replace("\r", "")) == expected


def test_errors_counts_and_calibration_stand_in_the_report(run):
    from ssdlib.evaluation.evaluate import analysis_section
    from ssdlib.inference.detections import Detections

    found = Detections([[0, 0, 9, 9], [50, 50, 60, 60]], [0.9, 0.8], [1, 1], (90, 90), ("WBC", "<b>"))
    judged = ([found], [{"boxes": [[0, 0, 9, 9]], "labels": [1]}])
    before = page_of(run).get_text()
    run.update_metrics("analysis", analysis_section(judged, judged, ("WBC", "<b>"), samples=5))
    run.save("figures/06_errors.png", base64.b64decode(PIXEL))
    page = page_of(run)
    assert "What it gets wrong" not in before
    titles = [title.get_text() for title in page.find_all("h3")]
    place = titles.index("What it gets wrong")
    assert titles[place : place + 3] == [
        "What it gets wrong", "How well it counts", "Can its scores be trusted?",
    ]  # fmt: skip
    rows = {row.td.get_text(): [cell.get_text() for cell in row.find_all("td")[1:]]
            for row in page.find_all("tr") if row.td}  # fmt: skip
    assert rows["background"] == ["0.0 (1)", "n/a (0)", "0.0 (1)"], "after the right one it costs nothing"
    assert page.find("img", alt=re.compile("fixing each kind"))["src"].startswith("data:image/png;base64,")
    assert "analysis" not in page.get_text(), "the section is not listed raw as well"


def test_links_with_several_pictures_give_way(tmp_path):
    text = "[![a](https://x.example/a.png) ![b](https://x.example/b.png)](https://x.example) kept"
    page = shown(tmp_path, new_markdown_cell(text))
    assert "kept" in page.get_text() and not page.find_all(["img", "a"])


def test_notebooks_take_no_files_into_the_report(tmp_path):
    (tmp_path / "secret.png").write_bytes(base64.b64decode(PIXEL))
    page = shown(tmp_path, new_markdown_cell('![s](secret.png) <img src="secret.png"> kept'))
    assert "kept" in page.get_text() and not page.find_all("img")


@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, run, special):
    data = run.config["data"]["request"]
    changed = RunFolder.open(tmp_path / "run", profile="smoke", data=data, progress=False)
    for place in ("notebooks/01_a.ipynb", "figures/07_triptych.png"):
        path = changed.path / place
        path.parent.mkdir()
        if special == "pipe":
            os.mkfifo(path)
        elif special == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        if place.startswith("notebooks"):
            failure = page_of(changed).select_one("section.notebook .failure")
            assert "01_a.ipynb: it is a folder, a pipe or a device" in failure.get_text()
    with pytest.raises(SsdError, match=r"07_triptych\.png: it is a folder, a pipe or a device"):
        write_report(changed)
