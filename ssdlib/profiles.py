"""How much work the notebooks do: smoke (a check), quick (a laptop's coffee break), full (all of it)."""

from __future__ import annotations

from ssdlib.config import RECIPES, Profile
from ssdlib.errors import ConfigError

SCRATCH, FINETUNE = RECIPES["scratch"], RECIPES["finetune"]

PROFILES = {
    profile.name: profile
    for profile in (
        # Under a minute of training on two cores. It starts from the shipped weights, so every notebook has
        # something good to show when it is tested; fp32 so that any CPU comes to about the same.
        Profile(
            name="smoke",
            recipe=FINETUNE.replace(batch_size=4, epochs=3, warmup_steps=5, evaluate_every=1),
            train_images=64,
            val_images=24,
            test_images=24,
            precision="fp32",
        ),
        # A coffee break on two cores: all images, from the shipped weights.
        Profile(name="quick", recipe=FINETUNE.replace(epochs=10, evaluate_every=2)),
        # All of it from nothing, in a quarter of an hour on two cores.
        Profile(name="full", recipe=SCRATCH),
    )
}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError that lists the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
