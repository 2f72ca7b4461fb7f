"""Signals that ask for a stop: Ctrl-C, SIGTERM, SIGHUP."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Self

from ssdlib.common.terminal import say


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
