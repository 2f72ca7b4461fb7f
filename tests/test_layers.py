"""The house: which module may import which. Read from the source with `ast`, so lazy imports count too.

Imports for type checkers alone (`if TYPE_CHECKING:`) bind nothing together and are left out.
"""

import ast
from pathlib import Path

import pytest

import ssdlib

PACKAGE = Path(ssdlib.__file__).parent

# From the ground up: a module imports its own layer and those below.
LAYERS = (
    {"errors"},
    {"files"},
    {"config", "setup_check"},
    {"runtime", "boxes"},
    {"priors", "matching", "nms", "detections", "profiles"},
    {"loss", "backbone", "history", "optimization", "distributed"},
    {"model", "watch"},
    {"weights"},
    {"data", "plots"},
    {"annotate", "inputs", "predict", "tiling"},
    {"export", "quantization", "onnx_engine"},
    {"engines", "results"},
    {"detect", "evaluation"},
    {"archive"},
    {"checkpoints"},
    {"train"},
    {"runs"},
    {"app", "report", "comparison", "suspects"},
    {"pipeline", "comparison_page"},
    {"sweep"},
    {"bench"},
    {"cli"},
    {"__main__", "card"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
DATA = {"data"}
NETWORK = {"priors", "matching", "nms", "loss", "backbone", "model", "weights"}


def imports_of(source: str) -> set[str]:
    """First parts after `ssdlib.` of everything that the source imports from the package."""
    found, tree = set(), ast.parse(source)
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "ssdlib":
            names = [f"ssdlib.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [node.module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ssdlib.")}
    return found


def modules() -> dict[str, set[str]]:
    """Each module or subpackage of the package with what it imports from the others."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
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
        ("import ssdlib.data.voc", {"data"}),
        ("if TYPE_CHECKING:\n    from ssdlib.train import History", set()),
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


def test_data_and_the_network_do_not_know_each_other():
    for name in DATA:
        assert not GRAPH[name] & (NETWORK | {"train", "predict", "evaluation"})
    for name in NETWORK & GRAPH.keys():
        assert not GRAPH[name] & (DATA | {"train", "predict", "evaluation", "plots"})
