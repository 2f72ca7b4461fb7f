"""Training states survive kills, full disks and damage, or say so."""

import os
import pickle
import random

import pytest
import torch

from ssdlib.common.errors import CheckpointError
from ssdlib.training import checkpoints
from ssdlib.training.checkpoints import check_same_run, digest, load_state, read_state, save_state


def state(step=1):
    torch.manual_seed(step)
    weights = torch.rand(64, 3, 3, 3).to(memory_format=torch.channels_last)
    return {
        "step": step,
        "model": {"conv.weight": weights, "seen": torch.tensor(step)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "ema": None,
    }


@pytest.mark.parametrize(
    "left, right",
    [
        ({}, []),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([torch.zeros(2)], [torch.zeros(2, 1)]),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.int32)]),
        ([torch.tensor(0.0)], [torch.tensor(1e-38)]),
        ([[1], 2], [[1, 2]]),
        ({"a": None}, {"a": 0}),
    ],
    ids=str,
)
def test_digest_tells_apart(left, right):
    assert digest(left) != digest(right)
    assert digest(left) == digest(left)


def test_digest_ignores_the_order_of_bytes_in_memory():
    weights = torch.rand(2, 3, 4, 4)
    assert digest([weights]) == digest([weights.to(memory_format=torch.channels_last)])


def test_round_trip_keeps_values_and_memory_format(tmp_path):
    save_state(tmp_path, state())
    loaded, complaints = load_state(tmp_path)
    assert complaints == [] and digest(loaded) == digest(state())
    assert loaded["model"]["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["state"]["step"] == 1


def test_nothing_saved_is_no_error(tmp_path):
    assert load_state(tmp_path / "missing") == (None, [])


def test_the_one_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, state(step))
    assert read_state(tmp_path / "last.pt")["step"] == 3
    assert read_state(tmp_path / "previous.pt")["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit_of_a_tensor(path):
    content = bytearray(path.read_bytes())
    # Change the stored number in place; torch's own reader does not notice.
    needle = state(2)["model"]["conv.weight"].permute(0, 2, 3, 1).contiguous().numpy().tobytes()[:16]
    content[content.index(needle)] ^= 1
    path.write_bytes(content)


def put_other_tensors(path):
    torch.save({"weights": torch.zeros(3)}, path)


def put_code(path):
    path.write_bytes(pickle.dumps(os.system, protocol=2))


DAMAGE = [empty, truncate, flip_a_bit_of_a_tensor, put_other_tensors, put_code]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_state_is_found_and_the_previous_used(tmp_path, damage):
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    damage(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        read_state(tmp_path / "last.pt")
    loaded, complaints = load_state(tmp_path)
    assert loaded["step"] == 1 and len(complaints) == 1 and "last.pt" in complaints[0]


def test_all_damaged_names_them_and_the_remedy(tmp_path):
    save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    truncate(tmp_path / "last.pt")
    truncate(tmp_path / "previous.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt.*previous\.pt.*Start again"):
        load_state(tmp_path)


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_while_changing_places(tmp_path, monkeypatch, renames):
    """After the new file is whole, a kill before or between the two renames loses nothing."""
    save_state(tmp_path, state(1))

    class Killed(BaseException):
        pass

    replace, done = checkpoints.Path.replace, []

    def die(self, target):
        if self.suffix == ".pt":  # not the temporary file that becomes next.pt
            if len(done) == renames:
                raise Killed
            done.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Path, "replace", die)
        with pytest.raises(Killed):
            save_state(tmp_path, state(2))
    assert load_state(tmp_path)[0]["step"] == 2
    save_state(tmp_path, state(3))
    assert load_state(tmp_path)[0]["step"] == 3 and not (tmp_path / "next.pt").exists()


def test_what_differs_is_listed():
    check_same_run({"classes": ["WBC"]}, {"classes": ("WBC",)})
    with pytest.raises(CheckpointError, match=r"recipe\.lr was 1, is 2; seed was 0, is None\. Use"):
        check_same_run({"recipe": {"lr": 1, "n": 3}, "seed": 0}, {"recipe": {"lr": 2, "n": 3}})


def test_a_byte_changed_anywhere_is_found_or_changes_nothing(tmp_path):
    """Some bytes of the archive, such as times and padding, mean nothing; no other change may pass."""
    save_state(tmp_path, state(1))
    path = tmp_path / "last.pt"
    sound, generator, found = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        content = bytearray(sound)
        content[generator.randrange(len(sound))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            assert digest(read_state(path)) == digest(state(1))
        except CheckpointError:
            found += 1
    assert found > 100


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path):
    save_state(tmp_path, state(1))
    (tmp_path / ".next.pt.abc.tmp").write_bytes(b"half")
    checkpoints.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    checkpoints.remove_leftovers(tmp_path / "missing")
