"""Monitoring of a training: losses that must stay finite, and signals that ask for a stop."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ssdlib.common.errors import TrainingError
from ssdlib.detector.loss import MultiBoxLoss


class NonFiniteLoss(TrainingError):
    """The loss or the gradient of a step (from 0) was not finite; `values` are its parts by name."""

    def __init__(self, step: int, values: dict[str, float]) -> None:
        self.step, self.values = step, values
        self.parts = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        super().__init__(f"the loss is no longer finite at step {step}: {self.parts}")


class LossWatch:
    """Adds up the parts of the loss over an epoch and stops at the first step that is not finite.

    Reading a number from a GPU waits for all its work, so the numbers of `every` steps are read at once.
    """

    NAMES = ("loss", "localization", "confidence")

    def __init__(self, every: int, sums: list[float]) -> None:
        self.every = every
        self.sums = sums
        self.latest = float("nan")
        self._pending: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, loss: MultiBoxLoss, norms: Mapping[str, Tensor]) -> None:
        """Record one step. Raises NonFiniteLoss, perhaps some steps late, if it was not finite."""
        parts = zip(self.NAMES, (loss.total, loss.localization, loss.confidence), strict=True)
        self._pending.append((step, {name: value.detach() for name, value in (*parts, *norms.items())}))
        if len(self._pending) >= self.every:
            self.read()

    def read(self) -> None:
        """Read the steps that were recorded since the last reading."""
        if not self._pending:
            return
        stacks = [torch.stack([v.float() for v in values.values()]) for _, values in self._pending]
        rows = torch.stack(stacks).tolist()
        for row, (step, values) in zip(rows, self._pending, strict=True):
            if not all(map(math.isfinite, row)):
                raise NonFiniteLoss(step, dict(zip(values, row, strict=True)))
            self.sums = [total + value for total, value in zip(self.sums, row[:3], strict=True)]
            self.latest = row[0]
        self._pending.clear()


class StopSignals:
    """While open, Ctrl-C and SIGTERM ask for a stop after the running step; a second one stops at once.

    With several processes a second one counts only after `patience` seconds: the launcher passes on the
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
