"""Data that many tests share: a dozen synthetic smears in BCCD's layout, drawn once a session."""

import os
import shutil
from pathlib import Path

import pytest

from ssdlib.common import paths
from ssdlib.common.threads import share_processors
from ssdlib.data import smears
from ssdlib.data import source as bccd

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Once for all tests, before PyTorch is imported: no command that one of them runs changes it for the others.
share_processors()


@pytest.fixture(scope="session")
def smears_root(tmp_path_factory) -> Path:
    """A folder of 6 train, 3 val and 3 test smears. Read only: copy it (`smears_copy`) to change it."""
    root = tmp_path_factory.mktemp("data") / "smears"
    return smears.write_dataset(root, train=6, val=3, test=3, seed=1, progress=False)


@pytest.fixture(scope="session")
def smears_source(smears_root) -> bccd.DataSource:
    """The same as a data source."""
    return bccd.open_folder(smears_root)


@pytest.fixture
def smears_copy(smears_root, tmp_path) -> Path:
    """A copy of the folder, free to be damaged."""
    return Path(shutil.copytree(smears_root, tmp_path / "copy"))


@pytest.fixture
def no_data(monkeypatch, tmp_path) -> Path:
    """A machine without BCCD and without the internet: an empty folder to work in."""
    for variable in ("BCCD_ROOT", "TXL_PBC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SSDLIB_OFFLINE", "1")
    monkeypatch.setattr(paths, "data_folders", lambda: [tmp_path / "data"])
    bccd._say_once.cache_clear()
    monkeypatch.setattr(bccd, "_failures", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fuzz_seed(request) -> str:
    """What chooses the moments of random kills: the same each time, but others in each round of make fuzz."""
    return str(request.config.getoption("--hypothesis-seed", default=None))


@pytest.fixture(scope="session")
def bccd_root() -> Path:
    """Real BCCD, where BCCD_ROOT points to it."""
    if not os.environ.get("BCCD_ROOT"):
        pytest.skip("BCCD_ROOT is not set")
    return Path(os.environ["BCCD_ROOT"])
