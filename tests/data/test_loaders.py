"""Batches must not depend on who makes them, or when."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ssdlib.common.errors import ConfigError
from ssdlib.config import AugmentConfig
from ssdlib.data.loaders import EpochBatches, choose_workers, collate, make_loader, seed_for, set_epoch
from ssdlib.data.transforms import train_transform


class Specks(Dataset):
    """Small random images with k boxes each, augmented."""

    def __init__(self, count=7):
        self.count = count
        self.transform = train_transform(AugmentConfig(), size=32)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((3, 48, 64), 10 * index, dtype=torch.uint8)
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(index, 1)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(48, 64)),
            "labels": torch.ones(index, dtype=torch.int64),
            "image_id": f"speck-{index}",
        }
        return self.transform(tv_tensors.Image(image), target)


def content(loader):
    return [
        (images, [(t["image_id"], t["boxes"].tolist(), t["labels"].tolist()) for t in targets])
        for images, targets in loader
    ]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("count, batches, dropped", [(0, 0, 0), (2, 1, 1), (3, 1, 1), (7, 3, 2)])
def test_number_of_batches(count, batches, dropped):
    assert len(make_loader(Specks(count), 3, shuffle=True, seed=0, workers=0)) == batches
    loader = make_loader(Specks(count), 3, shuffle=True, seed=0, workers=0, drop_last=True)
    assert len(loader) == dropped == len(list(loader))


def test_same_batches_for_any_number_of_workers_and_epochs_apart():
    alone = make_loader(Specks(), 3, shuffle=True, seed=5, workers=0)
    helped = make_loader(Specks(), 3, shuffle=True, seed=5, workers=2)
    first = content(alone)
    assert same(first, content(helped)) and same(first, content(alone))
    for loader in (alone, helped):
        set_epoch(loader, 1)
    second = content(alone)
    assert same(second, content(helped)), "persistent workers must follow the epoch"
    assert not same(first, second)
    assert sorted(t[0] for _, ts in second for t in ts) == sorted(f"speck-{i}" for i in range(7))
    assert not same(first, content(make_loader(Specks(), 3, shuffle=True, seed=6, workers=0)))


def test_an_epoch_may_begin_in_the_middle():
    loader = make_loader(Specks(), 2, shuffle=True, seed=1, workers=0)
    set_epoch(loader, 4)
    whole = content(loader)
    set_epoch(loader, 4, start=2)
    assert same(whole[2:], content(loader)) and len(loader) == 2


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_the_same_global_batches(drop_last):
    def batches(**share):
        return list(EpochBatches(11, 4, shuffle=True, seed=3, drop_last=drop_last, **share))

    alone = batches()
    parts = [batches(process=k, processes=2) for k in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in alone]


def test_a_batch_too_small_to_share_is_refused():
    with pytest.raises(ConfigError, match="batch of 1 images cannot be shared by 2"):
        EpochBatches(4, 1, shuffle=False, seed=0, processes=2)


def test_making_a_batch_leaves_the_random_state_of_others_alone():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    loader = make_loader(Specks(), 3, shuffle=True, seed=0, workers=0)
    loader.dataset[0, 5]
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_unshuffled_keeps_the_order():
    loader = make_loader(Specks(5), 2, shuffle=False, seed=0, workers=0)
    assert [t[0] for _, ts in content(loader) for t in ts] == [f"speck-{i}" for i in range(5)]


def test_collate_stacks_images_and_keeps_targets_apart():
    images, targets = collate([Specks()[k] for k in (0, 2)])
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert targets[0]["boxes"].shape == (0, 4) and len(targets[1]["labels"]) <= 2
    assert type(targets[1]["boxes"]) is torch.Tensor


def test_seeds_differ_in_every_key():
    seeds = {seed_for(*keys) for keys in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0,)]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("cores, workers", [(1, 0), (4, 0), (5, 3), (64, 8)])
def test_automatic_workers(monkeypatch, cores, workers):
    monkeypatch.setattr("ssdlib.data.loaders.available_cores", lambda: cores)
    assert choose_workers("auto") == workers
    assert choose_workers(3) == 3


@pytest.mark.parametrize(
    "megabytes, images, processes, workers",
    [
        (1000, 8, 1, 8),
        (64, 8, 1, 2),  # Docker's default: 8 workers with four batches of 2.2 MB each would need 71 MB
        (64, 2, 1, 8),
        (64, 64, 1, 0),
        (64, 2, 4, 2),
        (0, 8, 1, 0),
    ],
)
def test_no_more_workers_than_shared_memory_has_room_for(
    monkeypatch, capsys, megabytes, images, processes, workers
):
    """A worker that finds none left would make the training wait for good."""
    monkeypatch.setattr("ssdlib.data.loaders.available_cores", lambda: 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    usage = SimpleNamespace(free=megabytes * 10**6)
    monkeypatch.setattr("ssdlib.data.loaders.shutil.disk_usage", lambda path: usage)
    assert choose_workers("auto", images) == choose_workers(8, images) == workers
    assert choose_workers(0, images) == 0
    said = capsys.readouterr().err
    assert (f"only {megabytes} MB free: {workers} loader workers" in said and "--shm-size" in said) == (
        workers < 8
    )


def test_a_loader_asks_for_the_batch_of_one_process(monkeypatch):
    asked = []
    monkeypatch.setattr("ssdlib.data.loaders.choose_workers", lambda *given: asked.append(given) or 0)
    make_loader(Specks(5), 4, shuffle=True, seed=0, process=1, processes=2)
    make_loader(Specks(5), 8, shuffle=True, seed=0, workers=3)
    assert asked == [("auto", 2), (3, 5)]


def test_where_there_is_no_such_memory_workers_are_not_limited(monkeypatch, tmp_path):
    monkeypatch.setattr("ssdlib.data.loaders.SHARED_MEMORY", tmp_path / "none")
    assert choose_workers(8, 10**9) == 8
