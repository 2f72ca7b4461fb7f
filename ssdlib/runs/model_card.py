"""The model cards of the shipped weights: a page beside each file on what it is, can do, and cannot.

    python -m ssdlib model-card --weights shipped --data bccd,txl-pbc       # measures a shipped file
    python -m ssdlib model-card --ship runs/NAME --place blood --count-on txl-pbc:val --notes how.md

Every figure on it is measured when it is written and stands as `ssdlib evaluate` prints it. The network, the
recipe and the data are read from the file itself; the command, hardware and time of the training are its
metadata `training`, which --notes gives.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdlib.common.errors import ConfigError, shell
from ssdlib.common.files import sha256_of, write_text
from ssdlib.common.terminal import printable
from ssdlib.config import DEFAULT_THRESHOLD
from ssdlib.data.smears import COMPLETE
from ssdlib.evaluation.tables import results_text

if TYPE_CHECKING:
    from ssdlib.config import Use
    from ssdlib.data.dataset import DetectionDataset
    from ssdlib.data.source import DataSource
    from ssdlib.detector.model import SSD300

_TEMPLATE = Path(__file__).with_name("model_card.md")
ROLES = {
    "ssd300-blood": "It is what `ssdlib detect`, the page, archives and exports use unless told otherwise, "
    "and what training on data of one's own starts from.",
    "ssd300-bccd": "It is the benchmark's: trained to find what BCCD labels, for its official figures "
    "(`--weights bccd`).",
}
_NO_DEVICE = "- This is not a medical device: no decision about a patient may rest on it."
_ENOUGH_OBJECTS = 20
_TRAINING_UNKNOWN = "The file does not say by which command, on what machine and how long."


NMS_CHOICES = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
"""IoU thresholds of NMS among which counts choose."""


def choose_use(
    model: SSD300,
    *,
    data: DetectionDataset,
    seen: DetectionDataset,
    stain: float = 0.0,
    device: str = "auto",
    progress: bool = False,
) -> Use:
    """The network's `Use` with the thresholds and the NMS with which it counts `data` best, and the looks of
    `seen`, what it was trained on, as augmentation shows them with a chance of `stain`.

    For each class: the IoU of NMS with the least mean absolute difference of an image's count, where the
    score threshold is the one whose total is right. `data` must be completely labeled, and not trained on. A
    class with fewer than 20 objects keeps the defaults, for it would choose by chance.
    """
    import torch
    from torchvision import tv_tensors

    from ssdlib.config import NMS_IOU
    from ssdlib.data.transforms import Stain
    from ssdlib.evaluation.counting import count_curve
    from ssdlib.evaluation.evaluate import evaluate_model
    from ssdlib.inference.detections import Detections
    from ssdlib.inference.predictor import Predictor
    from ssdlib.inference.quality import appearance_of, measure

    names, best = data.class_names, {}
    for iou in NMS_CHOICES:
        predictor = Predictor(model, device=device, precision="fp32", iou_threshold=iou)
        _, detections = evaluate_model(predictor, data, progress=progress)
        for label, name in enumerate(names, start=1):
            curve = count_curve(detections, data.targets(), label)
            threshold = curve.unbiased()
            error = float(curve.mae[np.searchsorted(curve.thresholds, threshold)])
            # Of equal ones the usual IoU, then the lower.
            key = (round(error, 9), abs(iou - NMS_IOU))
            if curve.objects >= _ENOUGH_OBJECTS and key < best.get(name, ((math.inf,),))[0]:
                best[name] = key, threshold, iou
    chosen = {name: best.get(name, (None, DEFAULT_THRESHOLD, NMS_IOU)) for name in names}
    torch.manual_seed(0)
    another_stain = Stain(stain)
    looks = []
    for index, sample in enumerate(seen.samples):
        image = tv_tensors.Image(torch.from_numpy(seen.image(index)).permute(2, 0, 1))
        pixels = np.ascontiguousarray(another_stain(image).permute(1, 2, 0).numpy())
        size = (sample.width, sample.height)
        cells = Detections(sample.boxes, np.ones(len(sample.boxes)), sample.labels, size, names)
        looks.append(measure(pixels, cells, size, model.config.use.reference))
    return model.config.use.replace(
        thresholds={name: round(threshold, 2) for name, (_, threshold, _) in chosen.items()},
        nms_iou={name: iou for name, (_, _, iou) in chosen.items()},
        appearance=appearance_of(looks),
    )


def ship_weights(
    checkpoint: Path, target: Path, training: str = "", choose: Callable[[SSD300], Use] | None = None
) -> Path:
    """Put a checkpoint, in fp16, in the place of the shipped weights `target` and return that path.

    Its metadata are kept; `training` says by which command, on what hardware and how long it was made;
    `choose` gives the `Use` that the file is to carry, by default the network's own. Raises CheckpointError
    for a bad checkpoint, SsdError where the disk refuses.
    """
    from ssdlib.detector import model_file

    about = model_file.read_metadata(checkpoint)
    del about["config"]  # save_model writes the network's own
    # Where the data lay on the machine that trained means nothing elsewhere.
    data = about["data"] = dict(_mapping(about.get("data")))
    for described in (data, *(data.get("sources") or ())):
        _mapping(described).pop("root", None)
    if training:
        about["training"] = training
    model = model_file.load_model(checkpoint)
    if choose is not None:
        model.half().float()  # the weights that are chosen for are those that the file holds
        model.config = model.config.replace(use=choose(model))
    model_file.save_model(model, target, half=True, **about)
    return target


def write_card(
    weights: Path,
    sources: Sequence[tuple[DataSource, str, Sequence[str]]],
    *,
    training: str = "",
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = False,
) -> Path:
    """Measure the weights, write their card beside them and return its path.

    `sources` are the data to measure on, what `--data` calls them, and their splits; `training` stands in for
    what the file's metadata say of how it was trained. Raises CheckpointError for a bad file or one of other
    classes than the data's, DataError for bad data.
    """
    from ssdlib.config import NMS_IOU
    from ssdlib.detector.model_file import BENCHMARK, SHIPPED, load_model, read_metadata
    from ssdlib.evaluation.evaluate import evaluate_split
    from ssdlib.inference.predictor import Predictor

    about, model = read_metadata(weights), load_model(weights)
    predictor = Predictor(model, device=device, precision=precision)
    known = {SHIPPED: (), BENCHMARK: ("--weights", "bccd")}
    named = known.get(weights, ("--weights", weights))
    results, commands = [], []
    for source, word, splits in sources:
        for split in splits:
            report = evaluate_split(
                predictor, source, split, score_threshold=model.config.thresholds, progress=progress
            )
            # In the very form in which `ssdlib evaluate` prints it.
            table = results_text({split: report, "data": report["data"]})
            results.append(f"{_name_of(source)}, {split}:\n\n```\n{table}\n```")
            options = shell(*named, "--data", word, "--split", split, "--precision", precision)
            commands.append(printable(f"python -m ssdlib evaluate {options}", keep=""))
    config, use = model.config, model.config.use
    unknown = defaultdict(lambda: "–")
    recipe, described = _mapping(about.get("recipe")), _mapping(about.get("data"))
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        name=_plain(weights.stem),
        classes=_plain(", ".join(config.class_names)),
        config=config,
        norm="with BatchNorm" if config.batch_norm else "without BatchNorm",
        first=model.backbone.to_conv4_3.conv1_1,
        last=model.backbone.to_conv7.conv7,
        parameters=sum(p.numel() for p in model.parameters()),
        mean=_numbers(config.mean),
        std=_numbers(config.std),
        scales=_numbers(config.priors.scales),
        role=ROLES.get(weights.stem, ""),
        limits=_limits(weights.stem),
        use=use,
        thresholds=_by_class(config.thresholds),
        nms=_by_class(use.nms_iou or {"all classes": NMS_IOU}),
        file=_plain(weights.name),
        megabytes=weights.stat().st_size / 1e6,
        sha256=sha256_of(weights),
        data="\n".join(f"- {_data_line(source)}" for source, _, _ in sources),
        training=_without_html(training.strip() or str(about.get("training", _TRAINING_UNKNOWN)).strip()),
        recipe=unknown | {name: _plain(value) for name, value in recipe.items()},
        augment=_augment(_mapping(recipe.get("augment"))),
        about=unknown | {name: _plain(value) for name, value in about.items()},
        fingerprint=_plain(described.get("fingerprint") or "–"),
        precision=predictor.precision,
        samples=report["intervals"]["samples"],
        results="\n\n".join(results),
        commands="\n".join(commands),
    )
    write_text(weights.with_suffix(".md"), text)
    return weights.with_suffix(".md")


def _limits(stem: str) -> str:
    """What the weights are not for, and whose they are, as far as it is known of weights of that name."""
    path = _TEMPLATE.with_name(f"limits_{stem}.md")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else _NO_DEVICE


def _augment(settings: Mapping[str, Any]) -> str:
    switches = {True: "on", False: "off"}
    said = (f"{k} {switches[v] if isinstance(v, bool) else v}" for k, v in settings.items())
    return _plain(", ".join(said) or "–")


def _mapping(value: Any) -> dict[str, Any]:
    """The value, if it is a dictionary: a file's metadata may hold anything."""
    return value if isinstance(value, dict) else {}


def _by_class(values: Mapping[str, float]) -> str:
    return _plain(", ".join(f"{name} {value:g}" for name, value in values.items()))


def _plain(value: Any) -> str:
    """A value on one line, which Markdown shows as it stands, in a table, too."""
    return re.sub(r"[<>&|`\[\]]", lambda found: f"&#{ord(found[0])};", printable(value, keep=""))


def _without_html(text: str) -> str:
    """Markdown that draws no element and loads no picture."""
    return printable(text.replace("<", "&lt;").replace("![", r"!\["))


def _data_line(source: DataSource) -> str:
    counts = {split: len(ids) for split, ids in source.labels.splits.items()}
    sizes = ", ".join(f"{split} {counts.get(split, 0)}" for split in ("train", "val", "test"))
    trained = "only train was trained on, val chose"
    hard = " --hard" if source.folder and (source.folder / COMPLETE).is_dir() else ""
    use = f"drawn by `ssdlib data smears{hard}`" if source.synthetic else trained
    return f"{_name_of(source)}: {sizes} images; {use}. Fingerprint `{source.fingerprint}`."


def _name_of(source: DataSource) -> str:
    names = {"bccd": "BCCD", "txl-pbc": "TXL-PBC", "smears": "Synthetic smears"}
    named = " and ".join(map(_name_of, source.parts.values()))
    return named or names.get(source.kind, _plain(source.folder.name))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def read_notes(notes: Path | None) -> str:
    """The text of a Markdown file; empty for None. Raises ConfigError where it cannot be read."""
    if notes is None:
        return ""
    try:
        return notes.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the notes {notes}: {error}. Give a text file in UTF-8.") from error
