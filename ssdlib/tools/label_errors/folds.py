"""Out-of-fold predictions: the detections in an image come from a network that never saw its labels.

OUT/folds.json              what was asked, and which image is in which fold
    folds/1/                training of the network that is not shown fold 1, as in any run
    predictions/fold-1.json what it finds in the images of fold 1
    initial.safetensors     a copy of the weights that all start from, if they are a file of one's own
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import read_json, read_limited, sha256_of, write_bytes, write_json
from ssdlib.config import BCCD_CLASSES, RECIPES, Profile, Recipe, differences
from ssdlib.data import download
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.duplicates import same_fields
from ssdlib.data.source import EXTRA_SMEARS_SEED, DataSource, extra_smears
from ssdlib.detector import model_file
from ssdlib.detector.model_file import SHIPPED_NAMES, read_metadata, shipped_path
from ssdlib.detector.weights import build_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.runs.overrides import apply_overrides
from ssdlib.training import checkpoints

SCORE_FLOOR = 0.05
"""Detections below are not kept: they say nothing for or against a label."""

INITIAL = "initial.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class FoldSettings:
    """How out-of-fold predictions are made."""

    split: str = "all"
    """all (every labeled image), train, val or test."""
    folds: int = 5
    """Networks trained, each on the images outside one fold."""
    epochs: int | None = None
    """Of each network; None takes the recipe's."""
    init: str = "scratch"
    """Weights to start from: scratch, shipped or a checkpoint."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings changed by dotted name as for a run ("recipe.batch_size", "seed", "precision")."""
    device: str = "auto"
    progress: bool = True

    def profile(self, source: DataSource) -> Profile:
        """The recipe, seed and precision of each fold's training. Raises ConfigError for an unknown name."""
        base = RECIPES["scratch" if self.init == "scratch" else "finetune"]
        recipe = base.replace(initial_weights=self.init)
        if source.synthetic or source.class_names != BCCD_CLASSES:
            # More smears by the same generator, all labeled, would be knowledge that no real set has.
            recipe = recipe.replace(smears=0)
        epochs = {} if self.epochs is None else {"recipe.epochs": self.epochs}
        profile = apply_overrides(Profile(name="label-errors", recipe=recipe), {**epochs, **self.overrides})
        model = profile.recipe.model.replace(class_names=source.class_names)
        return profile.replace(recipe=profile.recipe.replace(model=model))


def split_folds(
    ids: Iterable[str], together: Iterable[tuple[str, str]], folds: int, seed: int = 0
) -> list[list[str]]:
    """Divide image ids into `folds` parts of about equal size, always the same for the same ids.

    Pairs in `together` (and chains of them) stay in one part. Raises ConfigError where there are fewer
    groups of images than folds.
    """
    group_of = {image_id: [image_id] for image_id in sorted(set(ids))}
    for a, b in together:
        if a in group_of and b in group_of and group_of[a] is not group_of[b]:
            merged = group_of[a] + group_of[b]
            group_of.update(dict.fromkeys(merged, merged))
    groups = list({id(group): sorted(group) for group in group_of.values()}.values())
    if not 2 <= folds <= len(groups):
        raise ConfigError(
            f"{folds} folds cannot be made of {len(groups)} images (overlapping ones count once): "
            f"choose from 2 to {len(groups)}."
            if len(groups) > 1
            else "out-of-fold predictions need at least two images: one to learn from, one to predict on."
        )
    random.Random(seed).shuffle(groups)
    parts: list[list[str]] = [[] for _ in range(folds)]
    for group in sorted(groups, key=len, reverse=True):
        min(parts, key=len).extend(group)
    return [sorted(part) for part in parts]


def out_of_fold(
    source: DataSource, out: str | Path, settings: FoldSettings, *, kept: str | Path | None = None
) -> list[Detections]:
    """Detections of every labeled image of a split, in the dataset's order, by networks that did not see it.

    One network is trained for each fold on the images of the others, in `out`; what is finished there is not
    done again, and what was interrupted goes on. The held-out labels select nothing: the weights after the
    last epoch predict. `kept` is the folder in which the file of the initial weights is copied, so that the
    job goes on without it; by default `out`. Raises ConfigError for impossible settings, for weights that
    were trained on these labels, and where `out` was made with other settings.
    """
    out, dataset = Path(out), source.dataset(settings.split)
    profile = settings.profile(source)
    check_init(source, dataset, profile.recipe.initial_weights)
    for number, held_out in enumerate(_plan(source, dataset, out, settings, profile), start=1):
        file, folder = out / "predictions" / f"fold-{number}.json", out / "folds" / str(number)
        if not file.exists():
            known = [sample for sample in dataset.samples if sample.image_id not in held_out]
            unknown = [sample for sample in dataset.samples if sample.image_id in held_out]
            about = {**source.describe(root=False), "without fold": number}
            data = DetectionDataset(known, dataset.class_names)
            start = _kept_start(profile.recipe, Path(kept or out))
            weights = _train(data, folder, about, settings, profile, start)
            predictor = Predictor.from_checkpoint(
                weights, device=settings.device, precision=profile.precision, score_threshold=SCORE_FLOOR
            )
            found = predictor.detect([sample.image_path for sample in unknown], settings.progress)
            records = [
                replace(detections, image=sample.image_id).to_dict()
                for detections, sample in zip(found, unknown, strict=True)
            ]
            write_json(file, {"format": FORMAT, "fold": number, "detections": records})
        # The weights stay; the training states, ten times as large, are no longer needed.
        for name in (checkpoints.LAST, checkpoints.PREVIOUS):
            (folder / "checkpoints" / name).unlink(missing_ok=True)
    return read_predictions(out / "predictions", dataset)


def check_init(source: DataSource, dataset: DetectionDataset, init: str) -> None:
    """Raise ConfigError if the weights `init` were trained on these labels, as far as can be known."""
    learned, path = "", shipped_path(init) if init in SHIPPED_NAMES else Path(init)
    if path.is_file():
        known = _fingerprints(read_metadata(path).get("data") or {})
        learned = "this very data" if known & _fingerprints(source.describe()) else ""
    if init in SHIPPED_NAMES and not learned:
        bccd_ids = {Path(name).stem for name in download.BCCD.manifest()}
        markers = [part.folder / "smears.json" for part in source.parts.values() or [source]]
        if source.kind == "bccd" or any(sample.image_id in bccd_ids for sample in dataset.samples):
            learned = "BCCD's train split"
        elif any(
            m.is_file() and read_json(m, shape=dict[str, Any]).get("seed") == EXTRA_SMEARS_SEED
            for m in markers
        ):
            learned = "smears drawn with this very seed"
    if learned:
        raise ConfigError(
            f"the weights {init} were trained on {learned}, so they would confirm these labels, the wrong "
            "ones too: start from scratch (--init scratch)."
        )


def _fingerprints(description: Mapping[str, Any]) -> set[str]:
    """Those of described data (`DataSource.describe`) and of the sources that are joined there."""
    return {
        one["fingerprint"] for one in (description, *description.get("sources", ())) if "fingerprint" in one
    }


class _StoredPlan(TypedDict):
    asked: dict[str, Any]
    images: list[list[str]]


def _plan(
    source: DataSource, dataset: DetectionDataset, out: Path, settings: FoldSettings, profile: Profile
) -> list[list[str]]:
    """The image ids of each fold, from `folds.json` if it is there. ConfigError if its settings differ."""
    asked = {
        "data fingerprint": source.fingerprint,
        "split": settings.split,
        "folds": settings.folds,
        "settings": profile.to_dict(),
    }
    path = out / "folds.json"
    if path.exists():
        stored = read_json(path, hint="Remove it and run again.", shape=_StoredPlan)
        if changes := differences(stored.get("asked", {}), asked):
            raise ConfigError(
                f"{out} was made with other settings: {'; '.join(changes)}. Choose another --out, or give "
                "the same settings."
            )
        return stored["images"]
    images = {sample.image_id: sample.image_path for sample in dataset.samples}
    together = same_fields(images, progress=settings.progress)
    plan = split_folds(images, together, settings.folds)
    write_json(path, {"format": FORMAT, "asked": asked, "together": together, "images": plan})
    return plan


def _kept_start(recipe: Recipe, folder: Path) -> str:
    """The initial weights of a recipe: a name, or the copy of their file, which is made in `folder`."""
    file, copy = recipe.initial_file, folder / INITIAL
    if file is None:
        return recipe.initial_weights
    if not copy.exists():
        model_file.load_model(file)  # what is no network is not kept
        write_bytes(copy, read_limited(file, model_file.MAX_BYTES))
    return str(copy)


def _train(
    data: DetectionDataset,
    folder: Path,
    about: dict[str, Any],
    settings: FoldSettings,
    profile: Profile,
    start: str,
) -> Path:
    """The weights of a network trained on `data` from the initial weights `start`, in `folder`.

    It goes on where it was interrupted.
    """
    from ssdlib.training.trainer import Trainer

    recipe = profile.recipe
    if recipe.smears:
        data = data.joined(extra_smears(recipe.smears, progress=settings.progress))
    trainer = Trainer(
        build_model(recipe.model, start, seed=profile.seed),
        recipe,
        data,
        None,
        run_dir=folder,
        precision=profile.precision,
        device=settings.device,
        seed=profile.seed,
        data_description=about,
        snapshot_every=recipe.epochs + 1,
        initial_sum=sha256_of(start) if recipe.initial_file else None,
        progress=settings.progress,
    )
    trainer.fit(resume=trainer.checkpoints.exists())
    return trainer.checkpoints / checkpoints.BEST


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
