"""Training with labels removed: what gaps cost, and what each way of learning background saves of it.

    python -m tests.benchmarks.missing_labels --images 1500 --json data/measurements/missing-labels.json

A share of the red cells' labels is taken off the training images, by chance; the cells stay. The recipe
`scratch`, without the synthetic smears that would bring complete labels, trains on what is left, once for
each method, with the same initial weights and the same images in the same order. All are judged on the
complete labels of other images. A finished row is not trained again.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import read_json, write_json, write_with
from ssdlib.common.runtime import available_cores, environment
from ssdlib.config import RECIPES, Recipe, flatten
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.source import DataSource, resolve
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.predictor import Predictor
from ssdlib.training.trainer import Trainer
from tests.benchmarks.timing import run_command

METHODS: dict[str, dict[str, Any]] = {
    "hard": {},
    "ignore_confident": {"background": "ignore_confident"},
}
"""Changes of the recipe by name; whatever is not named is the recipe's default."""

REMOVED = (0.0, 0.15, 0.3, 0.5)
CLASS = "RBC"


def remove_labels(dataset: DetectionDataset, class_name: str, share: float, seed: int) -> DetectionDataset:
    """The same images without `share` of the class's labels, chosen by chance over all images.

    For one seed, what a small share takes off a larger one takes off too. Raises ConfigError for a share
    outside [0, 1] or a class that the data does not have.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of labels to remove must be in [0, 1], not {share}")
    if class_name not in dataset.class_names:
        raise ConfigError(f"there is no class {class_name!r}; choose of: {', '.join(dataset.class_names)}")
    label = dataset.class_names.index(class_name) + 1
    places = [
        (i, j) for i, sample in enumerate(dataset.samples) for j in np.flatnonzero(sample.labels == label)
    ]
    order = np.random.default_rng(seed).permutation(len(places))
    kept = [np.ones(len(sample.labels), dtype=bool) for sample in dataset.samples]
    for k in order[: round(share * len(places))]:
        image, index = places[k]
        kept[image][index] = False
    samples = [
        replace(sample, boxes=sample.boxes[keep], labels=sample.labels[keep])
        for sample, keep in zip(dataset.samples, kept, strict=True)
    ]
    return DetectionDataset(samples, dataset.class_names, dataset.transform)


def recipe_for(method: str, images: int, train_images: int) -> Recipe:
    """`scratch` without extra smears, for about `images` images seen in whole epochs, with the method."""
    scratch = RECIPES["scratch"]
    batch = min(scratch.batch_size, train_images)
    seen = train_images // batch * batch  # the rest of an epoch is left out
    epochs = max(1, round(images / seen))
    return scratch.replace(
        smears=0, epochs=epochs, evaluate_every=epochs, checkpoint_every=epochs, **METHODS[method]
    )


def run_row(
    train: DetectionDataset, val: DetectionDataset, recipe: Recipe, removed: float, seed: int
) -> dict[str, Any]:
    """Train on `train` with the share `removed` of CLASS's labels gone and judge on `val` as it is."""
    data = remove_labels(train, CLASS, removed, seed)
    model = build_model(recipe.model.replace(class_names=tuple(train.class_names)), seed=seed)
    with tempfile.TemporaryDirectory(prefix="ssdlib-missing-") as folder:
        trainer = Trainer(model, recipe, data, None, run_dir=folder, seed=seed, workers=0, progress=False)
        history = trainer.fit()
        metrics, _ = evaluate_model(Predictor(trainer.weights, precision=trainer.precision), val)
    own = metrics.per_class[CLASS]
    return {
        "labels": data.class_counts()[CLASS],
        "map_50": metrics.map_50,
        "ap_50": {name: one.ap_50 for name, one in metrics.per_class.items()},
        "recall": own.recall,
        "precision": own.precision,
        "epochs": recipe.epochs,
        "seconds": sum(record.seconds for record in history.epochs),
        "cores": available_cores(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def open_results(path: Path, terms: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that `path` holds. Raises ConfigError if they were measured under other terms."""
    if not path.exists():
        return []
    known = read_json(path, hint="Remove it.")
    if known.get("terms") != dict(terms):
        raise ConfigError(
            f"{path} holds rows measured under other terms ({known.get('terms')}), which cannot be compared "
            f"with these ({dict(terms)}): give another file (--json), or the same settings."
        )
    return known["rows"]


FIGURES = {
    f"{CLASS} AP@0.5": lambda row: row["ap_50"][CLASS],
    "mAP@0.5": lambda row: row["map_50"],
    f"{CLASS} recall at score 0.5": lambda row: row["recall"],
    f"{CLASS} precision at score 0.5": lambda row: row["precision"],
}
"""What a row tells, by the name it has in tables and figures."""


def panels(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str] = tuple(FIGURES)[:3]
) -> dict[str, dict[str, dict[float, float | None]]]:
    """{figure: {method: {share removed: mean over the seeds}}}; None if a seed has none."""
    found: dict[str, dict[str, dict[float, float | None]]] = {}
    for name in names:
        by_method = found[name] = {}
        for row in rows:
            by_method.setdefault(row["method"], {}).setdefault(row["removed"], []).append(FIGURES[name](row))
        for method, by_share in by_method.items():
            by_method[method] = {share: _mean(by_share[share]) for share in sorted(by_share)}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.mean(values)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each share removed and method, with means over the seeds."""
    columns = panels(rows, tuple(FIGURES))
    seeds = Counter((row["removed"], row["method"]) for row in rows)
    lines = [
        "| " + " | ".join(["labels removed", "background", *columns, "seeds"]) + " |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for (share, method), count in sorted(seeds.items(), key=lambda item: item[0][0]):
        figures = [_figure(column[method][share]) for column in columns.values()]
        lines.append(f"| {share:.0%} | `{method}` | " + " | ".join(figures) + f" | {count} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def measure(
    source: DataSource,
    path: Path,
    *,
    images: int = 1500,
    train_images: int = 96,
    val_images: int = 48,
    shares: Sequence[float] = REMOVED,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Train the rows that `path` does not hold yet, writing it after each, and return all rows.

    Rows come in the order seeds, shares (the largest first: it tells most), methods.
    Raises ConfigError for a method that there is none of, or a file of other terms.
    """
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise ConfigError(f"there is no method {', '.join(unknown)}; choose of: {', '.join(METHODS)}")
    train, val = source.dataset("train", train_images), source.dataset("val", val_images)
    terms = {
        "images": images,
        "train_images": len(train),
        "val_images": len(val),
        "class": CLASS,
        "data": source.fingerprint,
    }
    rows = open_results(path, terms)
    for seed in seeds:
        for share in sorted(shares, reverse=True):
            for method in methods:
                recipe = recipe_for(method, images, len(train))
                key = {"removed": share, "method": method, "seed": seed}
                same = [row for row in rows if key.items() <= row.items()]
                # A setting that one of the two does not know is no change.
                wanted = flatten(recipe.to_dict()).items()
                trained = (flatten(row["recipe"]) for row in same)
                if any(all(known.get(name, value) == value for name, value in wanted) for known in trained):
                    continue
                own = key | {"recipe": recipe.to_dict()} | run_row(train, val, recipe, share, seed)
                rows = [*(row for row in rows if row not in same), own]
                write_json(
                    path,
                    {
                        "terms": terms,
                        "data": source.describe(root=False),
                        "environment": environment(),
                        "rows": rows,
                    },
                )
                print(_line(rows[-1]), flush=True)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    figures = "  ".join(f"{name} {_figure(value(row))}" for name, value in FIGURES.items())
    return f"{row['removed']:4.0%} {row['method']:16} seed {row['seed']}  {figures}  {row['seconds']:.0f} s"


def save_figure(results: Mapping[str, Any], path: Path) -> Path:
    """The figure of a results file's content, as PNG beside `path`; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ssdlib.plots.missing_labels import missing_labels

    figure = missing_labels(panels(results["rows"]), synthetic=results["data"]["synthetic"])
    picture = path.with_suffix(".png")
    write_with(picture, lambda stream: figure.savefig(stream, format="png", dpi=160))
    plt.close(figure)
    return picture


def main(
    data: Annotated[str, typer.Option(help="smears, bccd, or a folder; complete labels wanted.")] = "smears",
    images: Annotated[int, typer.Option(help="Images seen by each row.", min=1)] = 1500,
    train_images: Annotated[int, typer.Option(help="How many different ones.", min=1)] = 96,
    val_images: Annotated[int, typer.Option(help="How many to judge by.", min=1)] = 48,
    removed: Annotated[
        list[float] | None, typer.Option(help="Share of RBC labels removed; may be repeated.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 0.")] = None,
    json: Annotated[Path, typer.Option(help="Where the figures are gathered.")] = Path(
        "bench/missing-labels.json"
    ),
) -> None:
    """Train with RBC labels removed, once for each way of learning background; judge on all labels."""
    rows = measure(
        resolve(data),
        json,
        images=images,
        train_images=train_images,
        val_images=val_images,
        shares=removed or REMOVED,
        methods=only or tuple(METHODS),
        seeds=seed or (0,),
    )
    print(f"\n{table(rows)}\n\nwritten: {json}, {save_figure(read_json(json), json)}")


if __name__ == "__main__":
    run_command(main)
