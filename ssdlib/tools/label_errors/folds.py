"""Out-of-fold predictions: every image is judged by a network that never saw its labels.

OUT/folds.json              what was asked, and which image is in which fold
    folds/1/                the training of the network that judges fold 1, as in any run
    predictions/fold-1.json what it finds there
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import read_json, write_json
from ssdlib.config import BCCD_CLASSES, RECIPES, Profile, Recipe
from ssdlib.data import download
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.duplicates import same_fields
from ssdlib.data.source import EXTRA_SMEARS_SEED, DataSource, extra_smears
from ssdlib.detector.model_file import read_metadata
from ssdlib.detector.weights import build_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.runs.overrides import apply_overrides
from ssdlib.training import checkpoints

SCORE_FLOOR = 0.05
"""Detections below are not kept: they say nothing for or against a label."""

FORMAT = 1
_AGAIN = "Remove it and run again."


def split_folds(
    ids: Iterable[str], together: Iterable[tuple[str, str]], folds: int, seed: int = 0
) -> list[list[str]]:
    """Divide image ids into `folds` parts of about equal size, always the same for the same ids.

    Pairs in `together` (and chains of them) stay in one part. Raises ConfigError where there are fewer
    groups of images than folds.
    """
    groups = _groups(sorted(set(ids)), together)
    if not 2 <= folds <= len(groups):
        raise ConfigError(
            f"{folds} folds cannot be made of {len(groups)} images (overlapping ones count once): "
            f"choose from 2 to {len(groups)}."
            if len(groups) > 1
            else "out-of-fold predictions need at least two images: one to learn from, one to judge."
        )
    random.Random(seed).shuffle(groups)
    parts: list[list[str]] = [[] for _ in range(folds)]
    for group in sorted(groups, key=len, reverse=True):
        min(parts, key=len).extend(group)
    return [sorted(part) for part in parts]


def _groups(ids: Sequence[str], together: Iterable[tuple[str, str]]) -> list[list[str]]:
    group_of = {image_id: [image_id] for image_id in ids}
    for a, b in together:
        if a in group_of and b in group_of and group_of[a] is not group_of[b]:
            merged = group_of[a] + group_of[b]
            group_of.update(dict.fromkeys(merged, merged))
    return list({id(group): sorted(group) for group in group_of.values()}.values())


def out_of_fold(
    source: DataSource,
    out: str | Path,
    *,
    split: str = "all",
    folds: int = 5,
    epochs: int | None = None,
    init: str = "scratch",
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[Detections]:
    """Detections of every labeled image of a split, in the dataset's order, by networks that did not see it.

    One network is trained for each fold on the images of the others, in `out`; what is finished there is not
    done again, and what was interrupted goes on. `overrides` change settings by dotted name as for a run
    ("recipe.batch_size", "seed", "precision"). Nothing is selected by the held-out labels: the last weights
    judge. BCCD is joined by the recipe's synthetic smears, whose labels are complete; drawn data are not.

    Raises ConfigError for impossible settings, for weights that saw these labels, and where `out` was made
    otherwise.
    """
    out, dataset = Path(out), source.dataset(split)
    settings = _settings(source, epochs, init, overrides)
    check_init(source, dataset, settings.recipe.initial_weights)
    plan = _plan(source, dataset, out, split, folds, settings, progress)
    for number, held_out in enumerate(plan, start=1):
        file = out / "predictions" / f"fold-{number}.json"
        if not file.exists():
            weights = _train(source, dataset, out, number, held_out, settings, device, progress)
            _predict(dataset, weights, file, number, held_out, settings, device, progress)
            # The weights stay; the training states, ten times as large, have done their duty.
            for name in (checkpoints.LAST, checkpoints.PREVIOUS):
                (weights.parent / name).unlink(missing_ok=True)
    return read_predictions(out / "predictions", dataset)


def _settings(
    source: DataSource, epochs: int | None, init: str, overrides: Mapping[str, Any] | None
) -> Profile:
    base = RECIPES["scratch"] if init == "scratch" else RECIPES["finetune"]
    recipe = base.replace(initial_weights=init)
    if source.synthetic or tuple(source.class_names) != BCCD_CLASSES:
        # Smears from the same pencil with all their labels would be knowledge that no real set has.
        recipe = recipe.replace(smears=0)
    changes = {**({"recipe.epochs": epochs} if epochs is not None else {}), **(overrides or {})}
    profile = apply_overrides(Profile(name="issues", recipe=recipe), changes)
    model = profile.recipe.model.replace(class_names=tuple(source.class_names))
    return profile.replace(recipe=profile.recipe.replace(model=model))


def check_init(source: DataSource, dataset: DetectionDataset, init: str) -> None:
    """Raise ConfigError if the weights `init` were trained on these labels, as far as can be known."""
    advice = "start from scratch (--init scratch)."
    if init == "shipped":
        ids = {sample.image_id for sample in dataset.samples}
        seen = ids & {Path(name).stem for name in download.manifest()}
        if source.kind == "bccd" or seen:
            raise ConfigError(
                "the shipped weights were trained on BCCD's train split, so they know these labels, right "
                f"and wrong ones, by heart and would confirm them: {advice}"
            )
        marker = source.folder / "smears.json"
        if marker.is_file() and read_json(marker).get("seed") == EXTRA_SMEARS_SEED:
            raise ConfigError(
                "the shipped weights were trained on smears drawn with this very seed, so they know these "
                f"labels by heart: draw others (ssdlib data smears --seed 2), or {advice}"
            )
    elif Path(init).is_file():
        trained_on = read_metadata(init).get("data") or {}
        if trained_on.get("fingerprint") == source.fingerprint:
            raise ConfigError(
                f"{init} was trained on this very data and would confirm its labels, the wrong ones too: "
                f"{advice}"
            )


def _plan(
    source: DataSource,
    dataset: DetectionDataset,
    out: Path,
    split: str,
    folds: int,
    settings: Profile,
    progress: bool,
) -> list[list[str]]:
    """The ids of each fold, from `folds.json` if it is there. ConfigError if that was made otherwise."""
    asked = {
        "data fingerprint": source.fingerprint,
        "split": split,
        "folds": folds,
        "settings": settings.to_dict(),
    }
    path = out / "folds.json"
    if path.exists():
        stored = read_json(path, hint=_AGAIN)
        if different := [name for name, value in asked.items() if stored.get("asked", {}).get(name) != value]:
            raise ConfigError(
                f"{out} was made with other {', '.join(different)}: choose another --out, or give the same "
                f"settings as in {path}."
            )
        return stored["images"]
    images = {sample.image_id: sample.image_path for sample in dataset.samples}
    together = same_fields(images, progress=progress)
    plan = split_folds(images, together, folds)
    write_json(path, {"format": FORMAT, "asked": asked, "together": together, "images": plan})
    return plan


def _subset(dataset: DetectionDataset, ids: Iterable[str], *, without: bool = False) -> DetectionDataset:
    wanted = set(ids)
    samples = [sample for sample in dataset.samples if (sample.image_id in wanted) != without]
    return DetectionDataset(samples, dataset.class_names)


def _train(
    source: DataSource,
    dataset: DetectionDataset,
    out: Path,
    number: int,
    held_out: Sequence[str],
    settings: Profile,
    device: str,
    progress: bool,
) -> Path:
    """The weights of the network that judges one fold, trained now if they are not there."""
    from ssdlib.training.trainer import Trainer

    recipe: Recipe = settings.recipe
    data = _subset(dataset, held_out, without=True)
    if recipe.smears:
        data = data.joined(extra_smears(recipe.smears, progress=progress))
    folder = out / "folds" / str(number)
    trainer = Trainer(
        build_model(recipe.model, recipe.initial_weights, seed=settings.seed),
        recipe,
        data,
        None,
        run_dir=folder,
        precision=settings.precision,
        device=device,
        seed=settings.seed,
        data_description={**source.describe(root=False), "without fold": number},
        snapshot_every=recipe.epochs + 1,
        progress=progress,
    )
    trainer.fit(resume=(folder / "checkpoints").exists(), on_epoch=None if progress else lambda record: None)
    return folder / "checkpoints" / checkpoints.BEST


def _predict(
    dataset: DetectionDataset,
    weights: Path,
    file: Path,
    number: int,
    held_out: Sequence[str],
    settings: Profile,
    device: str,
    progress: bool,
) -> None:
    data = _subset(dataset, held_out)
    predictor = Predictor.from_checkpoint(
        weights, device=device, precision=settings.precision, score_threshold=SCORE_FLOOR
    )
    found = predictor.detect((data.image(k) for k in range(len(data))), progress=progress)
    records = [
        replace(detections, image=sample.image_id).to_dict()
        for detections, sample in zip(found, data.samples, strict=True)
    ]
    write_json(file, {"format": FORMAT, "fold": number, "detections": records})


def read_predictions(folder: str | Path, dataset: DetectionDataset) -> list[Detections]:
    """Detections of each image of `dataset`, in its order, from the JSON files of a folder.

    Files are lists of `Detections.to_dict`, as `ssdlib detect --json` writes, or objects with such a list as
    "detections". Images are found by id or by file name; what belongs to no image here is passed over.
    Raises DataError, naming image and file, for images without predictions, predicted twice, or of another
    size.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder} holds no predictions: there must be JSON files as `detect --json` writes.")
    found: dict[str, Detections] = {}
    by_id = {sample.image_id: sample for sample in dataset.samples}
    for file in files:
        content = read_json(file)
        records = content.get("detections") if isinstance(content, dict) else content
        if not isinstance(records, list):
            raise DataError(f"{file} is not a list of detections as `detect --json` writes it.")
        for record in records:
            detections = Detections.from_dict(record, dataset.class_names)
            name = detections.image if detections.image in by_id else Path(detections.image).stem
            if name not in by_id:
                continue
            if name in found:
                raise DataError(f"{folder} holds two predictions for {name}, the second in {file}. Keep one.")
            size = by_id[name].width, by_id[name].height
            if detections.image_size != size:
                raise DataError(
                    f"{file}: the detections of {name} are for an image of {detections.image_size}, but it "
                    f"is {size}. Predict on these very images."
                )
            found[name] = replace(detections, image=name)
    if missing := sorted(by_id.keys() - found.keys()):
        raise DataError(
            f"{folder} holds no predictions for {len(missing)} of {len(by_id)} images, such as {missing[0]}. "
            "Predict on all of them; an image where nothing is found needs its empty record too."
        )
    return [found[sample.image_id] for sample in dataset.samples]
