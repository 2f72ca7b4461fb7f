"""Monitoring of a training: losses that must stay finite, and signals that ask for a stop."""

from __future__ import annotations

import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor

from ssdlib.common.errors import TrainingError
from ssdlib.common.terminal import say
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
    """While open, Ctrl-C, SIGTERM and SIGHUP ask for a stop after the running step; a second stops at once.

    So does Ctrl-Break on Windows. The second one counts only after `patience` seconds: what a terminal,
    `timeout` or a batch system sends to every process, a launcher passes on as well. With `interrupt` the
    first one raises KeyboardInterrupt, too. SIGHUP stays ignored where it was, as under nohup; after one,
    nothing is written to the terminal any more.
    """

    def __init__(self, patience: float = 0.0, *, interrupt: bool = False) -> None:
        self.requested = ""
        self.patience, self.interrupt = patience, interrupt
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if os.name == "posix" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            if hasattr(signal, "SIGBREAK"):  # Windows: Ctrl-Break, or another program that asks for an end
                numbers.append(signal.SIGBREAK)
            for number in numbers:
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested:  # possible only while being patient
            if time.monotonic() > self._impatient_from:
                self._restore()
                signal.raise_signal(number)
            return
        self.requested = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._impatient_from = time.monotonic() + self.patience
        if not self.patience:
            self._restore()
        doing = "stopping" if self.interrupt else "finishing this step, then saving"
        with suppress(OSError, RuntimeError):  # no terminal any more, or in the middle of another line
            say(f"\n{self.requested}: {doing} ...", file=sys.stderr)
        if self.requested == "SIGHUP":
            _leave_terminal()
        if self.interrupt:
            raise KeyboardInterrupt(f"stopped by {self.requested}")

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


def _leave_terminal() -> None:
    """Let what is written to a terminal go nowhere: one that is closed makes each write fail."""
    for descriptor in (1, 2):
        with suppress(OSError):
            # One that is closed already is a character device, but no terminal.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
