"""The suites that set ours beside a naive SSD300 and torchvision's; each returns a `Measurement`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.transforms.v2 import functional as F

from ssdlib.common.runtime import (
    choose_precision,
    instruction_sets,
    keep_freed_memory,
    return_freed_memory,
)
from ssdlib.common.signals import StopSignals
from ssdlib.common.tables import Table
from ssdlib.config import BCCD_CLASSES, RECIPES, ModelConfig
from ssdlib.data.images import read_image
from ssdlib.detector.model import SSD300
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.weights import build_model
from ssdlib.inference.predictor import Predictor
from ssdlib.training.trainer import Trainer
from tests.benchmarks import naive
from tests.benchmarks.common import Measurement, targets
from tests.benchmarks.timing import Bench, Timings

OURS, NAIVE, TORCHVISION = "ours", "naive", "torchvision"
MATRIX = "matrix product"
TUNED = ", our malloc setting"

NUM_CLASSES = len(BCCD_CLASSES) + 1
RATE = 1e-4
"""Learning rate: small enough that networks without BatchNorm stay finite from random weights."""
SURE_BACKGROUND = 6.0
"""Added to the background's logit for detection: like a trained network, it then calls few priors cells."""


def compared(suite: str, timings: Timings, *others: str) -> Measurement:
    """The timings of a suite, with the targets of how many times as long as ours the `others` take."""
    ratios = {
        f"{suite}: times as fast as {other}": timings.ratio(other, OURS) if timings.quiet else None
        for other in others
    }
    return Measurement(
        {"timings": timings.to_dict()}, [timings.table()], targets(ratios), timings.conditions()
    )


def training(bench: Bench) -> Measurement:
    """Seconds to train on an image: decoding or cache, augmentation, network, matching, loss, update.

    Ours is the original recipe: the same network and optimizer as the naive one's and torchvision's.
    Training of ours tells glibc to keep freed memory (`runtime.keep_freed_memory`), for the whole process.
    The others run as they would on their own, under glibc's own limits, and once more with our setting.
    """
    others = {NAIVE: _naive_training(bench), TORCHVISION: _torchvision_training(bench)}
    functions = {OURS: _our_training(bench), **others}
    if keep_freed_memory():
        functions |= {name: plain_malloc()(function) for name, function in others.items()}
        functions |= {name + TUNED: function for name, function in others.items()}
    product = MatrixProduct(bench.device)
    units = dict.fromkeys(functions, bench.batch) | {MATRIX: 1}
    timings = bench.take_turns("training, per image", functions | {MATRIX: product}, units)
    measured = compared("training", timings, NAIVE, TORCHVISION)
    share = measured.values["matrix"] = matrix_share(product, timings)
    measured.tables.append(matrix_table(share))
    names = {"cuda": "share of the matrix rate"}
    if "avx512_bf16" in (sets := instruction_sets()):
        names["cpu"] = f"share of the matrix rate, {'AMX' if 'amx_bf16' in sets else 'AVX-512'}"
    if name := names.get(bench.device.type):
        measured.targets.extend(targets({name: share["share_of_matrix_rate"] if timings.quiet else None}))
    return measured


@contextmanager
def plain_malloc() -> Iterator[None]:
    """glibc's own malloc settings for a block or a decorated function; ours are set again afterwards."""
    return_freed_memory()
    try:
        yield
    finally:
        keep_freed_memory()


def _our_training(bench: Bench) -> Callable[[], object]:
    recipe = RECIPES["original"].replace(batch_size=bench.batch, learning_rate=RATE, epochs=10_000)
    trainer = Trainer(
        build_model(recipe.model),
        recipe,
        bench.source.dataset("train", limit=bench.batch).preload(),
        None,
        run_dir=bench.folder / "run",
        device=bench.device,
        progress=False,
    )

    def one_batch() -> None:
        trainer.train_one_epoch(StopSignals())
        trainer.epoch += 1

    return one_batch


def _naive_training(bench: Bench) -> Callable[[], object]:
    model = naive.NaiveSSD300(NUM_CLASSES).to(bench.device).train()
    optimizer = _sgd(model)
    ids = bench.source.split_ids("train")[: bench.batch]
    loader = naive.make_loader(bench.source.folder, ids, bench.batch)

    def one_batch() -> None:
        for images, boxes, labels in loader:
            locs, logits = model(images.to(bench.device))
            boxes, labels = _to(boxes, bench.device), _to(labels, bench.device)
            loss = naive.naive_loss(locs, logits, boxes, labels, model.priors)
            _update(model, optimizer, loss)

    return one_batch


def _torchvision_training(bench: Bench) -> Callable[[], object]:
    model = torchvision_model().to(bench.device).train()
    optimizer = _sgd(model)
    paths = bench.files("train", limit=bench.batch)
    truth = [
        {"boxes": t["boxes"].as_subclass(Tensor).to(bench.device), "labels": t["labels"].to(bench.device)}
        for t in bench.source.dataset("train", limit=bench.batch).targets()
    ]

    def one_batch() -> None:
        losses = model(_read_all(paths, bench.device), truth)
        _update(model, optimizer, sum(losses.values()))

    return one_batch


def torchvision_model(num_classes: int = NUM_CLASSES) -> SSD:
    """torchvision's SSD300 as one gets it, from random weights, all layers trained."""
    # Without pretrained weights it trains every layer by itself.
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=num_classes)


def _sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)


def _update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    if not torch.isfinite(loss):
        raise RuntimeError(f"a loss is {loss.item()}: its time would mean nothing")


def _to(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def _read_all(paths: list[Path], device: torch.device) -> list[Tensor]:
    """Files -> float32 images in [0, 1], what torchvision's detectors take."""
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in paths]
    return _to([F.to_dtype(image, torch.float32, scale=True) for image in images], device)


def forward_flops(config: ModelConfig | None = None) -> int:
    """Floating point operations of one image's forward pass, counted; a multiply and an add are two."""
    with torch.device("meta"):
        model, images = SSD300(config), torch.empty(1, 3, 300, 300)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


class MatrixProduct:
    """Products of two large matrices in the number format of training, about as much work as a step."""

    def __init__(self, device: torch.device, size: int = 4096, times: int = 10) -> None:
        self.precision = choose_precision("auto", device)
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]
        self._a, self._b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self._times = times
        self.flops = times * 2 * size**3

    def __call__(self) -> None:
        for _ in range(self._times):
            torch.mm(self._a, self._b)


def matrix_share(product: MatrixProduct, timings: Timings) -> dict[str, Any]:
    """The share of the rate of large matrix products that training reaches: the median of the rounds.

    The backward pass does the forward's work twice: once for the inputs, once for the weights.
    """
    work = 3 * forward_flops()
    return {
        "precision": product.precision,
        "matrix_gflops_per_second": product.flops / timings.median(MATRIX) / 1e9,
        "training_gflops_per_second": work / timings.median(OURS) / 1e9,
        "share_of_matrix_rate": timings.ratio(MATRIX, OURS) * work / product.flops,
    }


def matrix_table(share: dict[str, Any]) -> Table:
    """A table of the rate that training reaches beside that of a large matrix product."""
    rows = [
        (f"matrix product, {share['precision']}", f"{share['matrix_gflops_per_second']:.0f}"),
        (OURS, f"{share['training_gflops_per_second']:.0f}"),
    ]
    return Table((f"rates ({share['share_of_matrix_rate']:.0%} reached)", "GFLOP/s"), rows)


def detection(bench: Bench) -> Measurement:
    """Seconds from an image file to its boxes, at score 0.01, in batches."""
    paths = bench.files("test")
    model = build_model(RECIPES["original"].model)
    prefer_background(model.class_heads.convs)
    predictor = Predictor(model, device=bench.device, batch_size=bench.batch)
    loops = naive.NaiveSSD300(NUM_CLASSES)
    prefer_background(loops.logits)
    loops.to(bench.device).eval()
    functions = {
        OURS: lambda: list(predictor.stream(paths)),  # in one view, as the others
        NAIVE: lambda: naive.naive_detect(loops, paths, bench.batch),
        TORCHVISION: torchvision_detection(bench, paths),
    }
    timings = bench.take_turns("detection, file to boxes, per image", functions, units=len(paths))
    return compared("detection", timings, TORCHVISION)


def torchvision_detection(bench: Bench, paths: list[Path]) -> Callable[[], object]:
    """A function that detects in the files with torchvision's SSD300."""
    model = torchvision_model()
    prefer_background(model.head.classification_head.module_list)
    model.to(bench.device).eval()

    @torch.inference_mode()
    def detect() -> None:
        for start in range(0, len(paths), bench.batch):
            model(_read_all(paths[start : start + bench.batch], bench.device))

    return detect


def prefer_background(heads: torch.nn.ModuleList) -> None:
    """Make the classification heads of an untrained network call most priors background."""
    with torch.no_grad():
        for head in heads:
            head.bias.view(-1, NUM_CLASSES)[:, 0] += SURE_BACKGROUND


@torch.inference_mode()
def suppression(bench: Bench) -> Measurement:
    """Seconds to turn one image's raw outputs into boxes, at score 0.01, the network still untrained.

    All 8,732 priors of each class are above the score then: the worst case, and every training's first. The
    naive one gets one image only, or a round would take minutes.
    """
    model = build_model(ModelConfig()).to(bench.device).eval()
    images = torch.rand(bench.batch, 3, 300, 300, device=bench.device)
    locs, logits = model(images)
    theirs = torchvision_model().to(bench.device).eval()
    outputs = {"bbox_regression": locs, "cls_logits": logits}
    sizes = [(300, 300)] * bench.batch
    maps = [torch.zeros(bench.batch, 1, f, f, device=bench.device) for f in model.config.priors.feature_maps]
    anchors = theirs.anchor_generator(ImageList(images, sizes), maps)
    functions = {
        OURS: lambda: detect_objects(locs, logits, model.priors),
        NAIVE: lambda: naive.naive_nms(locs[:1], logits[:1], model.priors),
        TORCHVISION: lambda: theirs.postprocess_detections(outputs, anchors, sizes),
    }
    units = {OURS: bench.batch, NAIVE: 1, TORCHVISION: bench.batch}
    return compared("nms", bench.take_turns("NMS at score 0.01, per image", functions, units), NAIVE)
