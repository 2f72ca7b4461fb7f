"""The page below a code cell of notebook 7, as its reader opens it."""

import re
import sys
from types import ModuleType

import nbformat
import pytest

from ssdlib.common.paths import project_root
from ssdlib.detector.model_file import shipped_weights
from ssdlib.inference.predictor import Predictor
from ssdlib.tools.app.launch import open_inline

pytestmark = pytest.mark.browser

SMEAR = project_root() / "data/samples/JPEGImages/SmearImage_00002.jpg"


def the_cell() -> str:
    """Notebook 7's code cell with the page, switched on."""
    notebook = nbformat.read(project_root() / "notebooks/07_visualize.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith("INTERACTIVE = False")]
    return cell.source.replace("INTERACTIVE = False", "INTERACTIVE = True", 1)


@pytest.mark.parametrize("colab", [False, True])
def test_the_cell_shows_the_page_and_counts(browser, monkeypatch, tmp_path, colab):
    pytest.importorskip("gradio", reason="needs the extra app")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    cell = {"Predictor": Predictor, "open_inline": open_inline, "shipped_weights": shipped_weights}
    exec(the_cell(), cell)
    try:
        (output,) = shown
        assert re.search(r'src="http://127\.0\.0\.1:\d+/"', output.data)
        tab = browser.new_page(viewport={"width": 950, "height": 1050})
        tab.set_default_timeout(120_000)
        tab.set_content(f"<body>{output.data}</body>")
        page = tab.frame_locator("iframe")
        page.get_by_text("this computer" if not colab else "the computer that serves this page").wait_for()
        page.locator("#ssd-upload input[type=file]").set_input_files(SMEAR)
        page.locator(".ssd-picture figcaption b", has_text=SMEAR.name).wait_for()
        assert int(page.locator(".ssd-tile[data-class=RBC] b").inner_text()) >= 10
        tab.close()
    finally:
        cell["page"].close(verbose=False)
