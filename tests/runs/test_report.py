"""The report: one file, no network, formulas and figures inside, honest about stages and data."""

import base64
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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
    names = [f"0{number}_{letter}" for number, letter in enumerate("abcdef", start=1)]
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


def test_all_six_are_there_with_contents_that_lead_somewhere(page):
    titles = [heading.get_text() for heading in page.select("section.notebook h2")]
    assert titles == [f"Lesson {number}" for number in range(1, 7)]
    ids = [element["id"] for element in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [link["href"][1:] for link in page.find_all("a", href=re.compile("^#"))]
    assert set(links) <= set(ids) and "03-c-questions" in links
    assert page.find("a", string="three")["href"] == "#03-c"


def test_code_is_folded_and_outputs_are_clean(page):
    cell = page.select_one("section.notebook .cell")
    assert cell.select_one("details.code > summary").get_text() == "code: # Train"
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
    assert states == ["done", "failed", *["not run"] * 4]
    assert page.select_one(".tile b").get_text() == "0.500" and "n/a" in summary
    assert "train.best_epoch" in summary and "figures/curve.png" in summary
    assert page.find("h1").get_text() == "run <one>"
    table = page.find("h3", string="Results: test").find_next("table")
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")] == [
        ["class", "AP50", "objects"], ["WBC", "0.500", "3"], ["<b>", "n/a", "0"], ["all", "0.500", "3"],
    ]  # fmt: skip


def test_the_figure_of_the_last_notebook_is_on_top(tmp_path, run):
    assert not page_of(run).select("main > figure")
    run.save("figures/06_triptych.png", b"pixels")
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


def shown(tmp_path, *cells) -> BeautifulSoup:
    """A notebook of these cells as the report shows it."""
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    return BeautifulSoup(notebook_section(tmp_path / "01_a.ipynb").body, "html.parser")


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
    run.save("figures/05_errors.png", base64.b64decode(PIXEL))
    page = page_of(run)
    assert "What it gets wrong" not in before
    titles = [title.get_text() for title in page.find_all("h3")]
    place = titles.index("What it gets wrong")
    assert titles[place : place + 3] == [
        "What it gets wrong", "How well it counts", "Can its scores be believed?",
    ]  # fmt: skip
    rows = {row.td.get_text(): [cell.get_text() for cell in row.find_all("td")[1:]]
            for row in page.find_all("tr") if row.td}  # fmt: skip
    assert rows["background"] == ["0.0 (1)", "n/a (0)", "0.0 (1)"], "after the right one it costs nothing"
    assert page.find("img", alt=re.compile("fixing each kind"))["src"].startswith("data:image/png;base64,")
    assert "analysis" not in page.get_text(), "the section is not listed raw as well"
