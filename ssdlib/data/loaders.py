"""Batches that are the same for any number of workers, processes and interruptions.

What augmentation draws for a sample depends on (seed, epoch, index) alone, and the order of an epoch on
(seed, epoch), so a batch can be made anywhere, at any time, and again.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssdlib.common.distributed import launched_as
from ssdlib.common.errors import ConfigError
from ssdlib.common.terminal import say
from ssdlib.common.threads import available_cores

Target = dict[str, Any]
Batch = tuple[Tensor, list[Target]]


SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps the memory through which workers hand over their batches; Docker's default is 64 MB."""

PREFETCH = 4
"""Batches that each worker prepares ahead."""

_IMAGE_BYTES = 3 * 300 * 300 + 2 * 4096
"""Of a sample in shared memory: the image as the network takes it, and a page each for boxes and labels."""


def seed_for(*keys: int) -> int:
    """One well mixed 63-bit seed out of several small numbers such as (seed, epoch, index)."""
    # The count goes in too: SeedSequence takes (1,) and (1, 0) for the same.
    return int(np.random.SeedSequence([len(keys), *keys]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class SeededDataset(Dataset):
    """Gives `dataset[index]` for the key (epoch, index), its random draws decided by (seed, epoch, index).

    The epoch comes with the key because workers that live on hold a copy of this object.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = key
        outside = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state others would share)
        try:
            with torch.random.fork_rng(devices=[]):
                seed = seed_for(self.seed, epoch, index)
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                return self.dataset[index]
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002


class EpochBatches(Sampler):
    """Batches of keys (epoch, index): the order of `epoch` from batch `start` on, this process's share.

    Each batch of `batch_size` is dealt out over `processes`, of which this is number `process`, so that the
    global batches do not depend on how many share the work. Set `epoch` and `start` between two epochs.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if (smallest := min(batch_size, length)) < processes > 1:
            raise ConfigError(f"a batch of {smallest} images cannot be shared by {processes} processes")
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.epoch, self.start = 0, 0
        # Fewer images than one batch make one small batch rather than none.
        self.drop_last = drop_last and length >= batch_size
        self.process, self.processes = process, processes

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order(self.epoch)
        for batch in range(self.start, self.batches):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in indices[self.process :: self.processes]]

    def whole_batch(self, epoch: int, batch: int) -> list[int]:
        """Indices of one batch of one epoch (both from 0), the shares of all processes together."""
        return self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng(seed_for(self.seed, epoch)).shuffle(order)
        return order


def collate(samples: list[tuple[Tensor, Target]]) -> Batch:
    """Samples -> images (N, 3, size, size) uint8 and the N targets as they are, boxes as plain tensors."""
    images = torch.stack([image.as_subclass(Tensor) for image, _ in samples])
    targets = [{**target, "boxes": target["boxes"].as_subclass(Tensor)} for _, target in samples]
    return images, targets


def choose_workers(workers: int | str = "auto", images: int = 0) -> int:
    """The number of worker processes that prepare batches of `images`.

    "auto" is none where the network needs all (<= 4) cores. They are never more than shared memory has room
    for: a worker that finds none left makes the training wait for good. Half of what is free is used; fewer
    workers than wanted are said on stderr.
    """
    cores = available_cores()
    wanted = int(workers) if workers != "auto" else 0 if cores <= 4 else min(8, cores - 2)
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not Linux
        return wanted
    room, batch = free / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), images * _IMAGE_BYTES
    # Three more batches are with the process that trains: one in use, two on their way.
    if batch * (PREFETCH * wanted + 3) <= room:
        return wanted
    fitting = int(max(room / batch - 3, 0) / PREFETCH)
    if fitting < wanted and launched_as()[0] == 0:
        say(
            f"{SHARED_MEMORY} has only {free / 1e6:.0f} MB free: {fitting} loader workers are used, not "
            f"{wanted}. A container gets more by --shm-size=1g (or --ipc=host).",
            file=sys.stderr,
        )
    return min(fitting, wanted)


def make_loader(
    dataset: Dataset, batch_size: int, *, seed: int, workers: int | str = "auto", **order: Any
) -> DataLoader:
    """A loader of (images uint8 (N, 3, size, size), list of N targets) over a dataset with a transform.

    The same arguments give the same batches, bit for bit, for any number of workers. `set_epoch` moves on.
    `order` is what `EpochBatches` takes: shuffle, and for some uses drop_last, process and processes.
    `workers` is a number or "auto", see `choose_workers`.
    """
    batches = EpochBatches(len(dataset), batch_size, seed=seed, **order)
    count = choose_workers(workers, math.ceil(min(batch_size, len(dataset)) / batches.processes))
    return DataLoader(
        SeededDataset(dataset, seed),
        batch_sampler=batches,
        num_workers=count,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=count > 0,
        prefetch_factor=PREFETCH if count else None,
    )


def set_epoch(loader: DataLoader, epoch: int, start: int = 0) -> None:
    """Make the next pass over `loader` that of `epoch` (from 0), beginning with batch `start`."""
    loader.batch_sampler.epoch = epoch
    loader.batch_sampler.start = start
