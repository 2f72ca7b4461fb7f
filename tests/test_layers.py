"""The house: which module may import which. Read from the source with `ast`, so lazy imports count too.

Imports for type checkers alone (`if TYPE_CHECKING:`) bind nothing together and are left out.
"""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import ssdlib

PACKAGE = Path(ssdlib.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a module imports its own layer and those below.
LAYERS = (
    {"common"},
    {"config"},
    {"detector", "data"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"plots"},
    {"runs"},
    {"tools"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def imported_names(source: str) -> set[str]:
    """Dotted names of everything that the source imports from the package: modules, or things in them."""
    found, tree = set(), ast.parse(source)
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name for name in names if name.startswith("ssdlib.")}
    return found


def imports_of(source: str) -> set[str]:
    """First parts after `ssdlib.` of everything that the source imports from the package."""
    return {name.split(".")[1] for name in imported_names(source)}


def graph_of_modules() -> dict[str, set[str]]:
    """Each module by its dotted name, with those of the package that it imports."""
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in SOURCES}
    return {
        module: {
            needed
            for name in imported_names(path.read_text(encoding="utf-8"))
            if (needed := name if name in paths else name.rpartition(".")[0]) in paths
        }
        for module, path in paths.items()
    }


def modules() -> dict[str, set[str]]:
    """Each module or subpackage of the package with what it imports from the others."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name != "__init__":
            graph.setdefault(name, set()).update(imports_of(path.read_text(encoding="utf-8")) - {name})
    return graph


GRAPH = modules()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", set()),
        ("import torch\nfrom pathlib import Path", set()),
        ("import ssdlib.data.formats.voc", {"data"}),
        ("if TYPE_CHECKING:\n    from ssdlib.training.trainer import History", set()),
        ("def f():\n    from ssdlib import nms, boxes", {"nms", "boxes"}),
        ("from ssdlib.evaluation.metrics import Metrics as ssdlib_model", {"evaluation"}),
    ],
)
def test_the_reader_sees_every_kind_of_import(source, expected):
    assert imports_of(source) == expected


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_go_down_only(name):
    assert name in HEIGHT, f"say in LAYERS where {name} stands"
    upward = {other for other in GRAPH[name] if HEIGHT[other] >= HEIGHT[name]}
    # Two of a layer may know each other one way; a pair that knows each other both ways is a knot.
    knots = {other for other in upward if HEIGHT[other] > HEIGHT[name] or name in GRAPH[other]}
    assert not knots, f"{name} imports {knots}, which stand above it or import it back"


def test_data_and_the_detector_do_not_know_each_other():
    assert "detector" not in GRAPH["data"] and "data" not in GRAPH["detector"]


def test_the_house_is_small_enough_to_be_held_in_ones_head():
    rooms = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert len(rooms) <= 12, sorted(rooms)
    assert len(LAYERS) <= 12


def test_no_module_imports_itself_in_a_circle():
    graph = graph_of_modules()
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ssdlib", "torch"),
        ("ssdlib.cli", "torch"),
        ("ssdlib.evaluation.tables", "torch"),
        ("ssdlib.inference.predictor", "matplotlib"),
        ("ssdlib.inference.job", "matplotlib"),
        ("ssdlib.inference.draw", "matplotlib"),
    ],
)
def test_using_a_part_does_not_load_what_it_does_not_need(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
