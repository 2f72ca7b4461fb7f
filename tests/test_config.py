"""Settings survive JSON unchanged, and a wrong name, type or value is an error that names it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import ValidationError

from ssdlib.common.errors import ConfigError
from ssdlib.config import (
    BCCD_CLASSES,
    PROFILES,
    RECIPES,
    SMALL_PRIORS,
    TORCHVISION_PRIORS,
    AugmentConfig,
    ModelConfig,
    PriorConfig,
    Profile,
    Recipe,
    differences,
    flatten,
)

DEFAULTS = [PriorConfig(), ModelConfig(), AugmentConfig(), Recipe()]
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "settings",
    [
        *DEFAULTS,
        TORCHVISION_PRIORS,
        ModelConfig(class_names=("blast",), priors=SMALL_PRIORS, mean=(0.1, 1 / 3, 1e-17)),
        *RECIPES.values(),
        *PROFILES.values(),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'name', '')}",
)
def test_round_trip_through_json(settings):
    text = json.dumps(settings.to_dict(), allow_nan=False)
    restored = type(settings).from_dict(json.loads(text))
    assert restored == settings
    assert json.dumps(restored.to_dict()) == text
    assert hash(restored) == hash(settings)  # tuples throughout, no list slipped in


@pytest.mark.parametrize("defaults", DEFAULTS, ids=lambda s: type(s).__name__)
def test_nothing_given_means_the_defaults_and_they_are_frozen(defaults):
    assert type(defaults).from_dict({}) == defaults
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(defaults, dataclasses.fields(defaults)[0].name, None)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Recipe, None, "Recipe should be an object, not None"),
        (Recipe, [], "Recipe should be an object"),
        (Recipe, {"model": 3}, "Recipe.model should be an object, not 3"),
        (Recipe, {"learning_rte": 1}, "Recipe has no setting 'learning_rte'; it has: .*learning_rate"),
        (Recipe, {"model": {"depth": 16}}, r"Recipe\.model\.depth: ModelConfig has no .*'depth'; .*width"),
        (Recipe, {"model": {"priors": {"scale": 1}}}, "PriorConfig has no setting 'scale'; it has: .*scales"),
        (Recipe, {"epochs": 0, "optimizer": "adam"}, "optimizer.*; .*epochs|epochs.*; .*optimizer"),
        (Recipe, {"epochs": "50"}, "Recipe.epochs should be a valid integer, not '50'"),
        (Recipe, {"epochs": 1.5}, "Recipe.epochs should be a valid integer"),
        (Recipe, {"epochs": True}, "Recipe.epochs should be a valid integer"),
        (Recipe, {"epochs": None}, "Recipe.epochs should be a valid integer"),
        (Recipe, {"epochs": 0}, "Recipe.epochs should be greater than 0, not 0"),
        (Profile, {"name": "x", "recipe": {}, "seed": -1}, "Profile.seed should be greater than or equal"),
        (Profile, {"name": "x", "recipe": {}, "seed": 2**32}, "Profile.seed should be less than 4294967296"),
        (Recipe, {"batch_size": -1}, "batch_size should be greater than 0"),
        (Recipe, {"smears": -1}, "smears should be greater than or equal to 0"),
        (Recipe, {"learning_rate": True}, "Recipe.learning_rate should be a valid number"),
        (Recipe, {"learning_rate": 0}, "learning_rate should be greater than 0"),
        (Recipe, {"learning_rate": NAN}, "learning_rate should be a finite number"),
        (Recipe, {"name": 3}, "Recipe.name should be a valid string"),
        (Recipe, {"optimizer": "adam"}, "'adamw' or 'sgd', not 'adam'"),
        (Recipe, {"schedule": "linear"}, "'cosine' or 'steps'"),
        (Recipe, {"background": ""}, "'hard' or 'ignore_confident', not ''"),
        (Recipe, {"ema_decay": 1.0}, "ema_decay should be less than 1"),
        (Recipe, {"ignore_above": 1.1}, "ignore_above should be less than or equal to 1"),
        (Recipe, {"ignore_iou": -0.1}, "ignore_iou should be greater than or equal to 0"),
        (Recipe, {"ignore_after": NAN}, "ignore_after should be a finite number"),
        (AugmentConfig, {"vertical_flip": 2}, "vertical_flip should be less than or equal to 1"),
        (ModelConfig, {"batch_norm": 1}, "batch_norm should be a valid boolean"),
        (ModelConfig, {"class_names": []}, "at least 1 item"),
        (ModelConfig, {"class_names": ["RBC", "RBC"]}, "ModelConfig: class names must be distinct: RBC, RBC"),
        (ModelConfig, {"class_names": "RBC"}, "class_names should be a valid array"),
        (ModelConfig, {"class_names": ["RBC", 3]}, r"class_names\.1 should be a valid string"),
        (ModelConfig, {"width": 0}, "width should be greater than 0"),
        (ModelConfig, {"width": 1.5}, "width should be less than or equal to 1"),
        (ModelConfig, {"width": NAN}, "width should be a finite number"),
        (ModelConfig, {"variances": [0.1]}, r"variances\.1: Field required"),
        (ModelConfig, {"variances": [0.1, 0]}, r"variances\.1 should be greater than 0"),
        (ModelConfig, {"std": [0.2, 0.2, 0]}, r"std\.2 should be greater than 0"),
        (ModelConfig, {"class_names": [str(k) for k in range(2000)]}, "2,000 classes for 8,732 priors"),
        (ModelConfig, {"use": {"view": [10**6, 1]}}, r"view\.0 should be less than"),
        (ModelConfig, {"use": {"appearance": {"tone": 1}}}, "Appearance has no setting 'tone'"),
        (ModelConfig, {"class_names": 10**5000}, "cannot be read"),
        (PriorConfig, {"scales": [0.1, 0.2]}, "one entry for each map"),
        (PriorConfig, {"strides": [8]}, "one entry for each map"),
        (PriorConfig, {"final_scale": INFINITY}, "final_scale should be a finite number"),
        (PriorConfig, {"aspect_ratios": [[2], [2], [2], [2], [2], [-2]]}, r"aspect_ratios\.5\.0 should be"),
        (PriorConfig, {"strides": [8, 16, 32, 64, 100, 0]}, r"strides\.5 should be greater than 0"),
        (Profile, {"name": "x"}, "Profile.recipe: Field required"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        cls.from_dict(values)


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    recipe = Recipe.from_dict({"learning_rate": 1, "model": {"class_names": ["a"], "std": [1, 1, 1]}})
    assert recipe.learning_rate == 1.0 and type(recipe.learning_rate) is float
    assert recipe.model.class_names == ("a",) and recipe.model.std == (1.0, 1.0, 1.0)
    assert Profile.from_dict({"name": "x", "recipe": {}, "val_images": None}).val_images is None


def test_replace_and_the_constructor_check_as_well():
    assert Recipe().replace(epochs=3).epochs == 3
    assert Recipe().replace() == Recipe()
    with pytest.raises(ConfigError, match=r"Recipe has no setting 'epoch'; it has: .*epochs"):
        Recipe().replace(epoch=3)
    with pytest.raises(ConfigError, match="epochs should be greater than 0"):
        Recipe().replace(epochs=0)
    with pytest.raises(ValidationError, match="epochs"):
        Recipe(epochs=0)


@pytest.mark.parametrize(
    ("before", "after", "flat", "differing"),
    [
        ({}, {}, {}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, {"a": [1, 2]}, []),
        ({"a": {"b": {"c": 1}, "d": 2}}, {"a": {"b": {"c": 3}, "d": 2}}, {"a.b.c": 1, "a.d": 2},
         ["a.b.c was 1, is 3"]),
        ({"a": "x"}, {"b": {"c": 0}}, {"a": "x"}, ["a was 'x', is None", "b.c was None, is 0"]),
    ],
)  # fmt: skip
def test_nested_settings_by_dotted_name_and_what_differs(before, after, flat, differing):
    assert flatten(before) == flat
    assert differences(before, after) == differing


def test_the_papers_numbers():
    assert PriorConfig().per_location == (4, 6, 6, 6, 4, 4)
    assert PriorConfig().count == 8732
    assert ModelConfig().variances == (0.1, 0.2)
    assert ModelConfig().l2norm_scale == 20
    assert ModelConfig().class_names == BCCD_CLASSES == ("WBC", "RBC", "Platelets")
    assert ModelConfig().num_classes == 4


def test_the_original_recipe():
    """What the notebook this course grew from trained with."""
    recipe = RECIPES["original"]
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("sgd", 1e-3, 0.9)
    assert (recipe.weight_decay, recipe.bias_lr_factor, recipe.clip_norm) == (5e-4, 2.0, 10.0)
    assert (recipe.schedule, recipe.step_milestones) == ("steps", (0.5, 0.75))
    assert (recipe.batch_size, recipe.epochs) == (8, 50)
