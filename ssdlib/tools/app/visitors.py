"""Several visitors at a time: a session for each, and one predictor that all take turns with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssdlib.inference.detections import Detections, Detector
from ssdlib.tools.app.session import Session
from ssdlib.tools.app.uploads import safe_name


class Sessions:
    """A session for each visitor, as long as the memory is enough for all.

    Not `gradio.State`, which keeps what a closed page held for an hour and lets its work go on.
    """

    def __init__(self, new: Callable[[], Session], memory_bytes: int, idle_seconds: float = 600) -> None:
        self._new, self._memory_bytes, self._idle_seconds = new, memory_bytes, idle_seconds
        self._open: dict[str, tuple[Session, float]] = {}  # and when it was used, in that order
        self._lock = threading.Lock()

    def __getitem__(self, visitor: str) -> Session:
        with self._lock:
            session, _ = self._open.pop(visitor, None) or (self._new(), 0.0)
            self._open[visitor] = session, time.monotonic()
            return session

    def add(self, visitor: str, path: Path, name: str | None = None) -> None:
        """`Session.add` for a visitor, if the memory of all is enough for the file; else it is refused there.

        For its sake those are forgotten who have not used their page for `idle_seconds`, the longest idle
        first; nobody else, and nobody whose images wait.
        """
        session = self[visitor]
        with suppress(OSError), self._lock:  # the session says what is missing
            held = sum(one.size for one, _ in self._open.values())
            excess = held + path.stat().st_size - self._memory_bytes
            for idle, (one, used) in list(self._open.items()):
                unused = time.monotonic() - used > self._idle_seconds and not one.waiting
                if unused and one is not session and (excess > 0 or not one.size):
                    excess -= one.size
                    del self._open[idle]
            if excess > 0:
                session.refused.append(
                    f"{safe_name(name or path.name)}: the page has no memory for more images of its "
                    "visitors. Try again in some minutes."
                )
                return
        session.add(path, name)

    def forget(self, visitor: str) -> None:
        """Drop the session of a closed page, and end the work that nobody waits for."""
        with self._lock:
            session, _ = self._open.pop(visitor, (None, 0.0))
        if session:
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
