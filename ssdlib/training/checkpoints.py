"""Training states on disk: written whole, checked when read, and the one before is kept.

A run's checkpoints folder holds

- `best.safetensors`: the weights that did best on val, with everything needed to use them;
- `epoch-XXX.safetensors`: the weights every few epochs;
- `last.pt`, `previous.pt`: the two newest training states, from which a run goes on exactly.

While a process trains it holds a lock on `training.lock` beside that folder; one that runs the notebooks, on
`chain.lock`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickletools
import re
import socket
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdlib.common.errors import CheckpointError, DataError, TrainingError
from ssdlib.common.files import lock_open, parse_json, read_limited, require_file, shortened, write_with
from ssdlib.config import ModelConfig, differences
from ssdlib.detector.model_file import check_tensors, read_metadata

BEST = "best.safetensors"
LAST = "last.pt"
PREVIOUS = "previous.pt"
NEXT = "next.pt"
"""A whole new state that has not yet taken the place of `last.pt`; seen only after a kill between the two."""

LOCK = "training.lock"
CHAIN_LOCK = "chain.lock"

FORMAT = "ssdlib-training-2"

PARTS = {
    *("identity", "epoch", "step", "sums", "seconds", "history", "model", "average", "optimizer", "scheduler")
}
"""What every training state holds."""

MAX_BYTES = 2_000_000_000
"""No training state is larger."""

WEIGHTS_SUM = "initial weights SHA-256"
"""The part of a run's identity that tells which file the training began from, wherever that lies now."""

BEGIN_ANEW = "Start again without resuming; the weights beside it (*.safetensors) stay usable."

TRAIN_MORE = (
    "A training cannot be made longer, because its learning rate falls over all its epochs: to train more, "
    "begin a new run from its weights (train --init RUN --run NEW --set recipe.epochs=N)."
)


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

    A kill at any moment leaves at least one whole state. Raises SsdError where the disk refuses, and what was
    there before then stays; TrainingError where another process saves there, too.
    """
    content = {"format": FORMAT, "sha256": digest(state), "state": dict(state)}
    write_with(folder / NEXT, lambda stream: torch.save(content, stream))
    try:
        with suppress(FileNotFoundError):  # the first
            (folder / LAST).replace(folder / PREVIOUS)
        (folder / NEXT).replace(folder / LAST)
    except OSError as error:
        raise TrainingError(
            f"cannot rename {folder / NEXT} to {LAST} ({error.strerror}): does another process train into "
            "this folder, too? Give each a run of its own (--run NAME); the states that are there are whole."
        ) from error


@contextmanager
def alone(run_dir: Path, lock: str = LOCK) -> Iterator[None]:
    """While open, no other process can open it for the same run folder and lock.

    The lock is the operating system's: it ends with the process, however that ends, and does not travel with
    a copy of the folder. Raises TrainingError that names the process that has it. Some network file systems
    know no locks: there it hinders nobody.
    """
    path = run_dir / lock
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror}. Free some space or choose another folder."
        ) from error
    _held[descriptor] = path
    try:
        yield
    finally:
        _held.pop(descriptor, None)
        with suppress(OSError):  # Windows removes no file that is open
            path.unlink()
        os.close(descriptor)


def in_use(run_dir: Path, lock: str) -> bool:
    """Whether another process has this lock of a run folder, or may have it: the folder is read-only."""
    path = run_dir / lock
    try:
        if path not in _held.values() and path.exists():
            with alone(run_dir, lock):
                pass
    except TrainingError:
        return True
    return False


def _lock(path: Path) -> int:
    """A descriptor of the file, which is locked by it and says by whom."""
    for _ in range(100):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_open(descriptor)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                os.close(descriptor)
                doing = "trained" if path.name == LOCK else "run"
                raise TrainingError(
                    f"{path.parent} is being {doing} by {_holder(path)}. Wait for it, stop it, or choose "
                    "another run (--run NAME)."
                ) from None
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # another process removed the file before it was locked here
    else:
        raise OSError(errno.EAGAIN, "it changes all the time")
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    with suppress(OSError):  # a full disk: locked it is all the same
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(about).encode())
    return descriptor


def _holder(path: Path) -> str:
    """The process that has locked the file, in words."""
    try:
        return "process {pid} on {host} since {since}".format(
            **parse_json(read_limited(path), dict[str, Any])
        )
    except (DataError, ValueError, KeyError):
        return "another process"


_held: dict[int, Path] = {}


def _leave_to_parent() -> None:
    # A forked process, such as a loader's worker, shares the lock and may outlive the one that trains.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of a write left behind: each may be as large as a whole state."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file; no code in it is run. Raises CheckpointError if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"no training state at {path}")
    try:
        content = _load(path)
        whole = isinstance(content, dict) and digest(content.get("state")) == content.get("sha256")
    except Exception as error:  # bytes at random raise whatever the reader of pickles comes across
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged or no training state ({first_line})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training state of this version ({FORMAT})")
    state = content.get("state")
    lacking = PARTS - state.keys() if isinstance(state, dict) else PARTS
    if lacking or not isinstance(state["identity"], dict) or not isinstance(state["model"], dict):
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(sorted(lacking)) or 'a part'}")
    if not whole:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
    return state


def _load(path: Path, **options: Any) -> Any:
    """What `torch.save` wrote. Raises ValueError for a file whose content would be larger than itself."""
    size = require_file(path).st_size
    if size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES / 1e9:g} GB")
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > size:
            raise ValueError("its parts claim more than the file holds")
        pickles = [part for part in parts if part.filename.lower().endswith("data.pkl")]
        stream.seek(0)
        if stream.read(4) != b"PK\3\4" or not pickles:  # else torch takes it for a file of former times
            raise ValueError("it is no archive of torch's")
        for part in pickles:
            _check_pickle(archive.read(part))
    content = torch.load(path, map_location="cpu", weights_only=True, **options)
    if sum(_bytes(content)) > 2 * size:
        raise ValueError("its tensors claim more values than the file holds")
    return content


def _check_pickle(content: bytes) -> None:
    """Raise ValueError for anything but plain values and dense tensors.

    What torch allows besides can take any amount of memory (bytearray), or is no tensor of ours (sparse).
    """
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if number > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not _PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it holds {shortened(argument)}")


_PLAIN = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
_MOST_VALUES = 300_000
"""A state has some ten thousand, and as many steps to put them together."""


def _bytes(content: Any) -> Iterator[int]:
    """How much each tensor and text inside takes. Raises ValueError where a few lists stand in each other so
    often that they would never be gone through."""
    left, count = [content], 1
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value.numel() * value.element_size()
        elif isinstance(value, str):
            yield len(value)
        elif isinstance(value, Mapping | list | tuple):
            count += len(value)
            if count > _MOST_VALUES:
                raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
            left += [*value, *value.values()] if isinstance(value, Mapping) else value


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
            f"no training state in {folder} can be used: {'; '.join(complaints)}. {BEGIN_ANEW}"
        )
    return None, complaints


def has_state(folder: Path) -> bool:
    """Whether there is a training state in `folder`, sound or not."""
    return any((folder / name).exists() for name in (NEXT, LAST, PREVIOUS))


def refuse_overwriting(folder: Path) -> None:
    """Raise CheckpointError, naming the ways on, if `folder` holds anything of a training."""
    if has_state(folder) or next(folder.glob("*.safetensors"), None):
        raise CheckpointError(
            f"{folder.parent} holds a training already, which beginning anew would overwrite: go on with it "
            "(--resume; resume=True), name another run (--run NAME), or begin anew in its place (--restart; "
            "resume=False)."
        )


def network_config(folder: Path) -> ModelConfig | None:
    """The configuration of the network whose training can go on in `folder`; None where there is none."""
    for name in (NEXT, LAST, PREVIOUS):
        # A damaged state is complained of where it is read as a whole.
        with suppress(Exception):
            state = _load(folder / name, mmap=True)["state"]
            config = ModelConfig.from_dict(state["config"])
            check_tensors(config, state["model"])
            return config
    with suppress(CheckpointError):  # states of former versions do not tell it
        return ModelConfig.from_dict(read_metadata(folder / BEST)["config"]) if has_state(folder) else None
    return None


def describe(folder: Path) -> str:
    """One sentence that says from what a run can go on."""
    if has_state(folder):
        return f"Its last saved state is in {folder}: resume (--resume) and it goes on from there."
    return f"No state had been saved in {folder} yet: start again."


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError that lists each setting in which a saved run differs from the current one."""
    if differing := differences(saved, current):
        raise CheckpointError(
            f"cannot resume a run that was started differently: {'; '.join(differing)}. "
            f"{other_settings(differing)}"
        )


def check_alike(saved: Any, own: Any, name: str = "state") -> None:
    """Raise ValueError, saying where, unless `saved` has values of the kinds and shapes that `own` has.

    Names that only one of two mappings has may be those of another version of torch.
    """
    if isinstance(own, Tensor):
        alike = isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (own.shape, own.dtype)
    elif isinstance(own, Mapping):
        alike = isinstance(saved, Mapping)
        pairs = [(key, saved[key], own[key]) for key in own if key in saved] if alike else []
    elif isinstance(own, list | tuple):
        alike = isinstance(saved, list | tuple) and len(saved) == len(own)
        pairs = list(zip(range(len(own)), saved, own, strict=True)) if alike else []
    elif isinstance(own, float):
        alike = type(saved) in (int, float) and math.isfinite(saved)
    else:
        alike = type(saved) is type(own)
    if not alike:
        raise ValueError(f"{name} is {shortened(saved)}")
    if isinstance(own, Mapping | list | tuple):
        for key, theirs, ours in pairs:
            check_alike(theirs, ours, f"{name}.{key}")


def other_settings(differing: Iterable[str]) -> str:
    """What can be done where a training began with other settings, which differ as these words say."""
    ways = (
        "Use the settings it was started with, choose another run name (--run NAME), or begin anew in its "
        "place with the new ones (train --restart)."
    )
    return f"{ways} {TRAIN_MORE}" if any(one.startswith("recipe.epochs ") for one in differing) else ways
