"""What the tests of the benchmarks share: a small recipe, and a call of a command."""

import typer
from typer.testing import CliRunner

from ssdlib.config import ModelConfig, Recipe

TINY = Recipe(
    name="tiny", model=ModelConfig(batch_norm=True, width=0.05), batch_size=2, warmup_steps=1, ema_decay=0.5
)


def invoke(main, *arguments):
    """The result of a program's `main` called with these command-line arguments."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)
