"""Training states on disk: written whole, checked when read, and the one before is kept.

A run's checkpoints folder holds

- `best.safetensors`: the weights that did best on val, with everything needed to use them;
- `epoch-XXX.safetensors`: the weights every few epochs;
- `last.pt`, `previous.pt`: the two newest training states, from which a run goes on exactly.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdlib.common.errors import CheckpointError
from ssdlib.common.files import write_with
from ssdlib.config import differences

BEST = "best.safetensors"
LAST = "last.pt"
PREVIOUS = "previous.pt"
NEXT = "next.pt"
"""A whole new state that has not yet taken the place of `last.pt`; seen only after a kill between the two."""

FORMAT = "ssdlib-training-2"


def digest(state: Any) -> str:
    """The SHA-256 of nested dicts, lists and tuples of tensors and plain values, in their order."""
    total = hashlib.sha256()
    _feed(total, state)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().to("cpu").contiguous()
        total.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        total.update(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        total.update(f"dict{len(value)}".encode())
        for key, item in value.items():
            total.update(repr(key).encode())
            _feed(total, item)
    elif isinstance(value, list | tuple):
        total.update(f"list{len(value)}".encode())
        for item in value:
            _feed(total, item)
    else:
        total.update(repr(value).encode())


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` as `last.pt` of `folder`; the one before is kept as `previous.pt`.

    A kill at any moment leaves at least one whole state. Raises SsdError where the disk refuses; what was
    there before then stays.
    """
    content = {"format": FORMAT, "sha256": digest(state), "state": dict(state)}
    write_with(folder / NEXT, lambda stream: torch.save(content, stream))
    if (folder / LAST).exists():
        (folder / LAST).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / LAST)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of a write left behind: each may be as large as a whole state."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file; no code in it is run. Raises CheckpointError if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"no training state at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged or no training state ({first_line})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of this version ({FORMAT})")
    if digest(content["state"]) != content["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    return content["state"]


def load_state(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest sound state of `folder` (None if it has none at all) and a complaint for each damaged one.

    Raises CheckpointError, naming every file, if states are there and all are damaged.
    """
    complaints = []
    for name in (NEXT, LAST, PREVIOUS):
        if (folder / name).exists():
            try:
                return read_state(folder / name), complaints
            except CheckpointError as error:
                complaints.append(str(error))
    if complaints:
        raise CheckpointError(
            f"no training state in {folder} can be used: {'; '.join(complaints)}. "
            "Start again without resuming; the weights beside them (*.safetensors) stay usable."
        )
    return None, complaints


def describe(folder: Path) -> str:
    """One sentence that says from what a run can go on."""
    if any((folder / name).exists() for name in (NEXT, LAST, PREVIOUS)):
        return f"Its last saved state is in {folder}: resume (--resume) and it goes on from there."
    return f"No state had been saved in {folder} yet: start again."


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError that lists each setting in which a saved run differs from the current one."""
    if differing := differences(saved, current):
        raise CheckpointError(
            f"cannot resume a run that was started differently: {'; '.join(differing)}. "
            "Use the settings it was started with, or start anew in another run folder."
        )
