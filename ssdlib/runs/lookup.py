"""Where a run, or the weights meant by a name, are found."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from ssdlib.common import paths
from ssdlib.common.errors import CheckpointError, StageError


def new_run_name(profile: str, data: str) -> str:
    """A name for a new run, such as `20260131-142501-quick-bccd`, which sorts by time."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{profile}-{_data_word(data)}"


def _data_word(data: str) -> str:
    name = "-".join(Path(part).name for part in data.split(","))
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "data"


def locate(path: str | Path, *, profile: str, data: str) -> Path:
    """The absolute path of the run folder that a notebook's RUN_DIR names.

    A relative one means what `ssdlib.common.paths.candidates` says, and is new in the checkout (`paths.home`)
    where there is nothing. An empty one is `$SSDLIB_RUN_DIR`, else `runs/lab-PROFILE-DATA`, so that notebooks
    opened by hand one after the other share a run.
    """
    text = str(path) if str(path) not in ("", ".") else os.environ.get("SSDLIB_RUN_DIR", "")
    if not text:
        return (paths.runs_folder() / f"lab-{profile}-{_data_word(data)}").resolve()
    found = next((place for place in paths.candidates(text) if place.exists()), None)
    return found or Path(os.path.realpath(paths.home() / paths.expanded(text)))


def run_folder(run: str, *, profile: str, data: str) -> Path:
    """The folder that `--run` names: a bare name lies under `runs/`, anything with a separator is a path.

    An empty one is a new folder, see `new_run_name`.
    """
    name = run or new_run_name(profile, data)
    bare = Path(name).name == name and name not in (".", "..")
    return paths.runs_folder() / name if bare else Path(os.path.realpath(paths.expanded(name)))


def find_weights(asked: str | Path | None = None) -> Path:
    """The path of the checkpoint that `--weights` names.

    None, "shipped" or "blood" is the one that comes with the project, "bccd" the one of BCCD's official
    figures; "newest" the best one of the newest run; else a file, a run's folder or a run's name under
    `runs/`, whose best one is meant. Raises CheckpointError that lists these if there is nothing of the kind,
    StageError if no run has any weights.
    """
    from ssdlib.detector.model_file import SHIPPED_NAMES, shipped_weights

    if asked is None or str(asked) in SHIPPED_NAMES:
        return shipped_weights(str(asked or "shipped"))
    if str(asked) == "newest":
        found = [p for p in paths.runs_folder().glob("*/checkpoints/best.safetensors") if p.is_file()]
        if not found:
            raise StageError(
                f"no trained weights under {paths.runs_folder()}. Train some with `python -m ssdlib run "
                "--profile quick`, or name a file with --weights."
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    path = paths.expanded(asked)
    if path.is_file():
        return path
    for folder in (path, paths.runs_folder() / path):
        if folder.is_dir():
            best = folder / "checkpoints/best.safetensors"
            if best.is_file():
                return best
            raise CheckpointError(f"{folder} holds no {best.relative_to(folder)}: train that run to an end")
    raise CheckpointError(
        f"no weights at {path}: there is no such file, and no such run under {paths.runs_folder()}. Give a "
        "file, a run's name or folder, `newest` for the newest run, `shipped` or `bccd` for those of the "
        "project; or train some: python -m ssdlib run --profile quick"
    )
