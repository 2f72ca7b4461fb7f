"""The figures that a training records for each epoch."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Self

from pydantic import Field
from pydantic.dataclasses import dataclass

from ssdlib.common.tables import number
from ssdlib.config import STRICT, Settings

_Bounded = Annotated[float, Field(ge=-1e9, le=1e9)]
"""So that sums over epochs, and a figure of them, can be made of any history."""


@dataclass(frozen=True, config=STRICT)
class EpochRecord(Settings):
    """The figures of one epoch. Losses are means over its batches."""

    epoch: Annotated[int, Field(ge=0, le=10**9)]
    """From 1."""
    loss: float
    localization: float
    confidence: float
    learning_rate: float
    """At its last step."""
    images_per_second: float
    seconds: _Bounded
    """Training and evaluation."""
    map_50: _Bounded | None = None
    """mAP@0.5 on val; None where this epoch was not evaluated."""
    val_loss: float | None = None
    """On val, without augmentation, of the weights that are evaluated; None where this epoch was not, and in
    histories of earlier versions."""
    map_50_by_source: dict[str, _Bounded | None] = dataclasses.field(default_factory=dict)
    """That of each source, where there are several; None where none of its val images has objects."""

    @property
    def score(self) -> float | None:
        """What chooses the best epoch: mAP@0.5 on val, the mean over the sources where there are several."""
        values = [value for value in self.map_50_by_source.values() if value is not None]
        return sum(values) / len(values) if values else self.map_50

    def line(self, epochs: int) -> str:
        """One line of text about the epoch."""
        text = (
            f"epoch {self.epoch:{len(str(epochs))}}/{epochs}  "
            f"loss {self.loss:.3f} (loc {self.localization:.3f} conf {self.confidence:.3f})"
        )
        if self.val_loss is not None:
            text += f"  val loss {self.val_loss:.3f}"
        if self.map_50 is not None:
            text += f"  val mAP@0.5 {self.map_50:.3f}"
        if self.map_50_by_source:
            text += (
                f" ({', '.join(f'{name} {number(value)}' for name, value in self.map_50_by_source.items())})"
            )
        return f"{text}  {self.images_per_second:.1f} img/s"


@dataclasses.dataclass
class History:
    """The epochs of a run so far."""

    epochs: list[EpochRecord] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest score, the first of equals; None before any evaluation."""
        evaluated = [record for record in self.epochs if record.score is not None]
        return max(evaluated, key=lambda record: record.score, default=None)

    @property
    def best_epoch(self) -> int | None:
        """The number of the best epoch, from 1."""
        return self.best.epoch if self.best else None

    def to_dict(self) -> dict[str, Any]:
        """The history as plain JSON values."""
        return {"best_epoch": self.best_epoch, "epochs": [record.to_dict() for record in self.epochs]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The history that `to_dict` gave. Raises ConfigError for unknown keys."""
        return cls([EpochRecord.from_dict(record) for record in values["epochs"]])
