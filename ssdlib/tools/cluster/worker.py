"""A worker: the detector at work on parts, in a process that Ray started on some machine."""

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

from ssdlib.common.errors import SsdError
from ssdlib.common.threads import use_threads
from ssdlib.inference.detections import Detector
from ssdlib.inference.engines import open_predictor
from ssdlib.inference.job import DetectJob, detect_images, in_groups
from ssdlib.inference.journal import APPENDING
from ssdlib.tools.cluster.parts import IMAGES, part_file, write_part
from ssdlib.tools.cluster.plan import PLAN, Plan

MOST_ATTEMPTS = 4
"""Attempts at one part in one call: an image that kills its worker is not tried for ever."""
ATTEMPTS = "job/attempts"
"""Folder in the output folder for counting how often a part was begun."""

Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class ArchiveJob:
    """A detect job for the workers of a cluster."""

    detect: DetectJob
    """Images, thresholds, tiling and folder; its `formats` are not used."""
    engine: str
    weights: Path
    """The file is read once, here, and exported here for the onnx engines."""
    part_images: int
    """The number of images in a part."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ssdlib.inference.engines.open_predictor`; device is auto, cpu or cuda."""
    workers: int | None = None
    """The number of workers; default: one for each GPU, or without any for each CPU core, of the cluster."""


class Worker:
    """Computes the parts named in a batch; made once in each worker's process.

    Paths in `job` must mean the same on all machines, relative ones from `folder`; `weights` are the bytes of
    the file `job.weights`, which no worker needs.
    """

    def __init__(self, job: ArchiveJob, weights: bytes, threads: int, folder: Path) -> None:
        self._job, self._weights, self._threads, self._folder = job, weights, threads, folder

    @cached_property
    def _predictor(self) -> Detector:
        with suppress(OSError):  # then its images will be missing, and said to be
            os.chdir(self._folder)
        use_threads(self._threads)
        with tempfile.TemporaryDirectory(prefix="ssdlib-worker-") as folder:
            file = Path(folder) / self._job.weights.name
            file.write_bytes(self._weights)
            predictor = open_predictor(self._job.engine, file, **self._job.settings)
        self._weights = b""
        return predictor

    @cached_property
    def _plan(self) -> Plan:
        return Plan(self._job.detect.out / PLAN)

    def __call__(self, batch: Row) -> Row:
        """The parts of the batch with an error for each, empty where the part is on disk now.

        Errors that a user can fix are returned as text, since Ray would wrap them beyond recognition.
        """
        errors = [""] * len(batch["number"])
        for row, (number, row_group) in enumerate(zip(batch["number"], batch["row_group"], strict=True)):
            try:
                # It is there if another worker was lost after writing it, but before it could say so.
                if not part_file(self._job.detect.out, IMAGES, number).exists():
                    self._do(int(number), int(row_group))
            except (SsdError, OSError) as error:
                errors[row] = str(error)
        return {"number": batch["number"], "error": np.array(errors)}

    def _do(self, number: int, row_group: int) -> None:
        job, predictor, tasks = self._job.detect, self._predictor, self._plan.tasks(row_group)
        if _begin(job.out / ATTEMPTS / f"part-{number:06d}") > MOST_ATTEMPTS:
            raise SsdError(
                f"part {number} was begun {MOST_ATTEMPTS} times and ended its worker each time: one of its "
                f"{len(tasks)} images, from {tasks[0].shown} to {tasks[-1].shown}, may need more memory than "
                "a worker has. Everything else that is done stays done."
            )
        images = detect_images(predictor, in_groups(tasks, predictor.batch_size), job)
        records = {seen.task: seen.record for seen in images}
        in_order = [records[task] for task in tasks]
        write_part(job.out, number, in_order, predictor.class_names)


def _begin(path: Path) -> int:
    """The number of attempts, a byte each, after one more."""
    descriptor = os.open(path, APPENDING, 0o666)
    try:
        os.write(descriptor, b".")
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
