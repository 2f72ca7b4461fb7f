"""What keeps an eye on training: losses that must stay finite, signals that ask for a stop."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from typing import Any, Self

import torch
from torch import Tensor

from ssdlib.errors import TrainingError
from ssdlib.loss import MultiBoxLoss


class LossWatch:
    """Adds up the loss parts of an epoch and stops at the first that is not finite.

    Reading a number from a GPU waits for all its work, so the numbers of `every` steps are read at once.
    """

    NAMES = ("loss", "localisation", "confidence", "gradient norm")

    def __init__(self, every: int, sums: list[float]) -> None:
        self.every = every
        self.sums = sums
        self.latest = float("nan")
        self._pending: list[tuple[Tensor, str, list[str]]] = []

    def add(self, loss: MultiBoxLoss, norm: Tensor, where: str, images: list[str]) -> None:
        """Take note of one step. Raises TrainingError, perhaps some steps late, if it was not finite."""
        values = (loss.total, loss.localisation, loss.confidence, norm)
        self._pending.append((torch.stack([v.detach().float() for v in values]), where, images))
        if len(self._pending) >= self.every:
            self.read()

    def read(self) -> None:
        """Read what is pending."""
        if not self._pending:
            return
        rows = torch.stack([values for values, _, _ in self._pending]).tolist()
        for row, (_, where, images) in zip(rows, self._pending, strict=True):
            if not all(map(math.isfinite, row)):
                parts = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.NAMES, row, strict=True))
                raise TrainingError(
                    f"the loss is no longer finite at {where}: {parts}; images of the batch: "
                    f"{', '.join(images)}. What was saved before stays. Look at these images' boxes "
                    "(ssdlib data check), or start again with a smaller learning rate."
                )
            self.sums = [total + value for total, value in zip(self.sums, row[:3], strict=True)]
            self.latest = row[0]
        self._pending.clear()


class StopSignals:
    """While open, Ctrl-C and SIGTERM ask for a stop after the running step; a second one stops at once.

    With several processes a second one is heeded only after `patience` seconds: the launcher passes on the
    Ctrl-C that the terminal has sent to every process already.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.requested = ""
        self.patience = patience
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested:  # possible only while being patient
            if time.monotonic() > self._impatient_from:
                self._restore()
                signal.raise_signal(number)
            return
        self.requested = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        print(f"\n{self.requested}: finishing this step, then saving ...", file=sys.stderr)
        self._impatient_from = time.monotonic() + self.patience
        if not self.patience:
            self._restore()

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def __exit__(self, *_: object) -> None:
        self._restore()
