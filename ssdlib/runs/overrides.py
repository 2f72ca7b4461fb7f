"""Settings of a profile changed by name: by `--set` and `--sweep`, and what `--init` stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssdlib.common import files
from ssdlib.common.errors import ConfigError
from ssdlib.common.files import shortened
from ssdlib.config import BCCD_CLASSES, RECIPES, SHIPPED_MODEL, ModelConfig, Profile, find_profile, flatten
from ssdlib.runs.lookup import find_weights

NEW_CLASSES_LEARNING_RATE = 5e-4
"""Five times the recipe's: a new class has to be learned, not only kept (figures: docs/own_data.md)."""


def apply_overrides(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """A copy of `profile` with settings changed by dotted name. Raises ConfigError for a name it lacks.

    Whole groups of settings are changed before single ones of them. A text for `recipe` names one of
    RECIPES, which then is taken as it stands, its epochs and the network's width included.
    """
    values = profile.to_dict()
    for name, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        if name == "recipe" and isinstance(value, str):
            if value not in RECIPES:
                raise ConfigError(
                    f"there is no recipe {shortened(value)}; choose one of: {', '.join(RECIPES)}"
                )
            value = RECIPES[value].to_dict()
        *parents, last = name.split(".")
        node = values
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            known = ", ".join(sorted(flatten(profile.to_dict())))
            raise ConfigError(f"the profile has no setting {shortened(name)}; it has: {known}")
        node[last] = value
    return Profile.from_dict(values)


def parse_override(text: str) -> tuple[str, Any]:
    """("recipe.epochs", 3) from "recipe.epochs=3". Raises ConfigError where the name or `=` is missing."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set wants NAME=VALUE such as recipe.epochs=3, not {shortened(text)}")
    return name.strip(), parse_value(value)


def parse_value(text: str) -> Any:
    """The JSON value that `text` is, else the text itself. Raises ConfigError for NaN and Infinity, and for
    what is nested too deep or has too long numbers."""

    def refuse(constant: str) -> None:
        raise ConfigError(f"{constant} is not a finite number")

    try:
        json.loads(text, parse_constant=refuse, parse_int=len)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        pass  # said below
    try:
        return files.parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{text[:80]!r} cannot be a setting: {error}") from error


def start_settings(init: str, profile: str, class_names: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The overrides with which a run starts from `init`, and a sentence about what becomes of the network.

    - `scratch`: random weights, and the recipe `scratch` unless the profile's trains from scratch anyway.
    - Anything else is fine-tuned, by the recipe `finetune` if the profile's trains from scratch:
      `imagenet` and `coco` with new heads; or weights that `find_weights` finds, whose network the run then
      has. Class heads are kept where the name of the class is the same; new ones need a higher learning rate.

    Raises CheckpointError for a file that is missing, damaged or of another project.
    """
    from ssdlib.detector.model_file import SHIPPED_NAMES, read_metadata

    from_scratch = find_profile(profile).recipe.initial_weights == "scratch"
    names = ", ".join(class_names)
    if init == "scratch":
        settings = {} if from_scratch else {"recipe": "scratch"}
        return settings, f"all of the network starts from random weights, for {names}"
    settings = {"recipe": "finetune"} if from_scratch else {}
    if init in ("imagenet", "coco"):
        return {**settings, "recipe.initial_weights": init}, f"the heads are new, for {names}"
    path = find_weights(init)
    stored = ModelConfig.from_dict(read_metadata(path)["config"])
    settings["recipe.initial_weights"] = init if init in SHIPPED_NAMES else str(path.resolve())
    kept = {"mean": stored.mean, "std": stored.std, "use": stored.use}  # brought along by any weights
    if stored.replace(class_names=BCCD_CLASSES) != SHIPPED_MODEL.replace(**kept):
        settings["recipe.model"] = stored.to_dict()
    heads = {
        "kept": [name for name in class_names if name in stored.class_names],
        "new": [name for name in class_names if name not in stored.class_names],
        "dropped": [name for name in stored.class_names if name not in class_names],
    }
    if heads["new"]:
        settings["recipe.learning_rate"] = NEW_CLASSES_LEARNING_RATE
    elif not heads["dropped"]:
        return settings, f"all of the network is kept: {path} knows {names}"
    said = "; ".join(f"{what} {', '.join(those)}" for what, those in heads.items() if those)
    return settings, f"class heads remade: {said}"


def kept_start(init: str, folder: Path) -> dict[str, Any] | None:
    """The overrides of a run that began from the weights `init`, which are no longer there.

    None where `folder` holds no such run that could go on: it needs them only to begin.
    """
    from ssdlib.training.checkpoints import has_state

    if not has_state(folder / "checkpoints") or not (folder / "config.json").is_file():
        return None
    overrides = files.read_json(folder / "config.json", shape=dict[str, Any]).get("overrides")
    if not isinstance(overrides, dict):
        return None
    begun = Path(str(overrides.get("recipe.initial_weights", "")))
    return overrides if Path(init).name in begun.parts else None
