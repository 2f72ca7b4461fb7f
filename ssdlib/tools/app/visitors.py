"""Several visitors at a time: a session for each, and one predictor that all take turns with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssdlib.inference.detections import Detections, Detector
from ssdlib.tools.app.session import Session


class Sessions:
    """A session for each visitor; the one unused for longest is forgotten when there are too many.

    Not `gradio.State`, which keeps what a closed page held for an hour and lets its work go on.
    """

    def __init__(self, new: Callable[[], Session], capacity: int = 16) -> None:
        self._new, self._capacity = new, capacity
        self._open: dict[str, Session] = {}  # the one used last is the last
        self._lock = threading.Lock()

    def __getitem__(self, visitor: str) -> Session:
        with self._lock:
            session = self._open[visitor] = self._open.pop(visitor, None) or self._new()
            while len(self._open) > self._capacity:
                self._open.pop(next(iter(self._open))).stop()
            return session

    def forget(self, visitor: str) -> None:
        """Drop the session of a closed page, and end the work that nobody waits for."""
        with self._lock:
            if session := self._open.pop(visitor, None):
                session.stop()


class SharedPredictor:
    """A predictor for many threads: it runs in one, a batch at a time, in the order of asking.

    So between two batches of a large image everybody else has a turn.
    """

    def __init__(self, predictor: Detector) -> None:
        self.class_names, self.config = predictor.class_names, predictor.config
        self.batch_size = predictor.batch_size
        self._predictor = predictor
        self._thread = ThreadPoolExecutor(1, "ssdlib-network")

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        """The detections of each (H, W, 3) uint8 RGB array of a batch, once its turn has come."""
        batch = list(images)  # cut from the image in the caller's own thread
        return iter(self._thread.submit(lambda: list(self._predictor.stream(batch))).result())
