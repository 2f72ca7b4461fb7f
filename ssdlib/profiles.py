"""How much work the notebooks do: smoke (a check), quick (a laptop's coffee break), full (all of it)."""

from __future__ import annotations

from ssdlib.config import ModelConfig, Profile, Recipe
from ssdlib.errors import ConfigError

PROFILES = {
    profile.name: profile
    for profile in (
        # Small enough that every notebook can be tested, and fp32 so that it prints the same on any CPU.
        Profile(
            name="smoke",
            recipe=Recipe(
                model=ModelConfig(batch_norm=True, width=0.25), epochs=3, warmup_steps=4, evaluate_every=3
            ),
            train_images=24,
            val_images=8,
            test_images=8,
            precision="fp32",
        ),
        # Half the channels cost a quarter of the arithmetic: minutes, not hours, on two cores.
        Profile(name="quick", recipe=Recipe(model=ModelConfig(batch_norm=True, width=0.5), epochs=20)),
        # The whole network; wants a GPU or a long lunch.
        Profile(name="full", recipe=Recipe(epochs=120)),
    )
}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError that lists the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
