"""Several processes that train one network: what they exchange, and how one notices that another has ended.

Every function works in a single process as well, so that its callers need not ask how many there are.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from ssdlib.common.errors import ConfigError

T = TypeVar("T")

LOST = (
    "connection closed", "connection reset", "connection refused", "broken pipe", "gloo", "nccl", "timed out"
)  # fmt: skip
"""Words of the backends' errors, in small letters, where the process at the other end is gone."""


def rank_and_count() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) unless torchrun or its like started it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def launched_as() -> tuple[int, int]:
    """This process's rank and the number of processes that torchrun or its like started, connected or not."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def leave() -> None:
    """Disconnect from the other processes, if any: they complain about one that just ends."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def gather(value: T) -> list[T]:
    """The `value` of every process (anything that pickles), in order of rank. All must call it."""
    _, count = rank_and_count()
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    distributed.all_gather_object(values, value)
    return values


def any_process(value: bool, device: torch.device) -> bool:
    """Whether `value` is true in any of the processes. All must call it."""
    if rank_and_count()[1] == 1:
        return value
    count = torch.tensor([int(value)], device=device)
    distributed.all_reduce(count)
    return count.item() > 0


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process is no longer there."""
    if rank_and_count()[1] == 1:
        return False
    if isinstance(error, distributed.DistError):
        return True
    return any(word in str(error).lower() for word in LOST)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let the BatchNorm layers inside `model` use the batch of all processes, in place.

    Each process holds a part of the batch; statistics of parts would make the training depend on how many
    processes there are. Raises ConfigError on CPUs, for which PyTorch has no synchronized BatchNorm.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        raise ConfigError(
            "several CPU processes cannot train a network with BatchNorm, whose statistics PyTorch shares on "
            "GPUs alone. Use one process with all cores, or a network without BatchNorm "
            "(--set recipe=original --set recipe.initial_weights=scratch)."
        )
