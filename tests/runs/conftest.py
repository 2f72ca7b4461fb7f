"""Data that the tests of runs share."""

import pytest

from ssdlib.data.smears import write_dataset


@pytest.fixture(scope="session")
def smears(tmp_path_factory) -> str:
    """A folder of eight drawn fields."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return str(write_dataset(folder, train=4, val=2, test=2, progress=False))
