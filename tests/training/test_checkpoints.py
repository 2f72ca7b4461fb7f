"""Training states survive kills, full disks and damage, or say so."""

import json
import os
import pickle
import random
import shutil
import signal
import socket
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ssdlib.common.errors import CheckpointError, SsdError, TrainingError
from ssdlib.training import checkpoints
from ssdlib.training.checkpoints import alone, check_same_run, digest, load_state, read_state, save_state
from tests.spawned import Process


def state(step=1):
    torch.manual_seed(step)
    weights = torch.rand(64, 3, 3, 3).to(memory_format=torch.channels_last)
    return {
        **dict.fromkeys(checkpoints.PARTS),
        "identity": {"seed": 0},
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


def put(content):
    content = {"format": checkpoints.FORMAT, **content}
    return lambda path: torch.save(content, path)


def summed(value):
    return put({"state": value, "sha256": digest(value)})


def claim_four_terabytes(path):
    torch.save({"state": torch.zeros(1).expand(10**12)}, path)


def compress(path):
    with zipfile.ZipFile(path) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)
        archive.writestr("bomb", bytes(10**7))


def rewrite_pickle(content, before=b""):
    """Another pickle in the archive, or something before the archive, where former versions had theirs."""

    def rewrite(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        path.write_bytes(before)
        with zipfile.ZipFile(path, "a") as archive:
            for name, part in parts.items():
                archive.writestr(name, content if content and name.endswith("data.pkl") else part)

    return rewrite


TEN_GIGABYTES = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R."
LISTS_IN_LISTS = (
    b"\x80\x02]q\x00" + b"".join(b"]q%c(" % (n + 1) + b"h%c" % n * 10 + b"e" for n in range(40)) + b"."
)
DEEP = b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."

DAMAGE = [
    *map(rewrite_pickle, (TEN_GIGABYTES, LISTS_IN_LISTS, DEEP)),
    rewrite_pickle(None, pickle.dumps({"a": 1})),
    empty,
    truncate,
    flip_a_bit_of_a_tensor,
    put_other_tensors,
    put_code,
    claim_four_terabytes,
    compress,
]
FOREIGN = [
    put({"state": {**state(), "model": {"conv.weight": torch.eye(3).to_sparse()}}, "sha256": ""}),
    put({"state": {**state(), "model": {"conv.weight": torch.empty(9, device="meta")}}, "sha256": ""}),
    put({}),
    put({"state": state()}),
    summed([1]),
    summed({}),
    summed({**state(), "identity": [1]}),
]


@pytest.mark.parametrize("damage", DAMAGE + FOREIGN)
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


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("room", [0, 1, 500, 1088, 5000, 8200, 9000])
def test_a_disk_that_is_full_after_some_bytes_is_said_in_a_sentence(tmp_path, room):
    """torch's writer raises an error of its own, of positions, where the file's says what is the matter."""
    import resource

    save_state(tmp_path, state(1))
    assert (tmp_path / "last.pt").stat().st_size > 9000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(SsdError, match=r"cannot write .*next\.pt: File too large\. Free some space"):
            save_state(tmp_path, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"] and load_state(tmp_path)[0]["step"] == 1


@pytest.mark.parametrize("lost", ["last.pt", "next.pt"])
def test_two_that_save_into_one_folder_lose_no_state(tmp_path, monkeypatch, lost):
    """The other one is between its two renames when this one begins with its own."""
    save_state(tmp_path, state(1))
    write = checkpoints.write_with

    def then_the_other(path, writer):
        write(path, writer)
        if lost == "last.pt":
            (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
        else:
            (tmp_path / "next.pt").rename(tmp_path / "last.pt")

    monkeypatch.setattr(checkpoints, "write_with", then_the_other)
    if lost == "last.pt":
        save_state(tmp_path, state(2))
    else:
        with pytest.raises(TrainingError, match=r"does another process train into this folder, too\?.*--run"):
            save_state(tmp_path, state(2))
    assert load_state(tmp_path)[0]["step"] == 2


# --- only one at a time ------------------------------------------------------------------------------------


def test_the_lock_names_who_has_it_and_ends(tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        with alone(run):
            about = json.loads((run / "training.lock").read_text())
            assert about["pid"] == os.getpid() and about["host"] == socket.gethostname()
            named = rf"run is being trained by process {os.getpid()} on .* since {about['since']}.*--run"
            with pytest.raises(TrainingError, match=named), alone(run):
                pytest.fail("two at once")
            with alone(shutil.copytree(run, tmp_path / "copy")):
                pass
            shutil.rmtree(tmp_path / "copy")
        assert list(run.iterdir()) == []


def test_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot write .*run"), alone(tmp_path / "run"):
        pytest.fail("there is no such folder")


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_where_nothing_can_be_locked_training_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with alone(tmp_path), alone(tmp_path):
        assert (tmp_path / "training.lock").exists()
    assert not (tmp_path / "training.lock").exists()


def hold(run):
    with alone(Path(run)):
        child = os.fork()  # as a loader's worker, which may outlive the process that is killed
        if child:
            (Path(run) / "worker").write_text(str(child))
        time.sleep(60)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_the_lock_ends_with_a_process_that_is_killed_whatever_it_has_started(tmp_path):
    process, worker = Process(tmp_path / "log", hold, str(tmp_path / "run")), tmp_path / "run/worker"
    process.wait_until(lambda: worker.exists() and worker.read_text())
    try:
        with (
            pytest.raises(TrainingError, match=f"by process {process.process.pid} "),
            alone(tmp_path / "run"),
        ):
            pytest.fail("two at once")
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        os.kill(int(worker.read_text()), 0)  # it lives
        with alone(tmp_path / "run"):
            pass
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(worker.read_text()), signal.SIGKILL)
