"""Settings survive JSON unchanged, and a wrong name, type or value is an error that names it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.config import (
    BCCD_CLASSES,
    RECIPES,
    SMALL_PRIORS,
    TORCHVISION_PRIORS,
    AugmentConfig,
    ModelConfig,
    PriorConfig,
    Profile,
    Recipe,
)


@pytest.mark.parametrize(
    "settings",
    [
        PriorConfig(),
        TORCHVISION_PRIORS,
        SMALL_PRIORS,
        ModelConfig(class_names=("blast",), priors=TORCHVISION_PRIORS),
        AugmentConfig(),
        Profile(name="smoke", recipe=Recipe(), train_images=3),
        *RECIPES.values(),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'name', '')}",
)
def test_round_trip_through_json(settings):
    text = json.dumps(settings.to_dict(), allow_nan=False)
    restored = type(settings).from_dict(json.loads(text))
    assert restored == settings
    assert json.dumps(restored.to_dict()) == text
    assert hash(restored) == hash(settings)  # tuples throughout, no list slipped in


@pytest.mark.parametrize("cls", [PriorConfig, ModelConfig, AugmentConfig, Recipe])
def test_nothing_given_means_the_defaults(cls):
    assert cls.from_dict({}) == cls()


@pytest.mark.parametrize("cls", [PriorConfig, ModelConfig, AugmentConfig, Recipe])
def test_settings_are_frozen(cls):
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), name, None)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Recipe, None, "Recipe must be an object"),
        (Recipe, [], "Recipe must be an object"),
        (Recipe, {"learning_rte": 0.1}, "'learning_rte'.*learning_rate"),
        (Recipe, {"model": {"depth": 16}}, "ModelConfig has no setting 'depth'"),
        (Recipe, {"model": {"priors": {"scale": 1}}}, "PriorConfig has no setting 'scale'"),
        (Recipe, {"model": 3}, "ModelConfig must be an object"),
        (Recipe, {"epochs": "50"}, "Recipe.epochs must be int"),
        (Recipe, {"epochs": 1.5}, "Recipe.epochs must be int"),
        (Recipe, {"epochs": True}, "Recipe.epochs must be int"),
        (Recipe, {"epochs": None}, "Recipe.epochs must be int"),
        (Recipe, {"learning_rate": True}, "Recipe.learning_rate must be float"),
        (Recipe, {"name": 3}, "Recipe.name must be str"),
        (Recipe, {"epochs": 0}, "epochs must be at least 1"),
        (Recipe, {"batch_size": -1}, "batch_size must be at least 1"),
        (Recipe, {"learning_rate": 0}, "learning_rate must be positive"),
        (Recipe, {"learning_rate": float("nan")}, "learning_rate must be positive"),
        (Recipe, {"optimizer": "adam"}, "adamw or sgd"),
        (Recipe, {"schedule": "linear"}, "cosine or steps"),
        (Recipe, {"ema_decay": 1.0}, "ema_decay"),
        (AugmentConfig, {"quarter_turns": 1}, "quarter_turns must be bool"),
        (ModelConfig, {"class_names": []}, "at least one"),
        (ModelConfig, {"class_names": ["RBC", "RBC"]}, "distinct"),
        (ModelConfig, {"class_names": "RBC"}, "must be a list"),
        (ModelConfig, {"class_names": ["RBC", 3]}, "must be str"),
        (ModelConfig, {"width": 0}, "width must be in"),
        (ModelConfig, {"width": 1.5}, "width must be in"),
        (ModelConfig, {"width": float("nan")}, "width must be in"),
        (ModelConfig, {"variances": [0.1]}, "must have 2 values, not 1"),
        (ModelConfig, {"variances": [0.1, 0]}, "variances and std must be positive"),
        (ModelConfig, {"std": [0.2, 0.2, 0]}, "variances and std must be positive"),
        (PriorConfig, {"scales": [0.1, 0.2]}, "one entry for each map"),
        (PriorConfig, {"strides": [8]}, "one entry for each map"),
        (PriorConfig, {"scales": [0.1, 0.2, 0.3, 0.4, 0.5, 0]}, "scale must be positive"),
        (PriorConfig, {"final_scale": float("nan")}, "scale must be positive"),
        (PriorConfig, {"aspect_ratios": [[2], [2], [2], [2], [2], [-2]]}, "aspect ratio must be positive"),
        (PriorConfig, {"strides": [8, 16, 32, 64, 100, 0]}, "must be positive"),
        (PriorConfig, {"feature_maps": [38, 19, 10, 5, 3, 0]}, "must be positive"),
        (Profile, {"name": "x"}, "recipe"),
    ],
)
def test_wrong_settings_are_named(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        cls.from_dict(values)


def test_types_that_mean_the_same_are_taken():
    recipe = Recipe.from_dict({"learning_rate": 1, "model": {"class_names": ["a"], "std": [1, 1, 1]}})
    assert recipe.learning_rate == 1.0 and type(recipe.learning_rate) is float
    assert recipe.model.class_names == ("a",)
    assert recipe.model.std == (1.0, 1.0, 1.0)
    assert Recipe.from_dict({"model": recipe.model}).model is recipe.model
    assert Profile.from_dict({"name": "x", "recipe": {}, "val_images": None}).val_images is None


def test_replace():
    assert Recipe().replace(epochs=3).epochs == 3
    assert Recipe().replace() == Recipe()
    with pytest.raises(ConfigError, match="Recipe has no setting 'epoch'"):
        Recipe().replace(epoch=3)
    with pytest.raises(ConfigError, match="at least 1"):
        Recipe().replace(epochs=0)


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


def test_recipes_are_found_by_their_own_names():
    assert list(RECIPES) == [recipe.name for recipe in RECIPES.values()]
    assert {"scratch", "original", "paper"} <= set(RECIPES)
