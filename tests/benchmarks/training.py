"""`python -m tests.benchmarks.training`: time to accuracy, mAP on val against minutes and images seen.

Each recipe trains in a process of its own, one after the other, on the same images in the same order, the
same number of them, and is evaluated at the same moments by the same code. What it reached is written after
each evaluation; a training that is done is not repeated with the same settings, one that was interrupted
begins again. Minutes are of training alone: decoding, augmentation and all, but not the evaluations.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ssdlib.common.errors import CheckpointError, SsdError, TrainingError
from ssdlib.common.files import read_json
from ssdlib.common.runtime import choose_device, cpu_name
from ssdlib.common.tables import Table, number
from ssdlib.common.threads import available_cores
from ssdlib.data.source import resolve
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.plots.training import time_to_accuracy
from tests.benchmarks.baselines import BASELINES, AnyRecipe, Benchmark, Schedule, start
from tests.benchmarks.common import Results, choose, run_command, save_figure
from tests.benchmarks.timing import now

RESULTS = "time-to-accuracy.json"
LEVELS = (0.5, 0.8, 0.85, 0.9)
"""Minutes to each of these mAP@0.5 are printed."""


def results_of(benchmark: Benchmark) -> Results:
    """The file of results. Raises ConfigError if it was measured under other terms."""
    names = ("images", "evaluations", "seed", "device")
    terms = {name: getattr(benchmark, name) for name in names}
    terms |= {"cpu": cpu_name(), "cores": available_cores(), "data": benchmark.source.fingerprint}
    return Results(benchmark.path, terms, benchmark.source.describe(root=False))


def is_done(row: Mapping[str, Any] | None) -> bool:
    """Whether a row has all its evaluations, or its training stopped for good."""
    return row is not None and (bool(row["stopped"]) or len(row["points"]) == row["evaluations"])


def train(name: str, recipe: AnyRecipe, benchmark: Benchmark) -> dict[str, Any]:
    """Train one recipe to the end in this process, and return its row, which is in the file too."""
    device, results = choose_device(benchmark.device), results_of(benchmark)
    training_data, val = (benchmark.source.dataset(split) for split in ("train", "val"))
    schedule = Schedule.stretch(
        benchmark.images, benchmark.evaluations, len(training_data), recipe.batch_size
    )
    val.preload()  # else decoding it would be part of the first evaluation
    row: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "images": schedule.epochs * schedule.epoch_images,
        "epochs": schedule.epochs,
        "evaluations": len(schedule.evaluated),
        "stopped": None,
        "points": [],
    }
    seconds = evaluating = 0.0
    with tempfile.TemporaryDirectory(prefix="ssdlib-benchmark-") as folder:
        training = start(recipe, schedule, benchmark, Path(folder))
        for epoch in range(1, schedule.epochs + 1):
            began = now(device)
            try:
                training.train_one_epoch()
                trained = now(device)
                seconds += trained - began
                if epoch not in schedule.evaluated:
                    continue
                metrics, _ = evaluate_model(training.detector(), val)
            except (TrainingError, CheckpointError) as error:
                # A loss or weights that are not finite: that is a result.
                row["stopped"] = str(error)
                results.put({"name": name}, row)
                print(f"{name:12} stopped: {error}", flush=True)
                break
            evaluating += now(device) - trained
            images = epoch * schedule.epoch_images
            row["points"].append(
                {
                    "images": images,
                    "seconds": round(seconds, 3),
                    "evaluation_seconds": round(evaluating, 3),
                    "map_50": metrics.map_50,
                    "ap_50": {label: one.ap_50 for label, one in metrics.per_class.items()},
                }
            )
            results.put({"name": name}, row)
            print(
                f"{name:12} {images}/{row['images']} images  {seconds / 60:6.1f} min  "
                f"val mAP@0.5 {number(metrics.map_50)}  evaluations {evaluating / 60:.1f} min",
                flush=True,
            )
    return row


def train_all(benchmark: Benchmark, recipes: Mapping[str, AnyRecipe]) -> dict[str, Any]:
    """Train the recipes that are not done yet, each in a fresh process, and return the file's content.

    Ours changes malloc for its process; the others must not profit from it, nor from warm caches.
    Raises SsdError if a process fails.
    """
    results = results_of(benchmark)
    for name, recipe in recipes.items():
        if is_done(results.find({"name": name}, recipe.to_dict())):
            print(f"{name:12} is done already: {benchmark.path}")
            continue
        print(f"{name:12} from {recipe.initial_weights}", flush=True)
        process = multiprocessing.get_context("spawn").Process(target=_train, args=(name, recipe, benchmark))
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
        if process.exitcode != 0:
            raise SsdError(
                f"{name} did not finish (exit code {process.exitcode}, see above). What was measured is in "
                f"{benchmark.path}; run the command again, and trainings that are done are not repeated."
            )
    return read_json(benchmark.path)


def _train(name: str, recipe: AnyRecipe, benchmark: Benchmark) -> None:
    try:
        train(name, recipe, benchmark)
    except SsdError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def table(results: Mapping[str, Any]) -> Table:
    """A table of the minutes of training to each level of val mAP@0.5, and of what each training reached.

    The minutes are those of the first evaluation with at least that mAP@0.5; nothing is interpolated.
    """
    levels = [f"{level:g}" for level in LEVELS]
    header = ("minutes to val mAP@0.5", *levels, "all", "img/s", "last", "best", "")
    rows = []
    for row in results["rows"]:
        points = row["points"]
        last = points[-1] if points else {"seconds": None, "images": None, "map_50": None}
        figures = [(point["seconds"] / 60, point["map_50"] or 0.0) for point in points]
        minutes = [next((at for at, reached in figures if reached >= level), None) for level in LEVELS]
        cells = [number(one, ".1f") for one in (*minutes, figures[-1][0] if points else None)]
        speed = last["images"] / last["seconds"] if points else None
        best = max((p["map_50"] for p in points if p["map_50"] is not None), default=None)
        cells += [number(speed, ".2f"), number(last["map_50"]), number(best)]
        rows.append((row["name"], *cells, "stopped" if row["stopped"] else ""))
    return Table(header, rows)


def main(
    data: Annotated[str, typer.Option(help="auto, bccd, smears, or a folder in Pascal VOC layout.")] = "auto",
    images: Annotated[int, typer.Option(min=1, help="Images each sees (rounded to whole epochs).")] = 2000,
    evaluations: Annotated[int, typer.Option(min=1, help="Evaluations on val, at most one an epoch.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Only this recipe; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results and the figure.")] = Path("bench"),
    seed: Annotated[int, typer.Option(help="Of the weights, the order and the augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    progress: Annotated[bool, typer.Option(help="Progress bars on stderr.")] = True,
) -> None:
    """Val mAP@0.5 against minutes and images, for ours, the original recipe and torchvision's.

    Example: python -m tests.benchmarks.training --data bccd --images 4000 --only scratch
    """
    names = choose(only, BASELINES, "--only")
    source = resolve(data, progress=progress)
    benchmark = Benchmark(
        source, images, evaluations, seed, str(choose_device(device)), out / RESULTS, progress
    )
    results = train_all(benchmark, {name: BASELINES[name] for name in names})
    print("\n" + table(results).to_text())
    files = save_figure(time_to_accuracy(results), benchmark.path, ".png", ".svg")
    print("\nwritten: " + ", ".join(map(str, [benchmark.path, *files])))


if __name__ == "__main__":
    run_command(main)
