"""Where the checkout, its data and its runs lie, and what a path given by hand means."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from platformdirs import user_data_path

from ssdlib.common.errors import DataError
from ssdlib.common.terminal import say

HOME = "SSDLIB_HOME"
"""The environment variable that names the folder in which data and runs are kept."""


def checkout() -> Path | None:
    """The checkout that the package lies in, or None if it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def project_root() -> Path:
    """The checkout, or the working folder where the package is installed without one."""
    return checkout() or Path.cwd()


def home(*, say: bool = True) -> Path:
    """The folder in which `data` and `runs` are kept: `$SSDLIB_HOME`, else the checkout (`project_root`).

    Where that cannot be written, the user's own folder for data of programs, which is said once on stderr.
    """
    if named := os.environ.get(HOME):
        return Path(os.path.realpath(expanded(named)))
    root = project_root()
    if all(os.access(folder, os.W_OK) for folder in (root, root / "data", root / "runs") if folder.exists()):
        return root
    instead = user_data_path("ssdlib", appauthor=False)
    if say:
        _say_unwritable(root, instead)
    return instead


@cache
def _say_unwritable(root: Path, instead: Path) -> None:
    say(
        f"{root} cannot be written, so data and runs are kept in {instead}; set {HOME} to choose another.",
        file=sys.stderr,
        flush=True,
    )


def expanded(given: str | Path) -> Path:
    """The path with the home folder for `~`; as it stands, where there is no such user."""
    return Path(os.path.expanduser(given))  # noqa: PTH111 (pathlib raises)


def runs_folder() -> Path:
    """Where runs are kept: `runs/` in `home`."""
    return home() / "runs"


def data_folders() -> list[Path]:
    """Where data is looked for: `data/` in `home`, in the checkout, if there is one, and here."""
    roots = [root for root in (home(say=False), checkout(), Path.cwd()) if root is not None]
    return list(dict.fromkeys(root / "data" for root in roots))


def data_folder() -> Path:
    """Where data is kept: the first of `data_folders`."""
    home()  # for what it says
    return data_folders()[0]


def candidates(given: str | Path) -> list[Path]:
    """The absolute paths that a path given by hand may mean, the first that exists being meant.

    A relative one starts at the working folder, where the user is, or else at the checkout: a notebook that
    is opened by hand works in `notebooks/`. The same for data and for runs.
    """
    path = expanded(given)
    return list(dict.fromkeys((root / path).absolute() for root in (Path.cwd(), project_root())))


def find(given: str | Path, remedy: str) -> Path:
    """The absolute path of data given by hand, see `candidates`. Raises DataError if there is nothing."""
    places = candidates(given)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        missing = " and no ".join(map(str, places))
        raise DataError(f"{given} is not a dataset: there is no {missing}. {remedy}")
    return found
