"""Real processes for tests, forked from a server that has imported everything, so that they start at once."""

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ssdlib.__main__ import main

SERVER = None
if os.name == "posix":
    SERVER = multiprocessing.get_context("forkserver")
    SERVER.set_forkserver_preload(
        [
            "ssdlib.inference.draw",
            "ssdlib.cli",
            "ssdlib.data.source",
            "ssdlib.inference.job",
            "ssdlib.runs.folder",
            "ssdlib.training.trainer",
            "torch.utils.tensorboard",
        ]
    )


class Process:
    """`target(*arguments)` in a process of its own, both its outputs in the file `log`."""

    def __init__(
        self,
        log: Path,
        target: Callable[..., Any],
        *arguments: Any,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        given = (str(log), environment or {}, target, arguments)
        self.process: BaseProcess = SERVER.Process(target=_child, args=given, daemon=True)
        self.process.start()

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def running(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """The exit code; that of a signal is negative."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.text}")
        return self.process.exitcode

    def wait_until(self, true: Callable[[], Any], seconds: float = 300) -> None:
        """Until `true()`, which must come about while the process runs."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self.running(), self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)


def _child(log: str, environment: dict[str, str], target: Callable[..., Any], arguments: tuple) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))


def pair(folder: Path, target: Callable[..., Any], *arguments: list) -> list[Process]:
    """Two processes that find each other as torchrun's do; `arguments`: a list for each, or one for both."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    each = arguments if len(arguments) == 2 else arguments * 2
    world = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        Process(
            folder / f"log-{rank}.txt",
            target,
            *each[rank],
            environment={**world, **rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def command(*words: str) -> int:
    """The command line `python -m ssdlib`."""
    return main(list(words))


def die_at(moment: str, *words: str) -> int:
    """The command line in a process that kills itself, with signal 9, at a moment "WHAT NAME COUNT" of its
    writing: WHAT is half-written, half-appended, before or after (it gets its name), the COUNT-th time."""
    what, name, count = moment.split()
    left = [None] * int(count)

    def perhaps(happening: str, file: str, last_deed: Callable[[], Any] = lambda: None) -> None:
        if (happening, file) == (what, name):
            left.pop()
            if not left:
                last_deed()
                os.kill(os.getpid(), signal.SIGKILL)

    def path_of(descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    fsync, write, replace, rename = os.fsync, os.write, Path.replace, Path.rename

    def noted_fsync(descriptor: int) -> None:
        file = path_of(descriptor)
        # A temporary file is called .NAME.xxxxxxxx.tmp; half of it is on the disk.
        half = file.stat().st_size // 2
        perhaps("half-written", file.name[1:-13], lambda: os.truncate(file, half))
        fsync(descriptor)

    def noted_write(descriptor: int, data: Any) -> int:
        perhaps("half-appended", path_of(descriptor).name, lambda: write(descriptor, data[: len(data) // 2]))
        return write(descriptor, data)

    def noted(renaming: Callable[..., Path]) -> Callable[..., Path]:
        def as_before(self: Path, target: Path) -> Path:
            perhaps("before", Path(target).name)
            result = renaming(self, target)
            perhaps("after", Path(target).name)
            return result

        return as_before

    os.fsync, os.write, Path.replace, Path.rename = noted_fsync, noted_write, noted(replace), noted(rename)
    return command(*words)


def killed_at_random(
    log: Path, words: list[str], seconds: float, generator: random.Random, kills: int
) -> None:
    """Start a command again and again, each time killed with signal 9 after up to `seconds`, unless it fails
    or comes to its end before."""
    for _ in range(kills):
        process = Process(log, command, *words)
        process.process.join(generator.uniform(0, seconds))
        process.signal(signal.SIGKILL)
        process.wait()
