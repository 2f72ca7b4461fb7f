"""Errors that a user can act on.

Each message says what is wrong, where (file, image, box) and what to do. The command line prints the
message alone; a traceback is kept for faults of ours.
"""

import os
import shlex
import subprocess


class SsdError(Exception):
    """Base of every error that the user, not the programmer, can fix."""

    def __str__(self) -> str:
        """The message, or its beginning where it quotes a library that quotes a whole file."""
        text = super().__str__()
        return text if len(text) <= 10_000 else f"{text[:10_000]} ..."


class ConfigError(SsdError):
    """An unknown or impossible setting."""


class DataError(SsdError):
    """Images or annotations that are missing, damaged or contradictory."""


class CheckpointError(SsdError):
    """Weights that are missing, damaged, unsafe, or made for another network."""


class TrainingError(SsdError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class StageError(SsdError):
    """A notebook of the chain that failed or lacks what an earlier one writes."""


def shell(*words: object) -> str:
    """A command line of these words, or part of one, to copy from a message, quoted for the shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
