"""Monitoring of a training: losses that must stay finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
