"""`ssdlib detect --engine-cluster ray` on a cluster of two one-core machines that all live in this one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from ssdlib.config import ModelConfig
from ssdlib.data.images import write_image
from ssdlib.data.smears import draw_smear
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.tools.cluster.parts import CELLS, IMAGES
from tests.spawned import Process, command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2"),
    pytest.mark.timeout(240),
]

FIELDS = 160
"""So many that no machine has done them before something is killed."""
PARTS = FIELDS // 2


class Machines:
    """A head without cores and two workers, each with an address of its own, as on three machines."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20}
        soon_missed = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        }
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon_missed}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, **small})
        self.address = self.cluster.address
        self.nodes = [
            self.cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}", **small)
            for number in (2, 3)
        ]

    def lose_one(self) -> None:
        """As when its plug is pulled."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        machines = Machines()
        yield machines
        machines.cluster.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder, and the command for the fields in it: few of them are different, to save time."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "in").mkdir()
    for seed in range(4):
        write_image(folder / "in" / f"{seed:03d}.jpg", draw_smear(seed).image)
    for number in range(4, FIELDS):
        os.link(folder / "in" / f"{number % 4:03d}.jpg", folder / "in" / f"{number:03d}.jpg")
    (folder / "in" / "007b.jpg").write_text("no image")
    save_model(build_model(ModelConfig(width=0.25, batch_norm=True), seed=3), folder / "w.safetensors")
    options = ["--weights", str(folder / "w.safetensors"), "--batch", "2", "--threshold", "0.1", "-q"]
    return folder, ["detect", str(folder / "in"), *options, "--precision", "fp32"]


def tables(out: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(out / table) for table in (CELLS, IMAGES)]


def parts(out: Path) -> int:
    return len(list((out / IMAGES).glob("part-*.parquet")))


def test_a_lost_driver_and_a_lost_machine_lose_and_repeat_no_image(machines, job, tmp_path):
    folder, detect = job
    plain = Process(
        tmp_path / "plain.log", command, *detect, "--out", str(folder / "plain"), "--format", "csv"
    )
    cluster = [*detect, "--engine-cluster", "ray", "--part-images", "2", "--out", str(folder / "found")]
    address = {"RAY_ADDRESS": machines.address}
    found = folder / "found"

    driver = Process(tmp_path / "first.log", command, *cluster, environment=address)
    driver.wait_until(lambda: parts(found) >= 2)
    driver.signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    begun = parts(found)
    assert 2 <= begun < PARTS + 1

    driver = Process(tmp_path / "second.log", command, *cluster, environment=address)
    driver.wait_until(lambda: parts(found) >= begun + 2)
    assert parts(found) < PARTS + 1
    machines.lose_one()
    assert driver.wait() == 3, driver.text  # for the one that is no image
    assert "images had been done before" in driver.text and "007b.jpg" in driver.text
    assert "a worker was lost" in driver.text and "state-dump" not in driver.text

    assert plain.wait() == 3
    for table, frame in zip((CELLS, IMAGES), tables(found), strict=True):
        theirs = pd.read_csv(folder / "plain" / f"{table}.csv")
        pd.testing.assert_frame_equal(frame, theirs, check_dtype=False)
    assert len(tables(found)[1]) == FIELDS + 1
    assert not list(found.rglob("*.tmp")) and not (found / "job" / "attempts").exists()


def test_an_error_of_a_worker_is_told_as_such(machines, job, tmp_path):
    _, detect = job
    blocked = tmp_path / "found"
    blocked.mkdir()
    (blocked / CELLS).write_text("a file where the worker needs a folder")
    address = {"RAY_ADDRESS": machines.address}
    driver = Process(
        tmp_path / "log",
        command,
        *[*detect, "--engine-cluster", "ray", "--out", str(blocked)],
        environment=address,
    )
    assert driver.wait() == 1
    assert "error: cannot write" in driver.text and "Traceback" not in driver.text
