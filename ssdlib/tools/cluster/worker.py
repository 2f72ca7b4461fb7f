"""The detector at work on parts, in a process that Ray started somewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssdlib.common.errors import SsdError
from ssdlib.inference.detections import Detector
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.job import detect_images, in_groups
from ssdlib.inference.tiling import Tiling
from ssdlib.tools.cluster.parts import IMAGES, part_file, write_part
from ssdlib.tools.cluster.plan import Plan

MOST_ATTEMPTS = 4
"""At one part, in one call: an image that kills whoever opens it is not tried for ever."""

Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class Assignment:
    """What every worker is told; paths must mean the same on all machines."""

    out: Path
    plan: Path
    attempts: Path
    """Folder for counting how often a part was begun."""
    engine: str
    weights_name: str
    """File name; the bytes travel with Ray, so that no worker needs the file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `ssdlib.inference.engines.open_predictor`."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    tiling: Tiling = field(default_factory=Tiling)
    threads: int = 1
    folder: Path = field(default_factory=Path.cwd)
    """Where the command was given: what paths that are not absolute are relative to."""


class Worker:
    """Computes the parts named in a batch; made once in each worker's process."""

    def __init__(self, assignment: Assignment, weights: bytes) -> None:
        self._told, self._weights = assignment, weights

    @cached_property
    def _predictor(self) -> Detector:
        with suppress(OSError):  # then its images will be missing, and said to be
            os.chdir(self._told.folder)
        torch.set_num_threads(self._told.threads)
        with tempfile.TemporaryDirectory(prefix="ssdlib-worker-") as folder:
            file = Path(folder) / self._told.weights_name
            file.write_bytes(self._weights)
            predictor = open_predictor(self._told.engine, file, **self._told.settings)
        self._weights = b""
        return predictor

    @cached_property
    def _plan(self) -> Plan:
        return Plan(self._told.plan)

    def __call__(self, batch: Row) -> Row:
        """Do the parts `number`, in the plan's `row_group`; returns those that are on disk, and errors.

        Errors of the user's to mend are returned as text, since Ray would wrap them beyond recognition.
        """
        errors = []
        for number, row_group in zip(batch["number"].tolist(), batch["row_group"].tolist(), strict=True):
            try:
                # It is there if another worker was lost after writing it, but before it could say so.
                if not part_file(self._told.out, IMAGES, number).exists():
                    self._do(number, row_group)
                errors.append("")
            except SsdError as error:
                errors.append(str(error))
        return {"number": batch["number"], "error": np.array(errors)}

    def _do(self, number: int, row_group: int) -> None:
        told, predictor, tasks = self._told, self._predictor, self._plan.tasks(row_group)
        if _begin(told.attempts / f"part-{number:06d}") > MOST_ATTEMPTS:
            raise SsdError(
                f"part {number} was begun {MOST_ATTEMPTS} times and ended its worker each time: one of its "
                f"{len(tasks)} images, from {tasks[0].shown} to {tasks[-1].shown}, may need more memory than "
                "a worker has. Everything else that is done stays done."
            )
        groups = in_groups(tasks, predictor.batch_size)
        images = detect_images(predictor, groups, told.thresholds, told.tiling)
        records = {seen.task: seen.record for seen in images}
        in_order = [records[task] for task in tasks]
        write_part(told.out, number, in_order, predictor.class_names, told.tiling.um_per_pixel)


def _begin(path: Path) -> int:
    """Count one more attempt, a byte each; returns how many there are now."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, b".")
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
