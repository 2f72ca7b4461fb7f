"""report.html in a real browser: what fits a phone, and what a laptop shows without scrolling."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ssdlib.data.smears import write_dataset
from ssdlib.evaluation.evaluate import analysis_section
from ssdlib.inference.detections import Detections
from ssdlib.runs.folder import RunFolder
from ssdlib.runs.report import write_report
from tests.runs.test_report import picture

pytestmark = pytest.mark.browser

NAMES = ("WBC", "RBC", "Platelets")
LONG = "network.backbone.to_conv7.conv6.dilation_and_everything_behind_it"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with the widest tables, and a notebook with long words, long lines of code and a figure."""
    folder = tmp_path_factory.mktemp("report")
    data = write_dataset(folder / "tiny", train=2, val=1, test=1, progress=False)
    run = RunFolder.open(folder / "run", profile="smoke", data=str(data), progress=False)
    boxes = [[20 * k, 0, 20 * k + 9, 9] for k in range(30)]
    labels = [k % 3 + 1 for k in range(30)]
    found = [Detections(boxes[:n], [0.9] * n, labels[:n], (640, 480), NAMES) for n in (30, 12)]
    judged = (found, [{"boxes": boxes[:n], "labels": labels[:n]} for n in (20, 18)])
    run.update_metrics("analysis", analysis_section(judged, judged, NAMES, samples=20))
    code = new_code_cell(f"x = 1  # {'y' * 101}", outputs=[picture(alt="A red cell, outlined")])
    text = new_markdown_cell(f"# 1. Lesson\n\nThe word `{LONG}` is long.")
    (run.path / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=[text, code]), run.path / "notebooks/01_lesson.ipynb")
    return write_report(run).as_uri()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_fits(browser, report, shots, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(report)
    page.get_by_role("button", name="Show all code").click()
    page.screenshot(path=shots / f"report-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:
        for part in page.locator(".scroll, .output, pre").all():
            assert part.evaluate("(one) => one.scrollWidth <= one.clientWidth"), part.inner_text()
    assert page.locator("section.notebook img").get_attribute("alt") == "A red cell, outlined"
    page.close()
