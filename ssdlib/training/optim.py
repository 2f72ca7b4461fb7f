"""How the weights move: learning-rate schedule, optimizer, and their average."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ssdlib.config import Recipe


def learning_rate_factor(step: int, total_steps: int, recipe: Recipe) -> float:
    """The learning rate at `step` (from 0), as a fraction of the recipe's.

    It climbs evenly over `warmup_steps` (at most half of the training), then falls along half a cosine to
    1 %, or by a tenth at each milestone.
    """
    warmup = min(recipe.warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "steps":
        return 0.1 ** sum(step >= milestone * total_steps for milestone in recipe.step_milestones)
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters for the optimizer: only weights of convolutions are decayed.

    Decay would pull the scales of BatchNorm and L2Norm to zero without making the network any simpler.
    """
    decayed, plain, biases = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            else:
                (decayed if isinstance(module, nn.Conv2d | nn.Linear) else plain).append(parameter)
    rate = recipe.learning_rate
    groups = [
        {"params": decayed, "lr": rate, "weight_decay": recipe.weight_decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
        {"params": biases, "lr": rate * recipe.bias_lr_factor, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer over `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> dict[str, Tensor]:
    """Scale all gradients so that their common norm is at most `max_norm`.

    Returns the norms before: of all under "gradient norm", and of each part of the network by its name, to
    see which part went wrong first. Nothing is read, so a GPU need not be waited for.
    """
    parts = [(name, p) for name, part in model.named_children() for p in part.parameters()]
    parts = [(name, p) for name, p in parts if p.grad is not None]
    norms = torch.stack(torch._foreach_norm([p.grad for _, p in parts]))
    total = torch.linalg.vector_norm(norms)
    nn.utils.clip_grads_with_norm_([p for _, p in parts], max_norm, total)
    sizes = Counter(name for name, _ in parts)
    by_part = zip(sizes, norms.split(list(sizes.values())), strict=True)
    return {"gradient norm": total, **{name: torch.linalg.vector_norm(part) for name, part in by_part}}


class Ema:
    """Exponential moving average of a network's weights, BatchNorm's running statistics included.

    The weights of the last steps differ by noise that an average takes off; it is the average that is
    evaluated and saved. At the start, step n (from 0), it follows at (1 + n) / (10 + n) at most, so that
    the random initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """average = decay * average + (1 - decay) * weights; whole numbers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = [], []
        for own, new in zip(_tensors(self.module), _tensors(model), strict=True):
            if own.is_floating_point():
                averaged.append(own)
                current.append(new.detach())
            else:
                own.copy_(new)
        torch._foreach_lerp_(averaged, current, 1 - decay)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
