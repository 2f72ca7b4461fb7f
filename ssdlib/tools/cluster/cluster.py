"""Detection on a Ray cluster: Ray Data hands the parts of an archive to workers, and again when one is lost.

What goes through Ray are numbers of parts and, once, the weights: images are read and tables written where
the network runs, on a file system that all machines share. https://docs.ray.io/en/latest/data/data.html
"""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.common.runtime import MALLOC_SETTINGS, need_extra
from ssdlib.common.threads import available_cores
from ssdlib.inference.engines import file_for
from ssdlib.inference.job import Summary
from ssdlib.inference.journal import save_settings
from ssdlib.tools.cluster.parts import finished, summarize, tidy
from ssdlib.tools.cluster.plan import PLAN, Plan, make_plan
from ssdlib.tools.cluster.worker import ATTEMPTS, ArchiveJob, Worker

IN_FLIGHT = 2
"""Parts given to a worker at once: one to do and the next."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Object store of a cluster started here; little is sent, and Ray would take a third of the memory."""


@dataclass(frozen=True)
class WorkerPool:
    """The number of workers, and the CPU cores and GPUs of each."""

    workers: int
    cpus: int
    gpus: int


def run_archive(job: ArchiveJob, *, restart: bool = False, progress: bool = True) -> Summary:
    """Compute the parts that are not done yet; an unreadable image stops nothing.

    Uses the cluster at RAY_ADDRESS, else one that runs on this machine, else starts one of this machine
    alone for as long as it takes. Raises ConfigError without the extra `ray`, for impossible settings, a
    cluster that cannot be reached and a folder with results of other settings, and SsdError where something
    cannot be written; what is finished stays finished.
    """
    need_extra("ray", "pyarrow.parquet", "ray.data")
    reach(os.environ.get("RAY_ADDRESS", ""))
    out = (job.detect.out or Path()).absolute()
    folder = out / "job"
    if (folder / "journal.jsonl").exists():
        raise ConfigError(f"{out} holds results of detect without --engine-cluster: choose another --out")
    try:
        tidy(out, () if restart else finished(out))
        if restart:
            (out / PLAN).unlink(missing_ok=True)
        save_settings(folder, {**job.detect.settings(), "tables": "parquet"}, begun=(out / PLAN).exists())
        plan = make_plan(out / PLAN, job.detect.tasks, job.part_images)
        tidy(out, plan.numbers)
        resumed = _finish(job, plan, out, progress)
    except OSError as error:
        raise SsdError(
            f"cannot write {error.filename or out}: {error.strerror or error}. Free some space, or choose "
            "another --out; what is done stays done."
        ) from error
    summary = summarize(out, plan.numbers, tuple(job.detect.thresholds))
    summary.resumed = resumed
    return summary


def _finish(job: ArchiveJob, plan: Plan, out: Path, progress: bool) -> int:
    """Do the parts that are not done; returns the number of images that were."""
    done, images = finished(out), plan.images()
    rows = [{"number": number, "row_group": row} for row, number in enumerate(plan.numbers)]
    todo = [row for row in rows if row["number"] not in done]
    resumed = sum(images[number] for number in done)
    if not todo:
        return resumed
    file = file_for(job.engine, job.weights)
    shutil.rmtree(out / ATTEMPTS, ignore_errors=True)
    (out / ATTEMPTS).mkdir(parents=True)
    with (
        _cluster() as ray,
        tqdm(total=sum(images.values()), initial=resumed, unit="img", disable=not progress) as bar,
    ):
        device = str(job.settings.get("device", "auto"))
        pool = choose_pool(ray.nodes(), job.workers, gpu=job.engine == "torch" and device != "cpu")
        if device.startswith("cuda") and not pool.gpus:
            raise ConfigError("no machine of the cluster has a GPU: leave --device out")
        if progress:
            each = "a GPU" if pool.gpus else "a core"
            bar.write(f"Ray: {pool.workers} worker{'s' * (pool.workers > 1)}, {each} each", sys.stderr)
        settings = {**job.settings, "device": "cuda" if pool.gpus else "cpu"}
        detect = replace(job.detect, tasks=(), out=out)
        given = replace(job, detect=detect, weights=file, settings=settings)
        for number in _hand_out(ray, todo, given, pool):
            bar.update(images[number])
    shutil.rmtree(out / ATTEMPTS, ignore_errors=True)
    return resumed


def reach(address: str) -> None:
    """Raise ConfigError if nobody answers at `address`, host:port: Ray would go on asking for 13 minutes.

    Other words that RAY_ADDRESS may hold, such as auto, are Ray's to judge.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"there is no Ray cluster at RAY_ADDRESS={address}: {error}") from error


def noted_address() -> str:
    """The address that Ray noted of a cluster on this machine, which may be gone; empty without one."""
    # Ray's own rule for its folder; were it to change, `ray.init` would find out for itself, only slowly.
    folder = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.name == "posix" else tempfile.gettempdir())
    with suppress(OSError):
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    return ""


def choose_pool(nodes: list[dict[str, Any]], workers: int | None, *, gpu: bool) -> WorkerPool:
    """A worker for each GPU, with its share of the machine's cores, or else for each core of `ray.nodes()`.

    Raises ConfigError if the cluster has neither.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [machine for machine in machines if machine.get("GPU", 0) >= 1] if gpu else []
    if with_gpu:
        # What fits the machine with the fewest cores for a GPU fits on every one.
        cpus = min(int(machine.get("CPU", 0) // machine["GPU"]) for machine in with_gpu)
        return WorkerPool(workers or sum(int(machine["GPU"]) for machine in with_gpu), max(cpus, 1), 1)
    cores = sum(int(machine.get("CPU", 0)) for machine in machines)
    if not (workers or cores):
        raise ConfigError("the cluster has no machine with a free core or GPU: start some, or give --workers")
    return WorkerPool(workers or cores, 1, 0)


def _hand_out(ray: Any, todo: list[dict[str, int]], job: ArchiveJob, pool: WorkerPool) -> Iterator[int]:
    """The numbers of parts as they are done. A lost worker's parts go to others, or to it when it is back."""
    data = ray.data.from_items(todo, override_num_blocks=len(todo))
    done = data.map_batches(
        Worker,
        fn_constructor_args=(job, job.weights.read_bytes(), pool.cpus, Path.cwd()),
        batch_size=1,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        runtime_env={"env_vars": MALLOC_SETTINGS},
        compute=ray.data.ActorPoolStrategy(
            size=min(pool.workers, len(todo)), max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise SsdError(row["error"])
            yield row["number"]
    except ray.exceptions.RayError as error:
        raise SsdError(
            f"the cluster failed: {error}\nWhat is done stays done: the same command goes on."
        ) from error


class _LostWorkers(io.TextIOBase):
    """A stdout for Ray's reports, of which only those of a lost worker are passed on, as one line."""

    def write(self, text: str) -> int:
        if re.search("worker died or was killed|has been marked dead", text):
            tqdm.write("a worker was lost: its images are given to others", sys.stderr)
        return len(text)


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected and quiet; its logs have what it would print."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray.data

    with redirect_stdout(_LostWorkers()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with _quiet_stderr():
            _connect(ray)
        try:
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence what libraries in C++ write to stderr at each start."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "wb") as kept, Path(os.devnull).open("wb") as nowhere:
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept.fileno(), 2)


def _connect(ray: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    given = os.environ.get("RAY_ADDRESS")
    try:
        if not given:
            reach(noted_address())
        ray.init(given or "auto", **quiet)
    except (ConfigError, ConnectionError, ValueError, RuntimeError) as error:
        if given:
            raise ConfigError(f"there is no Ray cluster at RAY_ADDRESS={given}: {error}") from error
        own = {"num_cpus": available_cores(), "object_store_memory": OBJECT_STORE_BYTES}
        ray.init("local", include_dashboard=False, **own, **quiet)
