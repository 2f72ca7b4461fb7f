"""How much work the notebooks do: smoke (a check), quick (a laptop's coffee break), full (all of it)."""

from __future__ import annotations

from ssdlib.config import ModelConfig, Profile, Recipe
from ssdlib.errors import ConfigError

SCRATCH = Recipe()


def _narrow(width: float) -> ModelConfig:
    """The recipe's network with fewer channels: arithmetic falls with the square of the width."""
    return SCRATCH.model.replace(width=width)


PROFILES = {
    profile.name: profile
    for profile in (
        # A minute of training on two cores, enough to find most cells of a synthetic smear, so that every
        # notebook has something to show when it is tested; fp32 so that any CPU comes to about the same.
        Profile(
            name="smoke",
            recipe=SCRATCH.replace(
                model=_narrow(0.25), batch_size=4, epochs=10, warmup_steps=10, evaluate_every=2
            ),
            train_images=96,
            val_images=24,
            test_images=24,
            precision="fp32",
        ),
        # A coffee break on two cores: all images, a quarter of the arithmetic.
        Profile(name="quick", recipe=SCRATCH.replace(model=_narrow(0.5), epochs=24, evaluate_every=4)),
        # The whole network; wants a GPU or a long lunch.
        Profile(name="full", recipe=SCRATCH.replace(epochs=120)),
    )
}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError that lists the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
