"""Whether one detector is better than another, or the images at hand cannot tell.

A paired bootstrap (Efron 1979): both detectors are evaluated on every resample of the images, and what
counts is the difference within a resample. A field that is hard for one is hard for the other, which widens
both intervals and leaves the difference alone: two intervals may overlap widely around a real difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import CheckpointError, DataError
from ssdlib.common.tables import Table
from ssdlib.evaluation.bootstrap import percentile_interval, resample_images
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.evaluation.matching import Target
from ssdlib.evaluation.metrics import weighted_metrics
from ssdlib.evaluation.tables import LEVEL, Interval
from ssdlib.inference.detections import Detections

if TYPE_CHECKING:
    from ssdlib.data.source import DataSource
    from ssdlib.inference.predictor import Predictor


@dataclass(frozen=True)
class Difference:
    """One figure of two detectors on the same images, and how much higher it is for b."""

    a: Interval
    b: Interval
    difference: Interval

    @property
    def real(self) -> bool | None:
        """Whether the difference's interval leaves out 0; None where there is no interval."""
        if self.difference.low is None or self.difference.high is None:
            return None
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def points(self) -> str:
        """The difference in hundredths, such as `1.2 [0.3, 2.1]`."""
        return _points(self.difference)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "real": self.real}


@dataclass(frozen=True)
class PairedComparison:
    """COCO's mAP@0.5, mAP over IoU 0.5 to 0.95, and AP@0.5 of each class, of detectors a and b."""

    map_50: Difference
    map: Difference
    per_class: dict[str, Difference]
    images: int
    samples: int
    seed: int
    level: float = LEVEL

    @property
    def verdict(self) -> str:
        """One sentence on the difference in mAP@0.5."""
        gap, several = self.map_50, f"{self.images} image{'' if self.images == 1 else 's'}"
        if gap.difference.value is None:
            return f"nothing to compare: there are no objects to find in {several}"
        if not gap.real:
            return f"no difference can be told from {several}"
        winner = "B" if gap.difference.value > 0 else "A"
        ends = sorted(map(abs, (gap.difference.low, gap.difference.high)))
        margin = Interval(abs(gap.difference.value), *ends)
        return (
            f"{winner} is better by {_points(margin).replace(' ', ' points ', 1)}: "
            "the difference is real (the interval does not hold 0)"
        )

    def table(self) -> Table:
        """A row for each figure, mAP@0.5 last."""
        figures = {f"AP50 {name}": one for name, one in self.per_class.items()}
        figures |= {"COCO mAP": self.map, "mAP@0.5": self.map_50}
        said = {True: "real", False: "not told", None: "n/a"}
        rows = [[name, str(one.a), str(one.b), one.points, said[one.real]] for name, one in figures.items()]
        return Table(["", "A", "B", "B - A in points", "difference"], rows, total=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "map_50": self.map_50.to_dict(),
            "map": self.map.to_dict(),
            "per_class": {name: one.to_dict() for name, one in self.per_class.items()},
            "verdict": self.verdict,
            "images": self.images,
            "samples": self.samples,
            "seed": self.seed,
            "level": self.level,
        }


def compare_detections(
    a: Sequence[Detections],
    b: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """The differences between two detectors on the same images, in the same order, by the same resamples.

    A resample in which a figure is undefined (no object of a class) is left out of that figure. Raises
    DataError where the two are not of the same images and classes, or not as many as `targets`.
    """
    if len(a) != len(b):
        raise DataError(f"A has detections of {len(a)} images, B of {len(b)}: compare the same images.")
    for index, (one, other) in enumerate(zip(a, b, strict=True)):
        if (one.image, one.image_size) != (other.image, other.image_size):
            raise DataError(
                f"image {index} of A is {_name(one)}, of B {_name(other)}: compare the same images in the "
                "same order."
            )
        for who, found in (("A", one), ("B", other)):
            if found.class_names != tuple(class_names):
                raise DataError(
                    f"{who}'s detections of {_name(found)} are of {', '.join(found.class_names)}, not of "
                    f"{', '.join(class_names)}: compare detectors of the same classes in the same order."
                )
    weights = resample_images(len(targets), samples, seed)
    of_a, of_b = (weighted_metrics(found, targets, class_names, weights) for found in (a, b))

    def difference(figure: str, row: Any = ...) -> Difference:
        left, right = of_a[figure][row], of_b[figure][row]
        return Difference(*map(percentile_interval, (left, right, right - left)))

    return PairedComparison(
        map_50=difference("map_50"),
        map=difference("map"),
        per_class={name: difference("ap_50", k) for k, name in enumerate(class_names)},
        images=len(targets),
        samples=samples,
        seed=seed,
    )


def compare_split(
    a: Predictor, b: Predictor, source: DataSource, split: str, *, samples: int = 1000, progress: bool = False
) -> PairedComparison:
    """The differences between two detectors on every image of a split.

    Raises CheckpointError where the classes differ, from each other's or from the data's, and what
    `DataSource.dataset` raises.
    """
    if a.class_names != b.class_names:
        raise CheckpointError(
            f"A finds {', '.join(a.class_names)}, but B {', '.join(b.class_names)}: only detectors of "
            "the same classes, in the same order, can be compared."
        )
    dataset = source.dataset(split)
    found = [evaluate_model(one, dataset, progress=progress)[1] for one in (a, b)]
    return compare_detections(*found, dataset.targets(), a.class_names, samples=samples)


def _name(found: Detections) -> str:
    width, height = found.image_size
    return f"{found.image or 'unnamed'} ({width} x {height})"


def _points(gap: Interval) -> str:
    """In hundredths, with one decimal, or two where one would make a 0 of what is none."""
    if gap.value is None:
        return "n/a"
    ends = [100 * end for end in (gap.value, gap.low, gap.high) if end is not None]
    digits = 1 if all(end == 0 or abs(end) >= 0.05 for end in ends) else 2
    value, *others = (f"{round(end, digits) + 0.0:.{digits}f}" for end in ends)  # + 0.0: no "-0.0"
    return value + (f" [{', '.join(others)}]" if others else "")
