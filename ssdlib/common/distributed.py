"""Several processes that train one network: what they must share, and how one notices another's death.

Everything here is a plain answer in a single process, so callers need not ask how many there are.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

T = TypeVar("T")

LOST = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
    "timed out",
)
"""What the backends' errors say, in small letters, when a process at the other end is gone."""


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) outside torchrun and its like."""
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
    """Every process's `value` (anything that pickles), in order of their numbers. All must call it."""
    _, count = rank_and_count()
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    distributed.all_gather_object(values, value)
    return values


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process is no longer there."""
    if rank_and_count()[1] == 1:
        return False
    if isinstance(error, distributed.DistError):
        return True
    return any(word in str(error).lower() for word in LOST)


# --- BatchNorm -------------------------------------------------------------------------------------------


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let the BatchNorm layers inside `model` see the batch of all processes, in place.

    Each process holds a part of the batch; statistics of parts would make the training depend on how many
    processes there are. Names and values of the state stay as they are.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.BatchNorm2d:
                setattr(module, name, SharedBatchNorm2d.like(layer))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes; PyTorch's own `SyncBatchNorm` is for GPUs only.

    In evaluation, and in a single process, it is `nn.BatchNorm2d`. Shares may differ in size.
    """

    @classmethod
    def like(cls, layer: nn.BatchNorm2d) -> SharedBatchNorm2d:
        """The same layer with the same tensors."""
        shared = cls(layer.num_features, layer.eps, layer.momentum)
        shared.weight, shared.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(layer.training)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, zero mean and unit spread over the N of all processes."""
        if not self.training or rank_and_count()[1] == 1:
            return super().forward(features)
        mean, variance, count = shared_moments(features.detach().to(self.weight.dtype))
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return _Normalize.apply(features, self.weight, self.bias, mean, variance, count, self.eps)


def shared_moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number of values a channel (0-dim.) of (N, C, H, W) over all processes.

    Each process sends its count, mean and centered second moment: sums of squares would lose the variance of
    channels whose mean is large. Chan, Golub and LeVeque 1983, "Algorithms for computing the
    sample variance".
    """
    mean = features.mean(dim=(0, 2, 3))
    squares = (features - mean[:, None, None]).square_().sum(dim=(0, 2, 3))
    count = torch.full_like(mean, features.numel() / features.shape[1])
    own = torch.stack([count, mean, squares])
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    counts, means, squares = torch.stack(parts, dim=1)  # (processes, C) each
    total = counts.sum(dim=0)
    mean = (counts * means).sum(dim=0) / total
    squares = (squares + counts * (means - mean).square()).sum(dim=0)
    return mean, squares / total, total[0]


class _Normalize(torch.autograd.Function):
    """Batch normalization by given moments that depend on the input. Ioffe and Szegedy 2015, section 3."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(features, weight, mean, scale, count)
        return F.batch_norm(features, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        centered = features.to(mean.dtype) - mean[:, None, None]
        own_bias = gradient.sum(dim=(0, 2, 3))
        own_weight = (gradient * centered).sum(dim=(0, 2, 3)) * scale
        # The moments depend on every process's features, hence so do all the losses.
        sums = torch.stack([own_bias, own_weight])
        distributed.all_reduce(sums)
        by_mean, by_variance = sums / count
        slope = (by_variance * scale)[:, None, None]
        toward = (gradient - by_mean[:, None, None] - centered * slope) * (weight * scale)[:, None, None]
        return toward.to(features.dtype), own_weight, own_bias, None, None, None, None
