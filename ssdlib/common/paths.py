"""Where the checkout, its data and its runs lie: the one place that asks."""

from __future__ import annotations

from pathlib import Path


def checkout() -> Path | None:
    """The checkout that the package lies in, or None if it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def project_root() -> Path:
    """The checkout, or the working folder where the package is installed without one."""
    return checkout() or Path.cwd()


def runs_folder() -> Path:
    """Where runs are kept: `runs/` of the checkout, or of the working folder."""
    return project_root() / "runs"


def data_folders() -> list[Path]:
    """Where data is looked for: the checkout's data folder, if there is one, then the working folder's."""
    roots = [root for root in (checkout(), Path.cwd()) if root is not None]
    return list(dict.fromkeys(root / "data" for root in roots))


def data_folder() -> Path:
    """Where data is kept: the first of `data_folders`."""
    return data_folders()[0]
