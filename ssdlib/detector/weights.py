"""Initial weights: random, of torchvision's networks, or of a checkpoint. Reading them runs no code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdlib.common.errors import CheckpointError, ConfigError
from ssdlib.config import ModelConfig
from ssdlib.detector.model import SSD300
from ssdlib.detector.model_file import SHIPPED_NAMES, load_model, shipped_weights

StateDict = Mapping[str, Tensor]

COCO_MEAN = (0.48235, 0.45882, 0.40784)
COCO_STD = (1 / 255, 1 / 255, 1 / 255)
"""torchvision's SSD300 was trained on images normalized like this (Caffe's VGG16 before it)."""


def build_model(
    config: ModelConfig | None = None, initial_weights: str | Path = "scratch", seed: int = 0
) -> SSD300:
    """A network that is ready to train.

    initial_weights: `scratch`; `imagenet` (torchvision's VGG16 in the backbone); `coco` (torchvision's
    SSD300, all but the class heads); or a checkpoint file of this project, whose heads are kept where they
    fit the priors, those of the classes by name (see `remake_class_heads`); `shipped` and `bccd` are such
    files. The rest is initialized from `seed`. All but the first two bring their own normalization of the
    images, which replaces the config's.
    Raises ConfigError where config and weights cannot go together, CheckpointError for a bad file.
    """
    config, stored = config or ModelConfig(), None
    if initial_weights == "coco":
        config = config.replace(mean=COCO_MEAN, std=COCO_STD)
    elif initial_weights not in ("scratch", "imagenet"):
        path = shipped_weights(str(initial_weights)) if initial_weights in SHIPPED_NAMES else initial_weights
        stored = load_model(path)
        config = config.replace(mean=stored.config.mean, std=stored.config.std)
    model = SSD300(config)
    initialize(model, seed)
    if stored is not None:
        _load_checkpoint(model, stored, initial_weights)
    elif initial_weights != "scratch":
        _load_torchvision(model, initial_weights)
    return model


def _load_checkpoint(model: SSD300, stored: SSD300, name: str | Path) -> None:
    """Take over what fits of the network `stored`."""
    theirs, ours = (f"batch_norm={c.batch_norm}, width={c.width}" for c in (stored.config, model.config))
    if theirs != ours:
        raise ConfigError(
            f"the initial weights ({name}) are a network with {theirs}; asked for was {ours}. Keep "
            "recipe.model as the weights have it, or train another network from nothing: "
            "--set recipe.initial_weights=scratch"
        )
    state = stored.state_dict()
    _load_fitting(model, {**_but_class_heads(state), **remake_class_heads(state, stored.config, model)})


def _load_torchvision(model: SSD300, name: str | Path) -> None:
    """Take over torchvision's VGG16 (imagenet) or its SSD300 (coco)."""
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights
    from torchvision.models.detection import SSD300_VGG16_Weights

    batch_norm = model.config.batch_norm
    if model.config.width != 1:
        raise ConfigError(f"{name} weights need width 1, not {model.config.width}; start from scratch")
    if name == "imagenet":
        load_imagenet(
            model,
            download_weights(VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1),
        )
    elif batch_norm:
        raise ConfigError("torchvision's COCO SSD300 has no BatchNorm: use a model with batch_norm=False")
    else:
        state = convert_torchvision_ssd(download_weights(SSD300_VGG16_Weights.COCO_V1))
        _load_fitting(model, _but_class_heads(state))


def download_weights(weights: Any) -> StateDict:
    """The tensors of one of torchvision's weights, downloaded once and checked. Raises CheckpointError."""
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        # No network (URLError is an OSError), a wrong hash, or a damaged file in torch's cache.
        raise CheckpointError(
            f"cannot download or read {weights}: {error}. Go online, put the file into torch's hub folder "
            f"({torch.hub.get_dir()}/checkpoints; delete a damaged one there), or start with "
            "initial_weights='scratch'."
        ) from error


def initialize(model: SSD300, seed: int = 0) -> None:
    """Initialize every layer from `seed`, the same on any device and whatever else drew random numbers.

    Convolutions before a ReLU keep the variance of what flows through them (He et al. 2015). The heads start
    small and near indifference: every class about as likely, every box its prior.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = {*model.loc_heads.modules(), *model.class_heads.modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module in heads:
                nn.init.normal_(module.weight, std=0.01, generator=generator)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()


def _load_fitting(model: SSD300, state: StateDict) -> None:
    """Load what fits; heads for other priors stay as initialized."""
    own = model.state_dict()
    fitting = {n: tensor for n, tensor in state.items() if n in own and own[n].shape == tensor.shape}
    missing = [name for name in own if name not in fitting and not _is_head(name)]
    if missing:
        raise CheckpointError(f"the weights lack {len(missing)} tensors of this network: {missing[:3]} ...")
    model.load_state_dict(fitting, strict=False)


def _but_class_heads(state: StateDict) -> StateDict:
    # By name, not by shape: other classes may be as many as ours.
    return {name: tensor for name, tensor in state.items() if not name.startswith("class_heads.")}


def remake_class_heads(state: StateDict, stored: ModelConfig, model: SSD300) -> dict[str, Tensor]:
    """The class heads of `state`, a network of the config `stored`, remade for the classes of `model`.

    A head has one output for each prior of a location and each class: filters (in, 3, 3) and a bias. Those of
    background and of classes that bear the same name are taken over, wherever the class stands in the list;
    a class without a namesake keeps what `model` has for it, which says next to nothing about it. So old
    classes are known from the first step on, and a new one starts as rare. Heads for other priors are left
    out.
    """
    known = {name: row for row, name in enumerate(stored.class_names, 1)}
    rows = {row: known[name] for row, name in enumerate(model.config.class_names, 1) if name in known}
    rows[0] = 0  # background
    own, remade = model.state_dict(), {}
    for name in (n for n in state if n.startswith("class_heads.")):
        # (priors of a location * classes, ...) -> (priors, classes, ...)
        theirs = state[name].unflatten(0, (-1, stored.num_classes))
        ours = own[name].clone().unflatten(0, (-1, model.config.num_classes))
        if theirs.shape[0] == ours.shape[0] and theirs.shape[2:] == ours.shape[2:]:
            ours[:, list(rows)] = theirs[:, list(rows.values())]
            remade[name] = ours.flatten(0, 1)
    return remade


def _is_head(name: str) -> bool:
    return name.startswith(("loc_heads.", "class_heads."))


# --- torchvision's layouts -------------------------------------------------------------------------------


def _vgg_layers(model: SSD300) -> Iterator[tuple[str, nn.Module]]:
    """conv and norm layers of conv1_1 ... conv5_3 by full name, in torchvision's order."""
    for part in ("to_conv4_3", "to_conv7"):
        for name, layer in getattr(model.backbone, part).named_children():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d) and name[4] not in "67":
                yield f"backbone.{part}.{name}", layer


def load_imagenet(model: SSD300, state: StateDict) -> None:
    """Put a torchvision `vgg16` or `vgg16_bn` state dict into the backbone, in place.

    fc6 (4096, 512*7*7) becomes conv6 (1024, 512, 3, 3) by keeping each third row and column of the 7x7 grid,
    which dilation 6 spreads again, and each fourth output; fc7 becomes conv7 likewise. SSD, section 3.
    """
    features = [name for name in state if name.startswith("features.")]
    positions = sorted({int(name.split(".")[1]) for name in features})
    layers = list(_vgg_layers(model))
    if len(positions) != len(layers) or "classifier.0.weight" not in state:
        raise CheckpointError(
            f"these are not the weights of torchvision's vgg16{'_bn' if model.config.batch_norm else ''}: "
            f"{len(positions)} feature layers where {len(layers)} are needed, or no classifier"
        )
    new = {}
    for (name, layer), position in zip(layers, positions, strict=True):
        for key in layer.state_dict():
            source = f"features.{position}.{key}"
            if source in state:
                new[f"{name}.{key}"] = state[source]
        if isinstance(layer, nn.BatchNorm2d):
            # Convolutions followed by BatchNorm have no bias here: what a bias adds, the mean takes off.
            new[f"{name}.running_mean"] = (
                state[f"features.{position}.running_mean"] - state[f"features.{position - 1}.bias"]
            )
    fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"].reshape(4096, 4096, 1, 1)[::4, ::4]
    new |= {"backbone.to_conv7.conv6.weight": fc6, "backbone.to_conv7.conv7.weight": fc7}
    if not model.config.batch_norm:
        new["backbone.to_conv7.conv6.bias"] = state["classifier.0.bias"][::4]
        new["backbone.to_conv7.conv7.bias"] = state["classifier.3.bias"][::4]
    _, unexpected = model.load_state_dict(new, strict=False)
    if unexpected:
        raise CheckpointError(f"tensors without a place in this network: {unexpected[:3]} ...")


def convert_torchvision_ssd(state: StateDict) -> dict[str, Tensor]:
    """Rename the tensors of torchvision's `ssd300_vgg16` to ours; any number of classes."""
    blocks = zip((2, 2, 3, 3), ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21)), strict=True)
    names = {}
    for stage, (_, positions) in enumerate(blocks, start=1):
        for i, position in enumerate(positions, start=1):
            names[f"backbone.features.{position}"] = f"backbone.to_conv4_3.conv{stage}_{i}"
    for i, position in enumerate((1, 3, 5), start=1):
        names[f"backbone.extra.0.{position}"] = f"backbone.to_conv7.conv5_{i}"
    names["backbone.extra.0.7.1"] = "backbone.to_conv7.conv6"
    names["backbone.extra.0.7.3"] = "backbone.to_conv7.conv7"
    for block in range(4):
        names[f"backbone.extra.{block + 1}.0"] = f"extras.blocks.{block}.conv{block + 8}_1"
        names[f"backbone.extra.{block + 1}.2"] = f"extras.blocks.{block}.conv{block + 8}_2"
    for level in range(6):
        names[f"head.regression_head.module_list.{level}"] = f"loc_heads.convs.{level}"
        names[f"head.classification_head.module_list.{level}"] = f"class_heads.convs.{level}"
    converted = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        if key == "backbone.scale_weight":
            converted["norm4_3.scale"] = tensor
        elif layer in names:
            converted[f"{names[layer]}.{kind}"] = tensor
        else:
            raise CheckpointError(f"{key!r} is no tensor of torchvision's ssd300_vgg16")
    return converted
