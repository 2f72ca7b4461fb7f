"""`python -m ssdlib` and the `ssdlib` command: errors of the user's become one message and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import sys

from ssdlib.common.errors import SsdError
from ssdlib.common.paths import HOME
from ssdlib.common.terminal import say
from ssdlib.common.threads import share_processors

FAILED, INTERRUPTED = 1, 130
STOPPED = "stopped; what was written so far is kept"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EBADF)
INTERRUPTIONS = ("TrainingInterrupted", "ChainInterrupted")
"""Errors that are a stop asked for; by name, so that --help need not import torch."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 an error said on stderr, 2 wrong usage,
    3 some images could not be read, 130 stopped by Ctrl-C."""
    _open_closed_streams()
    try:
        return _run(arguments)
    except BrokenPipeError:
        return FAILED  # the reader of our output, such as `head`, has seen enough
    except OSError as error:
        # Some libraries, such as TensorBoard's, write files by themselves; and what is printed may go to one.
        if error.errno not in (*FORBIDDEN, *IMPOSSIBLE, *FULL_DISK):
            raise
        remedy = "Name another file or folder."
        if error.errno in FORBIDDEN:
            remedy = f"Where data or runs are to be kept there, set {HOME} to a folder that you may write."
        text = f"error: {error}. {remedy}"
        if error.errno in FULL_DISK:
            text = f"error: the disk is full ({error}). Free some space and go on; earlier files stay."
        say(text, file=sys.stderr)
        return FAILED
    finally:
        _print_no_more()


def _run(arguments: list[str] | None) -> int:
    """Run the command line and return its exit code, with all that it prints on its way."""
    from ssdlib.cli import app

    gc.set_threshold(50_000)  # imports make many objects, and hardly any rings of them
    if "--help" not in (arguments or sys.argv):
        share_processors()  # before any command imports PyTorch
    try:
        try:
            return app(args=arguments, prog_name="ssdlib", standalone_mode=True) or 0
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where an error can be told of
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == INTERRUPTED:  # typer's answer to Ctrl-C, without a word
            say(STOPPED, file=sys.stderr)
        return code
    except SsdError as error:
        say(f"error: {error}", file=sys.stderr)
        return INTERRUPTED if type(error).__name__ in INTERRUPTIONS else FAILED
    except KeyboardInterrupt:
        say(STOPPED, file=sys.stderr)
        return INTERRUPTED


def _open_closed_streams() -> None:
    """Let what is printed to a stream that is closed go nowhere: not into a file that has its number."""
    if sys.stdout is None or sys.stderr is None:
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(descriptor)
        nowhere = open(os.devnull, "w")  # noqa: PTH123, SIM115 (a device; open to the end)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere


def _print_no_more() -> None:
    """Let what still waits to be printed go nowhere, so that Python does not complain of it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device)
                os.dup2(nowhere.fileno(), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
