"""Single settings changed by name, and what differs between two sets of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import ConfigError
from ssdlib.config import BCCD_CLASSES, RECIPES, SHIPPED_MODEL, ModelConfig, Profile, find_profile
from ssdlib.runs.lookup import find_weights

if TYPE_CHECKING:
    pass


NEW_CLASSES_LEARNING_RATE = 5e-4
"""Five times the recipe's: a new class has to be learnt, not only kept (docs/own_data.md has the figures)."""


def apply_overrides(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """A copy of `profile` with settings changed by dotted name. Raises ConfigError for a name it lacks.

    Whole groups of settings are changed before single ones of them. A text for `recipe` names one of
    RECIPES, which then is taken as it stands, its epochs and the network's width included.
    """
    values = profile.to_dict()
    for name, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        if name == "recipe" and isinstance(value, str):
            if value not in RECIPES:
                raise ConfigError(f"there is no recipe {value!r}; choose one of: {', '.join(RECIPES)}")
            value = RECIPES[value].to_dict()
        *parents, last = name.split(".")
        node = values
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            known = sorted(_leaves(profile.to_dict()))
            raise ConfigError(f"the profile has no setting {name!r}; it has: {', '.join(known)}")
        node[last] = value
    return Profile.from_dict(values)


def parse_override(text: str) -> tuple[str, Any]:
    """("recipe.epochs", 3) from "recipe.epochs=3"; a value that is not JSON is taken as text."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set wants NAME=VALUE such as recipe.epochs=3, not {text!r}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


def start_settings(init: str, profile: str, class_names: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The overrides with which a run starts from `init`, and a line on what becomes of the class heads.

    `scratch` takes the recipe of that name; anything else is weights to fine-tune: what `find_weights` finds,
    whose network the run then has, or imagenet or coco. A profile that trains from scratch then takes the
    recipe `finetune`. Raises CheckpointError for a file that is missing, damaged or of another project.
    """
    from ssdlib.detector.model_file import read_metadata

    recipe = find_profile(profile).recipe
    from_scratch = recipe.initial_weights == "scratch"
    if init == "scratch":
        settings = {} if from_scratch else {"recipe": "scratch"}
        return settings, f"all of the network starts from random weights, for {', '.join(class_names)}"
    settings = {"recipe": "finetune"} if from_scratch else {}
    if init in ("imagenet", "coco"):
        return {
            **settings,
            "recipe.initial_weights": init,
        }, f"the heads are new, for {', '.join(class_names)}"
    path = find_weights(init)
    stored = ModelConfig.from_dict(read_metadata(path)["config"])
    settings["recipe.initial_weights"] = "shipped" if init == "shipped" else str(path.resolve())
    if stored.replace(class_names=BCCD_CLASSES) != SHIPPED_MODEL.replace(mean=stored.mean, std=stored.std):
        settings["recipe.model"] = stored.to_dict()
    kept = [name for name in class_names if name in stored.class_names]
    new = [name for name in class_names if name not in stored.class_names]
    lost = [name for name in stored.class_names if name not in class_names]
    if not new and not lost:
        return settings, f"all of the network is kept: {path} knows {', '.join(kept)}"
    if new:
        settings["recipe.learning_rate"] = NEW_CLASSES_LEARNING_RATE
    parts = {"kept": kept, "new": new, "dropped": lost}
    return settings, "class heads remade: " + "; ".join(f"{k} {', '.join(v)}" for k, v in parts.items() if v)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: settings and data, not when, nor under which name the data were found."""
    fingerprint = (config.get("data") or {}).get("fingerprint")
    return {**(config.get("profile") or {}), "data fingerprint": fingerprint}


def _leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries flattened to dotted names."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in _leaves(value, f"{prefix}.{key}" if prefix else key).items()
    }


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = _leaves(before), _leaves(after)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
