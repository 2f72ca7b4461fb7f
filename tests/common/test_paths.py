"""What a path given by hand means, and where data and runs are kept."""

import os
from pathlib import Path

import pytest

from ssdlib.common import paths
from ssdlib.common.errors import DataError
from ssdlib.data.source import open_folder, resolve
from ssdlib.runs import lookup


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A checkout that somebody works in: the working folder is its `notebooks`."""
    for variable in (paths.HOME, "SSDLIB_RUN_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path / "house")
    (tmp_path / "house/notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "house/notebooks")
    return tmp_path / "house"


def run_of(given: str) -> Path:
    return lookup.locate(given, profile="smoke", data="smears")


@pytest.mark.parametrize("place", ["notebooks/", ""])
def test_a_relative_path_means_the_same_for_data_and_for_runs(house, smears_root, place):
    for name in ("cells", "run"):
        (house / place).mkdir(exist_ok=True)
        (house / place / name).symlink_to(smears_root)
    assert open_folder("cells").folder == resolve("cells").folder == smears_root.resolve()
    assert run_of("run") == house / place / "run"


def test_the_working_folder_comes_before_the_checkout(house):
    for folder in ("x", "notebooks/x"):
        (house / folder).mkdir()
    assert paths.find("x", "") == run_of("x") == house / "notebooks/x"
    assert paths.find("../x", "").samefile(house / "x")
    assert paths.find(house / "x", "") == house / "x"


def test_what_is_nowhere_is_said_with_every_place_for_data_and_new_in_the_checkout_for_runs(house):
    for ask in (open_folder, resolve):
        with pytest.raises(DataError) as refused:
            ask("my_cells")
        said = str(refused.value)
        assert f"there is no {house / 'notebooks/my_cells'} and no {house / 'my_cells'}." in said
        assert "bccd" in said
    with pytest.raises(DataError, match=r"there is no /none\."):
        resolve("smears,/none")
    assert run_of("my_run") == house / "my_run"


def test_data_and_runs_are_kept_in_the_checkout_or_where_the_variable_says(house, tmp_path, monkeypatch):
    assert paths.runs_folder() == house / "runs" and paths.data_folder() == house / "data"
    monkeypatch.setenv(paths.HOME, str(tmp_path / "else where"))
    assert paths.runs_folder() == tmp_path / "else where/runs"
    assert paths.data_folders() == [tmp_path / "else where/data", house / "data", house / "notebooks/data"]
    assert run_of("my_run") == tmp_path / "else where/my_run"
    assert run_of("") == tmp_path / "else where/runs/lab-smoke-smears"


@pytest.mark.parametrize("unwritable", ["", "data", "runs"])
def test_where_the_checkout_cannot_be_written_the_users_own_folder_is_taken_and_named_once(
    house, tmp_path, monkeypatch, capsys, unwritable
):
    for folder in ("data", "runs"):
        (house / folder).mkdir()
    denied = house / unwritable
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied)
    monkeypatch.setattr(paths, "user_data_path", lambda *_, **__: tmp_path / "mine")
    assert paths.data_folders()[0] == tmp_path / "mine/data" and not capsys.readouterr().err
    assert paths.data_folder() == tmp_path / "mine/data" and paths.runs_folder() == tmp_path / "mine/runs"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path / "mine") in said and paths.HOME in said
    monkeypatch.setenv(paths.HOME, str(house))
    assert paths.runs_folder() == house / "runs" and not capsys.readouterr().err


def test_a_user_who_does_not_exist_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.candidates("~nobody-of-that-name/x")[0] == tmp_path / "~nobody-of-that-name/x"
    assert paths.expanded("~") == Path.home()
