"""Speed beside busy processes that take half of the processors: `python -m tests.benchmarks --only busy`.

Each measurement is a process of its own, begun as the command line begins one, since it is at its start that
it chooses its threads. Processes beside others and alone take turns.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from ssdlib.common.tables import Table, number
from ssdlib.common.threads import available_cores
from tests.benchmarks.common import Measurement, targets
from tests.benchmarks.timing import BUSY, QUIET, Bench, Others, machine

JOBS = ("training, torch", "detection, torch", "detection, onnx-int8")
SECONDS = 10.0
"""How long a process is timed, once it is warm."""
ROUNDS = 3


def measure(bench: Bench) -> Measurement:
    """Images a second of each job alone and beside others, and the threads that it chose."""
    rounds = min(ROUNDS, bench.rounds)
    taken = max(1, available_cores() // 2)
    rows = []
    for job in JOBS:
        alone, beside, others = [], [], []
        for _ in range(rounds):
            watched = Others()
            alone.append(_rate(job, bench))
            others.append(watched.used() or 0.0)
            with busy_processes(taken):
                beside.append(_rate(job, bench))
        share = median(b["rate"] / a["rate"] for a, b in zip(alone, beside, strict=True))
        rows.append(
            {
                "job": job,
                "share": share if median(others) <= QUIET else None,
                "alone": alone,
                "beside": beside,
                "others": others,
            }
        )
    reached = {f"beside a busy process: {row['job']}": row["share"] for row in rows}
    conditions = f"{machine()}, {taken} of the processors taken in turns"
    return Measurement({"rows": rows, "conditions": conditions}, [table(rows)], targets(reached), conditions)


def table(rows: list[dict[str, Any]]) -> Table:
    """A table of the rates alone and beside others, with the threads of each, and their ratio."""
    cells = [
        (
            row["job"],
            *(
                f"{median(one['rate'] for one in row[kind]):.1f} ({row[kind][0]['threads']})"
                for kind in ("alone", "beside")
            ),
            BUSY if row["share"] is None else number(row["share"], ".2f"),
        )
        for row in rows
    ]
    return Table(("images a second (threads)", "alone", "beside others", "share"), cells)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute, for a block."""
    processes = [
        multiprocessing.get_context("spawn").Process(target=_compute, daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    time.sleep(1.0)  # until all have begun
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute() -> None:
    while True:
        sum(range(100_000))


def _rate(job: str, bench: Bench) -> dict[str, Any]:
    """What a new process says of its rate."""
    settings = [job, str(bench.source.folder), str(bench.batch), str(SECONDS), str(bench.folder / "busy")]
    command = [sys.executable, "-c", _START, *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(job: str, folder: Path, batch: int, seconds: float, out: Path) -> dict[str, Any]:
    """Images a second, and threads, of this process at one of `JOBS`."""
    import torch

    from ssdlib.common.signals import StopSignals
    from ssdlib.config import RECIPES
    from ssdlib.data.source import open_folder
    from ssdlib.detector.model_file import SHIPPED
    from ssdlib.inference.engines import open_predictor
    from tests.benchmarks.profile import make_trainer

    torch.manual_seed(0)
    kind, engine = job.split(", ")
    bench = Bench(out, open_folder(folder), torch.device("cpu"), batch, 1, progress=False)
    if kind == "training":
        trainer = make_trainer(bench, RECIPES["scratch"].replace(batch_size=batch, epochs=10_000), 2)
        images = 2 * batch

        def work() -> None:
            trainer.train_one_epoch(StopSignals())
            trainer.epoch += 1
    else:
        paths = bench.files("test")
        predictor, images = open_predictor(engine, SHIPPED, batch_size=batch), len(paths)

        def work() -> None:
            for _ in predictor.stream(paths):
                pass

    work()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        done += images
    return {"rate": done / (time.perf_counter() - began), "threads": torch.get_num_threads()}


_START = """
import json, sys
from pathlib import Path
from ssdlib.common.threads import share_processors

share_processors()  # before PyTorch is imported, as the command line does it
from tests.benchmarks.busy import run

job, folder, batch, seconds, out = sys.argv[1:]
print(json.dumps(run(job, Path(folder), int(batch), float(seconds), Path(out))))
"""
