"""What each ingredient of recipe `scratch` is worth: one change at a time, as many images seen.

    python -m tests.benchmarks.ablation --data bccd --images 2000 --seed 0 --seed 1

Every row is a run under `runs/` like any other, so it can be looked at, and a finished one is not run again.
The baseline is the recipe without synthetic smears; adding those is a row too.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ssdlib.common.files import read_json, write_json
from ssdlib.common.paths import runs_folder
from ssdlib.common.runtime import available_cores, environment
from ssdlib.config import PriorConfig
from ssdlib.runs.folder import RunFolder
from tests.benchmarks.timing import run_command

BASELINE = "as it is"
PAPER_PRIORS = PriorConfig().to_dict()

Overrides = dict[str, Any]


def changes(epochs: int, images: int) -> dict[str, Overrides]:
    """Overrides of each row by name; `epochs` passes over `images` training images are its budget.

    Rows with smears see fewer real images, so that the number of images is the same.
    """
    half = max(1, epochs // 2)
    return {
        BASELINE: {},
        "smears among the images, half": {"recipe.smears": images, "recipe.epochs": half},
        "photometric distortion at 0.5": {"recipe.augment.photometric": 0.5},
        "no photometric distortion": {"recipe.augment.photometric": 0.0},
        "the paper's IoU crops for zoom-in": {"recipe.augment.zoom_in": 1.0, "recipe.augment.iou_crop": 0.1},
        "no zooms": {"recipe.augment.zoom_in": 1.0, "recipe.augment.zoom_out": 1.0},
        "zooms to 1.6": {"recipe.augment.zoom_in": 1.6, "recipe.augment.zoom_out": 1.6},
        "no flips": {"recipe.augment.horizontal_flip": 0.0, "recipe.augment.vertical_flip": 0.0},
        "the paper's priors": {"recipe.model.priors": PAPER_PRIORS},
        "positive from IoU 0.4": {"recipe.iou_threshold": 0.4},
        "six negatives per positive": {"recipe.negatives_per_positive": 6.0},
        "confident background ignored": {"recipe.background": "ignore_confident"},
        "no average of weights": {"recipe.ema_decay": 0.0},
        "no warm-up": {"recipe.warmup_steps": 0},
        "half the learning rate": {"recipe.learning_rate": 5e-4},
        "twice the learning rate": {"recipe.learning_rate": 2e-3},
        "a tenth of the weight decay": {"recipe.weight_decay": 0.005},
        "SGD at 0.01": {
            "recipe.optimizer": "sgd",
            "recipe.learning_rate": 0.01,
            "recipe.weight_decay": 5e-4,
        },
        "batch 4": {"recipe.batch_size": 4},
        "batch 16": {"recipe.batch_size": 16},
        "no BatchNorm": {"recipe.model.batch_norm": False},
        "a quarter of the channels": {"recipe.model.width": 0.25},
        "all channels": {"recipe.model.width": 1.0},
    }


def run_row(
    name: str, overrides: Overrides, seed: int, epochs: int, data: str, folder: Path
) -> dict[str, Any]:
    """Train one row and return its figures on val after the last epoch."""
    settings = {
        "recipe.smears": 0,
        "recipe.epochs": epochs,
        **overrides,
        "seed": seed,
    }
    settings["recipe.evaluate_every"] = settings["recipe.epochs"]  # the last one only
    run = RunFolder.open(folder, profile="full", data=data, overrides=settings, progress=False)
    history = run.train(resume=True, on_epoch=lambda _: None)
    record = history.epochs[-1]
    return {
        "change": name,
        "seed": seed,
        "overrides": overrides,
        "map_50": record.map_50,
        "seconds": sum(record.seconds for record in history.epochs),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows by name with mean val mAP@0.5 over the seeds, the difference to the baseline, and the seeds."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["map_50"] is not None:
            scores.setdefault(row["change"], []).append(row["map_50"])
    base = statistics.mean(scores[BASELINE]) if BASELINE in scores else None
    lines = ["| change | val mAP@0.5 | difference | seeds |", "| --- | --- | --- | --- |"]
    for name, values in scores.items():
        mean = statistics.mean(values)
        difference = "" if base is None or name == BASELINE else f"{100 * (mean - base):+.1f}"
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        lines.append(f"| {name} | {mean:.3f}{spread} | {difference} | {len(values)} |")
    return "\n".join(lines)


def main(
    data: Annotated[str, typer.Option(help="auto, bccd, smears, or a folder.")] = "auto",
    images: Annotated[int, typer.Option(help="Images seen by each row.", min=1)] = 2000,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 0.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this row; may be repeated.")] = None,
    json: Annotated[Path, typer.Option(help="Where the figures are gathered.")] = Path("bench/ablation.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: runs/ablation.")] = None,
) -> None:
    """Train the recipe with one change at a time and tabulate val mAP@0.5."""
    from ssdlib.data import source as bccd

    source = bccd.resolve(data)
    count = len(source.split_ids("train"))
    epochs = max(1, round(images / count))
    rows_by_name = changes(epochs, count)
    unknown = sorted(set(only or ()) - set(rows_by_name))
    if unknown:
        raise typer.BadParameter(f"no row {', '.join(unknown)}; they are: {', '.join(rows_by_name)}")
    for number in seed or [0]:
        for name in only or rows_by_name:
            stored = read_json(json, hint="Remove it.") if json.exists() else {"rows": []}
            if any((row["change"], row["seed"]) == (name, number) for row in stored["rows"]):
                continue
            folder = (
                runs or runs_folder() / "ablation"
            ).resolve() / f"{name.replace(' ', '-')},seed={number}"
            row = run_row(name, rows_by_name[name], number, epochs, data, folder)
            row |= {"epochs": epochs, "cores": available_cores()}
            stored = read_json(json, hint="Remove it.") if json.exists() else {"rows": []}
            write_json(
                json,
                {
                    "images": epochs * count,
                    "data": source.describe(root=False),
                    "environment": environment(),
                    "rows": [*stored["rows"], row],
                },
            )
            print(f"{name}, seed {number}: {row['map_50']:.3f} in {row['seconds']:.0f} s", flush=True)
    print(table(read_json(json, hint="Remove it.")["rows"]))


if __name__ == "__main__":
    run_command(main)
