"""`python -m ssdlib` and the `ssdlib` command: errors of the user's become one message and an exit code."""

from __future__ import annotations

import errno
import sys

from ssdlib.common.errors import SsdError
from ssdlib.common.paths import HOME
from ssdlib.common.terminal import say

FAILED, INTERRUPTED = 1, 130
STOPPED = "stopped; what was written so far is kept"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
INTERRUPTIONS = ("TrainingInterrupted", "ChainInterrupted")
"""Errors that are a stop asked for; by name, so that --help need not import torch."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 an error said on stderr, 2 wrong usage,
    3 some images could not be read, 130 stopped by Ctrl-C."""
    from ssdlib.cli import app

    try:
        return app(args=arguments, prog_name="ssdlib", standalone_mode=True) or 0
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
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        return FAILED
    except OSError as error:
        # Some libraries, such as TensorBoard's, write files by themselves.
        if error.errno in FORBIDDEN:
            say(
                f"error: {error}. Where data or runs are to be kept there, set {HOME} to a folder that you "
                "may write.",
                file=sys.stderr,
            )
            return FAILED
        if error.errno in IMPOSSIBLE:
            say(f"error: {error}. Name another file or folder.", file=sys.stderr)
            return FAILED
        if error.errno not in FULL_DISK:
            raise
        say(
            f"error: the disk is full ({error}). Free some space and go on; earlier files stay.",
            file=sys.stderr,
        )
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
