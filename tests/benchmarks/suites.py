"""What is timed. Each suite returns its `Timings`; the first contestant is ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.transforms.v2 import functional as F

from ssdlib.common.runtime import choose_precision, keep_freed_memory, return_freed_memory
from ssdlib.config import BCCD_CLASSES, NO_AUGMENTATION, RECIPES, AugmentConfig, ModelConfig, Recipe
from ssdlib.data.images import read_image
from ssdlib.data.loaders import make_loader, set_epoch
from ssdlib.data.smears import write_dataset
from ssdlib.data.source import DataSource, open_folder
from ssdlib.data.transforms import train_transform
from ssdlib.detector.model import SSD300
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.weights import build_model
from ssdlib.inference.predictor import Predictor
from ssdlib.training.monitor import StopSignals
from ssdlib.training.trainer import Trainer
from tests.benchmarks import naive
from tests.benchmarks.timing import Timings, matrix_product, take_turns

OURS, OURS_BATCH_NORM = "ours", "ours, BatchNorm"
NAIVE, TORCHVISION = "naive", "torchvision"
NAIVE_TUNED, TORCHVISION_TUNED = "naive, our malloc setting", "torchvision, our malloc setting"

NUM_CLASSES = len(BCCD_CLASSES) + 1
RATE = 1e-4
"""Learning rate: small enough that networks without BatchNorm stay finite from random weights."""
SURE_BACKGROUND = 6.0
"""Added to the background's logit for detection: like a trained network, it then calls few priors cells."""


@dataclass(frozen=True)
class Bench:
    """What all suites share."""

    folder: Path
    """For the smears and the trainers' runs."""
    source: DataSource
    device: torch.device
    batch: int
    rounds: int
    progress: bool

    @classmethod
    def prepare(cls, folder: Path, device: torch.device, batch: int, rounds: int, progress: bool) -> Bench:
        """Write synthetic smears into `folder`: four batches to train on, three to detect in."""
        root = write_dataset(folder / "smears", train=4 * batch, val=batch, test=3 * batch, progress=progress)
        return cls(folder, open_folder(root), device, batch, rounds, progress)

    def take_turns(
        self,
        title: str,
        contestants: dict[str, Callable[[], object]],
        units: int | dict[str, int],
        rounds: int = 0,
    ) -> Timings:
        """`tests.benchmarks.timing.take_turns` with this bench's settings."""
        return take_turns(
            title,
            contestants,
            units=units,
            rounds=rounds or self.rounds,
            device=self.device,
            progress=self.progress,
        )

    def test_files(self) -> list[Path]:
        """Image files to detect in."""
        data = self.source.dataset("test")
        return [data.image_path(i) for i in range(len(data))]


WHOLE = RECIPES["scratch"].replace(model=RECIPES["scratch"].model.replace(width=1.0))
"""The default recipe with all of the paper's channels, so that all here compute about the same."""


# --- training --------------------------------------------------------------------------------------------


def training(bench: Bench) -> Timings:
    """Seconds to train on an image: decoding or cache, augmentation, network, matching, loss, update.

    The first row is the original recipe: the same network and optimizer as the naive one's and torchvision's.
    The second is the default recipe at the paper's width: BatchNorm, AdamW, augmentation, averaged weights.
    Training of ours tells glibc to keep freed memory (`runtime.keep_freed_memory`), for the whole process.
    The others run as they would on their own, under glibc's own limits, and once more with our setting.
    """
    contestants = {
        OURS: _our_training(bench, RECIPES["original"]),
        OURS_BATCH_NORM: _our_training(bench, WHOLE),
        NAIVE: _naive_training(bench),
        TORCHVISION: _torchvision_training(bench),
    }
    if keep_freed_memory():
        contestants[NAIVE_TUNED] = contestants[NAIVE]
        contestants[TORCHVISION_TUNED] = contestants[TORCHVISION]
        for name in (NAIVE, TORCHVISION):
            contestants[name] = _with_plain_malloc(contestants[name])
    return bench.take_turns("training, per image", contestants, units=bench.batch)


def _with_plain_malloc(contestant: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        return_freed_memory()
        try:
            contestant()
        finally:
            keep_freed_memory()

    return run


def _our_training(bench: Bench, recipe: Recipe) -> Callable[[], object]:
    recipe = recipe.replace(batch_size=bench.batch, learning_rate=RATE, epochs=10_000)
    trainer = Trainer(
        build_model(recipe.model),
        recipe,
        bench.source.dataset("train", limit=bench.batch).preload(),
        None,
        run_dir=bench.folder / f"run-{recipe.name}",
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
    loader = naive.make_loader(bench.source.root, bench.source.split_ids("train")[: bench.batch], bench.batch)

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
    data = bench.source.dataset("train", limit=bench.batch)
    paths = [data.image_path(i) for i in range(len(data))]
    targets = [
        {"boxes": t["boxes"].as_subclass(Tensor).to(bench.device), "labels": t["labels"].to(bench.device)}
        for t in data.targets()
    ]

    def one_batch() -> None:
        losses = model(_read_all(paths, bench.device), targets)
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
        raise RuntimeError(f"a contestant's loss is {loss.item()}: its time would mean nothing")


def _to(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def _read_all(paths: list[Path], device: torch.device) -> list[Tensor]:
    """Files -> float32 images in [0, 1], what torchvision's detectors take."""
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in paths]
    return _to([F.to_dtype(image, torch.float32, scale=True) for image in images], device)


# --- detection -------------------------------------------------------------------------------------------


def detection(bench: Bench) -> Timings:
    """Seconds from an image file to its boxes, at score 0.01, in batches."""
    paths = bench.test_files()
    contestants = {
        OURS: _our_detection(bench, RECIPES["original"].model, paths),
        OURS_BATCH_NORM: _our_detection(bench, WHOLE.model, paths),
        NAIVE: _naive_detection(bench, paths),
        TORCHVISION: torchvision_detection(bench, paths),
    }
    return bench.take_turns("detection, file to boxes, per image", contestants, units=len(paths))


def _our_detection(bench: Bench, config: ModelConfig, paths: list[Path]) -> Callable[[], object]:
    model = build_model(config)
    prefer_background(model.class_heads.convs)
    predictor = Predictor(model, device=bench.device, batch_size=bench.batch)
    return lambda: predictor.detect(paths)


def _naive_detection(bench: Bench, paths: list[Path]) -> Callable[[], object]:
    model = naive.NaiveSSD300(NUM_CLASSES)
    prefer_background(model.logits)
    model.to(bench.device).eval()
    return lambda: naive.naive_detect(model, paths, bench.batch)


def torchvision_detection(bench: Bench, paths: list[Path]) -> Callable[[], object]:
    model = torchvision_model()
    prefer_background(model.head.classification_head.module_list)
    model.to(bench.device).eval()

    @torch.inference_mode()
    def detect() -> None:
        for start in range(0, len(paths), bench.batch):
            model(_read_all(paths[start : start + bench.batch], bench.device))

    return detect


def prefer_background(heads: torch.nn.ModuleList) -> None:
    with torch.no_grad():
        for head in heads:
            head.bias.view(-1, NUM_CLASSES)[:, 0] += SURE_BACKGROUND


# --- NMS -------------------------------------------------------------------------------------------------


def suppression(bench: Bench) -> Timings:
    """Seconds to turn one image's raw outputs into boxes, at score 0.01, the network still untrained.

    All 8,732 priors of each class are above the score then: the worst case, and every training's first. The
    naive one gets one image only, or a round would take minutes.
    """
    model = build_model(ModelConfig()).to(bench.device).eval()
    images = torch.rand(bench.batch, 3, 300, 300, device=bench.device)
    with torch.inference_mode():
        locs, logits = model(images)
    theirs = torchvision_model().to(bench.device).eval()
    outputs = {"bbox_regression": locs, "cls_logits": logits}
    sizes = [(300, 300)] * bench.batch
    maps = [torch.zeros(bench.batch, 1, f, f, device=bench.device) for f in model.config.priors.feature_maps]
    anchors = theirs.anchor_generator(ImageList(images, sizes), maps)

    @torch.inference_mode()
    def ours() -> object:
        return detect_objects(locs, logits, model.priors)

    @torch.inference_mode()
    def loops() -> object:
        return naive.naive_nms(locs[:1], logits[:1], model.priors)

    @torch.inference_mode()
    def torchvisions() -> object:
        return theirs.postprocess_detections(outputs, anchors, sizes)

    contestants = {OURS: ours, NAIVE: loops, TORCHVISION: torchvisions}
    units = {OURS: bench.batch, NAIVE: 1, TORCHVISION: bench.batch}
    return bench.take_turns("NMS at score 0.01, per image", contestants, units)


# --- loading ---------------------------------------------------------------------------------------------


def loading(bench: Bench) -> Timings:
    """Seconds to prepare one training image: ours from the cache, the naive one from the file."""
    count = len(bench.source.split_ids("train"))
    contestants = {
        OURS: _our_loading(bench, RECIPES["scratch"].augment),
        "ours, no augmentation": _our_loading(bench, NO_AUGMENTATION),
        NAIVE: _drain(naive.make_loader(bench.source.root, bench.source.split_ids("train"), bench.batch)),
    }
    return bench.take_turns("data loader, per image", contestants, units=count)


def _our_loading(bench: Bench, augment: AugmentConfig) -> Callable[[], object]:
    data = bench.source.dataset("train", transform=train_transform(augment)).preload()
    loader = make_loader(data, bench.batch, shuffle=True, seed=0)
    epochs = iter(range(10_000))

    def one_epoch() -> None:
        set_epoch(loader, next(epochs))
        for _ in loader:
            pass

    return one_epoch


def _drain(loader: torch.utils.data.DataLoader) -> Callable[[], object]:
    return lambda: [None for _ in loader]


# --- arithmetic ------------------------------------------------------------------------------------------


def forward_flops(config: ModelConfig | None = None) -> int:
    """Floating point operations of one image's forward pass, counted; a multiply and an add are two."""
    with torch.device("meta"):
        model, images = SSD300(config), torch.empty(1, 3, 300, 300)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def matrix_rate(bench: Bench, size: int) -> tuple[dict[str, float], str, Timings]:
    """Operations a second of a large matrix product, by precision; and the one that training uses here.

    float32 beside it: their ratio is all that a change of precision can give to anyone here.
    """
    precision = choose_precision("auto", bench.device)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    names = dict.fromkeys((precision, "fp32"))
    products = {name: matrix_product(dtypes[name], size, bench.device) for name in names}
    timings = bench.take_turns(f"matrix product, {size} x {size}", products, units=1, rounds=3 * bench.rounds)
    return {name: 2 * size**3 / timings.best(name) for name in names}, precision, timings
