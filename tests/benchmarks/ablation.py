"""What each ingredient of recipe `scratch` is worth: one change at a time, as many images seen.

    python -m tests.benchmarks.ablation --data bccd --images 2000 --seed 0 --seed 1

The baseline is the recipe without synthetic smears. With --removed a share of the red cells' labels is taken
off the training images, by chance, while the cells stay: what such gaps cost, and what a change saves of it.
All rows of a seed start from the same weights and see the same images in the same order, and are evaluated on
the complete labels of other images. A finished row is not trained again.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import read_json
from ssdlib.common.tables import Table, number
from ssdlib.config import PROFILES, PriorConfig, Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.source import extra_smears, resolve
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.predictor import Predictor
from ssdlib.plots.training import missing_labels
from ssdlib.runs.overrides import apply_overrides
from ssdlib.training.trainer import Trainer
from tests.benchmarks.common import Results, choose, run_command, save_figure

BASELINE = "as it is"
CLASS = "RBC"
"""The class whose labels are removed."""


def changes(epochs: int, images: int) -> dict[str, dict[str, Any]]:
    """The settings that each row changes, by its name; `epochs` passes over `images` images are its budget.

    The row with smears sees fewer real images, so that the number of images is the same.
    """
    augment = "recipe.augment."
    return {
        BASELINE: {},
        "smears among the images, half": {"recipe.smears": images, "recipe.epochs": max(1, epochs // 2)},
        "photometric distortion at 0.5": {augment + "photometric": 0.5},
        "no photometric distortion": {augment + "photometric": 0.0},
        "the paper's IoU crops for zoom-in": {augment + "zoom_in": 1.0, augment + "iou_crop": 0.1},
        "zooms to 1.6": {augment + "zoom_in": 1.6, augment + "zoom_out": 1.6},
        "the paper's priors": {"recipe.model.priors": PriorConfig().to_dict()},
        "ignore_confident": {"recipe.background": "ignore_confident"},
        "no average of weights": {"recipe.ema_decay": 0.0},
        "half the learning rate": {"recipe.learning_rate": 5e-4},
        "twice the learning rate": {"recipe.learning_rate": 2e-3},
        "no BatchNorm": {"recipe.model.batch_norm": False},
        "all channels": {"recipe.model.width": 1.0},
    }


def recipe_of(overrides: Mapping[str, Any], epochs: int) -> Recipe:
    """The recipe of a row: `scratch` without smears, for so many epochs, with the overrides."""
    settings = {"recipe.smears": 0, "recipe.epochs": epochs, **overrides}
    recipe = apply_overrides(PROFILES["full"], settings).recipe
    return recipe.replace(evaluate_every=recipe.epochs, checkpoint_every=recipe.epochs)  # the last one only


def remove_labels(dataset: DetectionDataset, class_name: str, share: float, seed: int) -> DetectionDataset:
    """The same images without `share` of the class's labels, chosen by chance over all images.

    For one seed, what a small share takes off a larger one takes off too. Raises ConfigError for a class that
    the data does not have.
    """
    if class_name not in dataset.class_names:
        raise ConfigError(f"there is no class {class_name!r}; choose of: {', '.join(dataset.class_names)}")
    label = dataset.class_names.index(class_name) + 1
    places = [
        (i, j) for i, sample in enumerate(dataset.samples) for j in np.flatnonzero(sample.labels == label)
    ]
    order = np.random.default_rng(seed).permutation(len(places))
    removed = {places[k] for k in order[: round(share * len(places))]}
    samples = []
    for i, sample in enumerate(dataset.samples):
        kept = [j for j in range(len(sample.labels)) if (i, j) not in removed]
        samples.append(replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept]))
    return DetectionDataset(samples, dataset.class_names, dataset.transform)


def train_row(train: DetectionDataset, val: DetectionDataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train on `train` and return the metrics on `val` after the last epoch."""
    data = train.joined(extra_smears(recipe.smears)) if recipe.smears else train
    model = build_model(recipe.model.replace(class_names=tuple(train.class_names)), seed=seed)
    with tempfile.TemporaryDirectory(prefix="ssdlib-ablation-") as folder:
        trainer = Trainer(model, recipe, data, None, run_dir=folder, seed=seed, progress=False)
        history = trainer.fit(on_epoch=lambda _: None)
        metrics, _ = evaluate_model(Predictor(trainer.weights, precision=trainer.precision), val)
    own = metrics.per_class.get(CLASS)
    return {
        "map_50": metrics.map_50,
        "ap_50": {name: one.ap_50 for name, one in metrics.per_class.items()},
        "recall": own and own.recall,
        "precision": own and own.precision,
        "epochs": recipe.epochs,
        "seconds": sum(record.seconds for record in history.epochs),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a row for each share removed and change: means over the seeds.

    The difference is that of the mAP to the baseline with as many labels, in points.
    """
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["removed"]):
        groups.setdefault((row["removed"], row["change"]), []).append(row)

    def mean(group: Sequence[Mapping[str, Any]], figure: str) -> float | None:
        values = [row[figure] for row in group]
        return statistics.mean(values) if values and None not in values else None

    cells = []
    for (share, name), group in groups.items():
        score, base = mean(group, "map_50"), mean(groups.get((share, BASELINE), ()), "map_50")
        difference = "" if name == BASELINE or None in (score, base) else f"{100 * (score - base):+.1f}"
        figures = [number(mean(group, figure)) for figure in ("recall", "precision")]
        cells.append((name, f"{share:.0%}", number(score), difference, *figures, str(len(group))))
    header = (
        "change",
        "labels removed",
        "val mAP@0.5",
        "difference",
        f"{CLASS} recall",
        f"{CLASS} precision",
    )
    return Table((*header, "seeds"), cells)


def main(
    data: Annotated[str, typer.Option(help="auto, bccd, smears, or a folder.")] = "auto",
    images: Annotated[int, typer.Option(help="Images seen by each row.", min=1)] = 2000,
    train_images: Annotated[int | None, typer.Option(help="Different ones. Default: all.", min=1)] = None,
    val_images: Annotated[int | None, typer.Option(help="To evaluate on. Default: all.", min=1)] = None,
    removed: Annotated[
        list[float] | None,
        typer.Option(help="Share of RBC labels removed; may be repeated. Default: 0.", min=0, max=1),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this change; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 0.")] = None,
    json: Annotated[Path, typer.Option(help="File of the results.")] = Path("bench/ablation.json"),
) -> None:
    """Train the recipe with one change at a time and tabulate val mAP@0.5; with --removed, draw it too."""
    source = resolve(data)
    train, val = source.dataset("train", train_images), source.dataset("val", val_images)
    epochs = max(1, round(images / len(train)))
    overrides = changes(epochs, len(train))
    names = choose(only, overrides, "--only")
    sizes = {"images": images, "train_images": len(train), "val_images": len(val)}
    terms = {**sizes, "class": CLASS, "data": source.fingerprint}
    results = Results(json, terms, source.describe(root=False))
    # The largest share first: it tells most.
    for draw, share in product(seed or (0,), sorted(removed or (0.0,), reverse=True)):
        labeled = remove_labels(train, CLASS, share, draw) if share else train
        for name in names:
            key = {"change": name, "removed": share, "seed": draw}
            recipe = recipe_of(overrides[name], epochs)
            if results.find(key, recipe.to_dict()):
                continue
            row = train_row(labeled, val, recipe, draw)
            results.put(key, {"recipe": recipe.to_dict(), **row})
            print(f"{name}, {share:.0%} removed, seed {draw}: {number(row['map_50'])}", flush=True)
    files = save_figure(missing_labels(read_json(json)), json, ".png") if any(removed or ()) else []
    print(f"\n{table(results.rows).to_markdown()}\n\nwritten: {', '.join(map(str, [json, *files]))}")


if __name__ == "__main__":
    run_command(main)
