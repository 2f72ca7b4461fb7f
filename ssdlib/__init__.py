"""SSD300 for blood cells: the package behind the course's seven notebooks.

>>> import ssdlib
>>> ssdlib.Predictor.from_checkpoint().detect("data/samples/JPEGImages/SmearImage_00000.jpg")

The names here are loaded when they are first used, so that the import itself stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssdlib.data.source import resolve as open_dataset
    from ssdlib.detector.model import SSD300
    from ssdlib.inference.detections import Detections
    from ssdlib.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["SSD300", "Detections", "Predictor", "open_dataset"]

_PLACES = {
    "Detections": ("ssdlib.inference.detections", "Detections"),
    "Predictor": ("ssdlib.inference.predictor", "Predictor"),
    "SSD300": ("ssdlib.detector.model", "SSD300"),
    "open_dataset": ("ssdlib.data.source", "resolve"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
