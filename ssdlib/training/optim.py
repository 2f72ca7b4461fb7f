"""Learning-rate schedule, optimizer, clipping of gradients, and the average of the weights."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""What an optimizer keeps of each tensor: a number called step, the others of the tensor's own shape."""


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer over `parameter_groups`."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)


def clip_gradients(model: nn.Module, max_norm: float) -> dict[str, Tensor]:
    """The norms of the gradients, which are then scaled so that their common norm is at most `max_norm`.

    The norm of all is under "gradient norm", that of each part of the network under the part's name, which
    tells where a gradient went wrong first. They stay on the device: reading them would wait for a GPU.
    """
    gradients = {
        name: [p.grad for p in part.parameters() if p.grad is not None]
        for name, part in model.named_children()
    }
    norms = {name: nn.utils.get_total_norm(grads) for name, grads in gradients.items() if grads}
    total = nn.utils.get_total_norm(list(chain(*gradients.values())))
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, total)
    return {"gradient norm": total, **norms}


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the network's weights, BatchNorm's running statistics included.

    The weights of the last steps differ by noise that an average takes off, so it is the average that is
    evaluated and saved. It begins with the initial weights; `update_parameters(model)` after each step makes
    it decay * average + (1 - decay) * weights. After step n (from 1) the decay is at most n / (n + 9), so
    that the random initial weights are soon forgotten.
    """

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        if averages[0].is_floating_point():
            steps = count.item()
            get_ema_multi_avg_fn(min(decay, steps / (steps + 9)))(averages, weights, count)
        else:  # BatchNorm's number of batches
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True).eval().requires_grad_(False)
    averaged.update_parameters(model)
    return averaged
