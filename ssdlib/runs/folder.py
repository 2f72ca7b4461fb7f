"""A run is a folder: what was asked, where it ran, and everything that each stage wrote.

    runs/NAME/config.json        profile, recipe, seed and data, all resolved
              environment.json   versions, device, git revision, data fingerprint
              metrics.json       one section for each stage that measures something
              stages.json        state and duration of each notebook (read it with `read_stages`)
              checkpoints/  events/  figures/  notebooks/  report.html

A stage reads only what an earlier stage wrote here, so any stage can be run again alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NotRequired,  # pydantic takes no other before Python 3.12
)

from pydantic import Field
from typing_extensions import TypedDict

from ssdlib.common import files
from ssdlib.common.errors import ConfigError, StageError, shell
from ssdlib.common.terminal import say
from ssdlib.config import BCCD_CLASSES, NAMED_WEIGHTS, Profile, differences, find_profile, flatten
from ssdlib.runs.lookup import locate
from ssdlib.runs.overrides import apply_overrides

if TYPE_CHECKING:
    from ssdlib.data.dataset import DetectionDataset
    from ssdlib.data.source import DataSource
    from ssdlib.training.history import History

CONFIG_FORMAT = 1


@dataclass(eq=False, repr=False)
class RunFolder:
    """One run on disk, made or reopened by `RunFolder.open`."""

    path: Path
    profile: Profile
    source: DataSource
    config: dict[str, Any]
    saved: bool = True
    """Whether config.json holds `config`; if not, `train` writes it."""
    borrowed: str = ""
    """The name of the shipped weights that stand in for a training of this run; see `ensure_trained`."""

    @classmethod
    def open(
        cls,
        path: str | Path = "",
        *,
        profile: str = "smoke",
        data: str = "auto",
        overrides: Mapping[str, Any] | None = None,
        force: bool = False,
        save: bool = True,
        progress: bool = True,
    ) -> RunFolder:
        """The run at `path`, created if it is not there yet; `ssdlib.runs.lookup.locate` resolves the path.

        `overrides` change single settings of the profile by dotted name, such as {"recipe.epochs": 3,
        "train_images": 8}; None keeps those that the run was made with. A run already made with other
        settings or other data raises ConfigError that lists what differs, unless `force`, which makes
        the new settings the run's own (its checkpoints stay). Without `save` nothing is written until
        `train` begins, and so nothing where it refuses to.
        """
        from ssdlib.data import source as bccd

        folder = locate(path, profile=profile, data=str(data))
        config_file = folder / "config.json"
        hint = "Remove the run folder or choose another name."
        stored = read_config(config_file, hint=hint) if os.path.lexists(config_file) else None
        given = overrides is not None
        if not given:
            overrides = (stored or {}).get("overrides", {})
        source = bccd.resolve(str(data), progress=progress)
        resolved = apply_overrides(find_profile(profile), overrides)
        # The network must have the classes of the data, whatever the profile was written for.
        model = resolved.recipe.model.replace(class_names=tuple(source.class_names))
        resolved = resolved.replace(recipe=resolved.recipe.replace(model=model))
        file, start = resolved.recipe.initial_file, None
        if stored is not None and not given and not force:
            start = stored.get("initial_weights_sha256")
        elif file is not None and file.is_file():
            start = files.sha256_of(file)
        if stored is not None and given and not force and _began_from(stored, file, start):
            start = stored.get("initial_weights_sha256")
            begun = stored["profile"]["recipe"]["initial_weights"]  # it may have been moved
            resolved = resolved.replace(recipe=resolved.recipe.replace(initial_weights=begun))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        config = {
            "format": CONFIG_FORMAT,
            "profile": resolved.to_dict(),
            "overrides": dict(overrides),
            "data": {"request": str(data), **source.describe()},
            "initial_weights_sha256": start,
            "created": (stored or {}).get("created", now),
            "changed": now,
        }
        changes = differences(_identity(stored), _identity(config)) if stored is not None else []
        if stored is not None and not changes:
            return cls(folder, resolved, source, stored)
        if stored is not None and not force:
            listed = "\n  ".join(changes)
            raise ConfigError(
                f"the run {folder} was made with other settings:\n  {listed}\n{_ways_on(folder, changes)}"
            )
        run = cls(folder, resolved, source, config, saved=False)
        if save:
            run._save_config()
        return run

    def _save_config(self) -> None:
        from ssdlib.common.runtime import environment

        if not self.saved:
            facts = {**environment(), "data_fingerprint": self.source.fingerprint}
            files.write_json(self.path / "environment.json", facts)
            files.write_json(self.path / "config.json", self.config)  # last: where it is, all is
            self.saved = True

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def seed(self) -> int:
        return self.profile.seed

    @property
    def best_checkpoint(self) -> Path:
        """The file of the weights with the best val mAP. Raises StageError that says how to get them."""
        path = self.path / "checkpoints/best.safetensors"
        if not path.is_file():
            data = self.config["data"]["request"]
            options = shell("--profile", self.profile.name, "--data", data, "--run", self.path)
            raise StageError(
                f"{path} is missing: the stage 04_train writes it. Run that notebook first with the same "
                f"RUN_DIR, or: python -m ssdlib run --only 04 {options}"
            )
        return path

    def dataset(self, split: str, transform: Callable | None = None) -> DetectionDataset:
        """The images of train, val or test that this profile uses, from the split's start."""
        limit = getattr(self.profile, f"{split}_images", None)
        return self.source.dataset(split, limit=limit, transform=transform)

    def check_data(self) -> None:
        """Raise DataError for data that no notebook could use: a split is empty, or train has no object."""
        train, *_ = (self.dataset(split) for split in ("train", "val", "test"))
        train.require_objects()

    def train(
        self, *, resume: bool | None = None, device: str = "auto", workers: Any = "auto", on_epoch: Any = None
    ) -> History:
        """Train this run's recipe on its data; checkpoints, history and events land in the folder.

        `resume`, `on_epoch` and what is raised: see `ssdlib.training.trainer.Trainer.fit`; `workers`: see
        `ssdlib.data.loaders.choose_workers`. A training that goes on needs its initial weights no more.
        """
        from ssdlib.data.source import extra_smears
        from ssdlib.detector.model import SSD300
        from ssdlib.detector.weights import build_model
        from ssdlib.training.checkpoints import network_config
        from ssdlib.training.trainer import Trainer
        from ssdlib.training.views import use_for

        recipe, data = self.profile.recipe, self.dataset("train")
        use = use_for(data, recipe.model.use)
        recipe = recipe.replace(model=recipe.model.replace(use=use))
        begun = network_config(self.path / "checkpoints") if resume else None
        model = SSD300(begun) if begun else build_model(recipe.model, recipe.initial_weights, self.seed)
        if recipe.smears and data.class_names == BCCD_CLASSES:
            data = data.joined(extra_smears(recipe.smears))
        self.borrowed = ""
        trainer = Trainer(
            model,
            recipe,
            data,
            self.dataset("val"),
            run_dir=self.path,
            data_description=self.source.describe(),
            precision=self.profile.precision,
            device=device,
            seed=self.seed,
            workers=workers,
            initial_sum=self.config.get("initial_weights_sha256"),
            # A profile for few images must not take hours because each is cut into many views.
            most_views=max(len(data), self.profile.train_images) if self.profile.train_images else None,
        )
        return trainer.fit(resume=resume, on_epoch=on_epoch, on_begin=self._save_config)

    def ensure_trained(self) -> Path:
        """The weights to judge: the best checkpoint, or what stands in for it, so any notebook runs alone.

        Under the profile smoke a run without a checkpoint is trained on the spot. The others train for
        longer: there the shipped weights stand in, which is said on stderr and noted in metrics.json. Raises
        StageError with the command to run where the data have other classes than they.
        """
        self.borrowed = ""
        try:
            return self.best_checkpoint
        except StageError:
            if self.profile.name != "smoke":
                if self.source.class_names == BCCD_CLASSES:
                    return self._borrow()
                raise
        # All on stderr, so that a notebook prints the same whether it had to train or not.
        say(f"{self.path} has no checkpoint yet: training it now (profile smoke)", file=sys.stderr)
        self.train(resume=True, on_epoch=lambda record: say(record, file=sys.stderr))
        return self.best_checkpoint

    def _borrow(self) -> Path:
        from ssdlib.detector.model_file import shipped_weights

        # Those of the official figures for BCCD; those that know several microscopes for all else.
        path = shipped_weights("bccd" if self.source.kind == "bccd" else "shipped")
        self.borrowed = path.stem
        say(
            f"NOTICE: {self.path} has no checkpoint yet: you see the shipped weights {path.stem} instead of "
            f"a training of your own. For that, run 04_train with PROFILE = {self.profile.name!r} first.",
            file=sys.stderr,
        )
        return path

    def metrics(self) -> dict[str, Any]:
        """All sections of metrics.json, with the profile's name and the description of the data."""
        path = self.path / "metrics.json"
        hint = "Remove it and run the stages again."
        stored = files.read_json(path, hint=hint, shape=dict[str, Any]) if path.exists() else {}
        return {**stored, "profile": self.profile.name, "data": self.source.describe()}

    def update_metrics(self, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace one section of metrics.json and return the whole.

        A section measured on shipped weights (`borrowed`) is listed with their name under "borrowed".
        """
        if section in ("profile", "data", "borrowed"):
            raise ConfigError(
                f"the section {section!r} of metrics.json is the run's own; choose another name"
            )
        metrics = self.metrics()
        try:
            json.dumps(metrics, allow_nan=False)
        except ValueError as error:
            raise StageError(
                f"{self.path / 'metrics.json'} holds what no stage writes ({error}). Remove it and run the "
                "stages again."
            ) from error
        metrics[section] = dict(values)
        before = metrics.pop("borrowed", None)
        borrowed = {**before} if isinstance(before, dict) else {}
        borrowed.pop(section, None)
        if self.borrowed:
            borrowed[section] = self.borrowed
        if borrowed:
            metrics["borrowed"] = borrowed
        files.write_json(self.path / "metrics.json", metrics)
        return metrics

    def save(self, name: str, content: Any) -> Path:
        """Atomically write one file of the run and return its path.

        Bytes and text are written as they are, a matplotlib figure in the format that the name ends in,
        and any other plain value as JSON.
        """
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path):
            raise ConfigError(f"{name!r} leads out of the run folder {self.path}")
        if hasattr(content, "savefig"):
            from ssdlib.plots.style import in_language

            form, content = path.suffix.lstrip(".") or "png", in_language(content)
            files.write_with(path, lambda stream: content.savefig(stream, format=form, bbox_inches="tight"))
        elif isinstance(content, bytes):
            files.write_bytes(path, content)
        elif isinstance(content, str):
            files.write_text(path, content)
        else:
            files.write_json(path, content)
        return path

    def saved_files(self) -> list[tuple[str, int]]:
        """(path inside the run, bytes) of every file in it, by name."""
        passing = (".tmp", ".lock")
        found = (p for p in self.path.rglob("*") if p.is_file() and not p.name.endswith(passing))
        return sorted((p.relative_to(self.path).as_posix(), p.stat().st_size) for p in found)

    def __repr__(self) -> str:
        return f"RunFolder({self.name!r}, profile={self.profile.name!r}, data={self.source.kind!r})"


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in two runs of one folder: settings and data, not the time or the data's path."""
    fingerprint = (config.get("data") or {}).get("fingerprint")
    start = config.get("initial_weights_sha256")
    known = {"data fingerprint": fingerprint, "initial weights SHA-256": start}
    return {**(config.get("profile") or {}), **known}


def _began_from(stored: Mapping[str, Any], file: Path | None, start: str | None) -> bool:
    """Whether the run with this configuration began from the weights in `file`, whose SHA-256 is `start`.

    The sum decides, so that the file may have been moved; where the file is gone, its name.
    """
    before = flatten(stored.get("profile", {})).get("recipe.initial_weights", "")
    if file is None or not isinstance(before, str) or before in NAMED_WEIGHTS:
        return False
    if start is None:
        return file.name == Path(before).name
    return start == stored.get("initial_weights_sha256", start if str(file) == before else None)


def _ways_on(folder: Path, changes: list[str]) -> str:
    """What to do about a run that was made with other settings."""
    trained = [one for one in changes if not one.startswith(("name ", "precision ", "test_images "))]
    if trained and (folder / "checkpoints").is_dir():
        from ssdlib.training import checkpoints

        if checkpoints.has_state(folder / "checkpoints"):
            return f"A training keeps its settings. {checkpoints.other_settings(trained)}"
    return "Choose another run name, or give --force (force=True) to take the new settings."


Figure = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e12, le=1e12)]
"""A measured number in a file of a run."""


class _Data(TypedDict, total=False):
    """What `DataSource.describe` returns."""

    source: str
    root: str
    notice: str | None
    fingerprint: str | None
    sources: list[_Data]


class _Config(TypedDict, total=False):
    """What config.json holds."""

    profile: dict[str, Any]
    overrides: dict[str, Any]
    data: _Data
    initial_weights_sha256: str | None
    created: str


class _Stage(TypedDict):
    name: str
    state: str
    started: NotRequired[str]
    error: NotRequired[str]
    seconds: NotRequired[Figure]


class _Stages(TypedDict):
    stages: list[_Stage]


def read_config(file: Path, *, hint: str = "Make the run anew.") -> dict[str, Any]:
    """What a run's config.json holds, each part of its own type. Raises SsdError for anything else."""
    return files.read_json(file, hint=hint, shape=_Config, most=files.MAX_BYTES)


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """The entries of stages.json; empty if no chain has run in this folder.

    Each has a `name` and a `state`: not run, running, done, failed, interrupted, or killed, which is what
    "running" means where no process runs the chain any more. Raises SsdError if the file is damaged.
    """
    path = folder / "stages.json"
    if not path.exists():
        return []
    entries = files.read_json(path, hint="Remove it and run again.", shape=_Stages)["stages"]
    for entry in entries:
        if entry["state"] == "running" and not _chain_runs(folder):
            entry |= {"state": "killed", "error": f"{entry['name']} was killed before its end"}
    return entries


def _chain_runs(folder: Path) -> bool:
    from ssdlib.training import checkpoints

    return checkpoints.in_use(folder, checkpoints.CHAIN_LOCK)


def data_name(description: Mapping[str, Any]) -> str:
    """What data are called on a page: BCCD, TXL-PBC, synthetic smears, or the folder of others.

    description: what `DataSource.describe` returns and runs store.
    """
    if sources := description.get("sources"):
        return " and ".join(map(data_name, sources))
    names = {"bccd": "BCCD", "txl-pbc": "TXL-PBC", "smears": "synthetic smears"}
    return names.get(description.get("source"), description.get("root", "unknown"))
