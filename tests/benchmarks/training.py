"""`python -m tests.benchmarks.training`: time to accuracy, mAP on val against minutes and images seen.

Each contestant trains in a process of its own, one after the other, on the same images in the same order,
the same number of them, and is judged at the same moments by the same code. What it reached is written after
each evaluation; a contestant that is done is not run again with the same settings, one that was interrupted
begins again. Minutes are of training alone: decoding, augmentation and all, but not the evaluations.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ssdlib.common.errors import CheckpointError, ConfigError, SsdError, TrainingError
from ssdlib.common.files import read_json, write_json, write_with
from ssdlib.common.runtime import available_cores, choose_device, cpu_name, environment
from ssdlib.data.source import DataSource, resolve
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.evaluation.metrics import Metrics
from tests.benchmarks.contestants import (
    AnyRecipe,
    Schedule,
    Setting,
    contestants,
    describe,
    enter,
    seconds_since,
)

RESULTS = "time-to-accuracy.json"
LEVELS = (0.5, 0.8, 0.85, 0.9)
"""Minutes to each of these mAP@0.5 are printed."""


@dataclass(frozen=True)
class Race:
    """What all contestants share. It travels to their processes."""

    source: DataSource
    images: int
    evaluations: int
    seed: int
    device: str
    path: Path
    """The JSON file of results."""
    progress: bool = True

    def terms(self) -> dict[str, Any]:
        """What must be equal for two results to be compared."""
        return {
            "images": self.images,
            "evaluations": self.evaluations,
            "seed": self.seed,
            "device": self.device,
            "cpu": cpu_name(),
            "cores": available_cores(),
            "data": self.source.fingerprint,
        }


# --- the results file ------------------------------------------------------------------------------------


def open_results(race: Race, force: bool = False) -> dict[str, Any]:
    """What is known already, of the same terms; written back with the date and command of now.

    Raises ConfigError for results of other terms, unless `force` says that they may go.
    """
    known = read_json(race.path) if race.path.is_file() else {}
    terms = race.terms()
    before = known.get("terms", {}) if known else terms
    others = [f"{name} {before.get(name)!r}" for name, value in terms.items() if before.get(name) != value]
    if others and not force:
        raise ConfigError(
            f"{race.path} holds results for {', '.join(others)}, which cannot be compared with this race. "
            "Give another folder (--out), the same settings, or --force to begin anew."
        )
    results = {
        "date": _now(),
        "command": " ".join(["python -m tests.benchmarks.training", *sys.argv[1:]]),
        "environment": environment(),
        "data": race.source.describe(root=False),
        "terms": terms,
        "contestants": {} if others else known.get("contestants", {}),
    }
    write_json(race.path, results)
    return results


def is_done(entry: Mapping[str, Any] | None, recipe: AnyRecipe) -> bool:
    """Whether a contestant's entry is of this recipe and has all its evaluations, or stopped for good."""
    if not entry or entry["recipe"] != recipe.to_dict():
        return False
    return bool(entry["stopped"]) or len(entry["points"]) == entry["evaluations"]


def _record(path: Path, name: str, entry: dict[str, Any]) -> None:
    results = read_json(path)
    results["contestants"][name] = entry
    write_json(path, results)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- one contestant --------------------------------------------------------------------------------------


def compete(name: str, recipe: AnyRecipe, race: Race) -> dict[str, Any]:
    """Train one contestant to the end in this process, and return its entry, which is in the file too."""
    device = choose_device(race.device)
    train, val = (race.source.dataset(split) for split in ("train", "val"))
    schedule = Schedule.stretch(race.images, race.evaluations, len(train), recipe.batch_size)
    val.preload()  # else decoding it would be part of the first evaluation
    entry: dict[str, Any] = {
        "description": "",
        "recipe": recipe.to_dict(),
        "images": schedule.images,
        "epochs": schedule.epochs,
        "evaluations": len(schedule.stops),
        "stopped": None,
        "date": _now(),
        "environment": environment(),
        "points": [],
    }
    seconds = evaluating = 0.0
    with tempfile.TemporaryDirectory(prefix="ssdlib-race-") as folder:
        setting = Setting(race.source, device, race.seed, Path(folder), race.progress)
        contestant = enter(recipe, schedule, setting)
        entry["description"] = describe(recipe.replace(initial_weights=contestant.initial_weights), device)
        for step in schedule.stops:
            began = time.perf_counter()
            try:
                contestant.train_until(step)
                seconds += seconds_since(began, device)
                began = time.perf_counter()
                metrics, _ = evaluate_model(contestant.detector(), val)
                evaluating += seconds_since(began, device)
            except (TrainingError, CheckpointError) as error:
                # A loss or weights that are not finite: that is a result.
                entry["stopped"] = str(error)
                _record(race.path, name, entry)
                print(f"{name:12} stopped: {error}", flush=True)
                return entry
            entry["points"].append(_point(step * schedule.per_step, seconds, evaluating, metrics))
            _record(race.path, name, entry)
            print(_line(name, entry), flush=True)
    return entry


def _point(images: int, seconds: float, evaluating: float, metrics: Metrics) -> dict[str, Any]:
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "evaluation_seconds": round(evaluating, 3),
        "map_50": metrics.map_50,
        "ap_50": {name: one.ap_50 for name, one in metrics.per_class.items()},
    }


def _line(name: str, entry: Mapping[str, Any]) -> str:
    point = entry["points"][-1]
    classes = "  ".join(f"{label} {_figure(ap)}" for label, ap in point["ap_50"].items())
    return (
        f"{name:12} {point['images']:{len(str(entry['images']))}}/{entry['images']} images  "
        f"{point['seconds'] / 60:6.1f} min  val mAP@0.5 {_figure(point['map_50'])}  ({classes})  "
        f"evaluations {point['evaluation_seconds'] / 60:.1f} min"
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


# --- all of them -----------------------------------------------------------------------------------------


def hold(race: Race, recipes: Mapping[str, AnyRecipe], force: bool = False) -> dict[str, Any]:
    """Run the contestants that are not done yet, each in a fresh process, and return all results.

    Ours changes malloc for its process; the others must not profit from it, nor from warm caches.
    Raises SsdError if one of them dies.
    """
    results = open_results(race, force)
    for name, recipe in recipes.items():
        if is_done(results["contestants"].get(name), recipe):
            print(f"{name:12} is done already: {race.path}")
            continue
        print(f"{name:12} {describe(recipe, choose_device(race.device))}", flush=True)
        process = multiprocessing.get_context("spawn").Process(target=_compete, args=(name, recipe, race))
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
        if process.exitcode != 0:
            raise SsdError(
                f"{name} did not finish (exit code {process.exitcode}, see above). What was measured is in "
                f"{race.path}; run the command again, and those that are done are not repeated."
            )
    return read_json(race.path)


def _compete(name: str, recipe: AnyRecipe, race: Race) -> None:
    try:
        compete(name, recipe, race)
    except SsdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def first_reaching(points: Sequence[Mapping[str, Any]], level: float) -> Mapping[str, Any] | None:
    """The first evaluation with at least that mAP@0.5; nothing is interpolated."""
    return next((p for p in points if p["map_50"] is not None and p["map_50"] >= level), None)


def table(results: Mapping[str, Any]) -> str:
    """A line for each contestant: what it reached, how fast, and the minutes to each level."""
    header = [*(f"to {level:g}" for level in LEVELS), "minutes", "img/s", "last", "best"]
    lines = ["minutes of training until an evaluation found that val mAP@0.5, and in all"]
    lines.append(f"  {'':12}" + "".join(f"{title:>9}" for title in header))
    for name, entry in results["contestants"].items():
        points = entry["points"]
        reached = [first_reaching(points, level) for level in LEVELS]
        values = [_figure(p["seconds"] / 60 if p else None, 1) for p in reached]
        if points:
            last = points[-1]
            maps = [p["map_50"] for p in points if p["map_50"] is not None]
            values += [f"{last['seconds'] / 60:.1f}", f"{last['images'] / last['seconds']:.2f}"]
            values += [_figure(last["map_50"]), _figure(max(maps, default=None))]
        remark = "  stopped" if entry["stopped"] else ""
        lines.append(f"  {name:12}" + "".join(f"{value:>9}" for value in values) + remark)
    return "\n".join(lines)


def save_figure(results: Mapping[str, Any], path: Path) -> list[Path]:
    """The figure, as PNG and SVG beside the results; returns both files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ssdlib.plots.training import time_to_accuracy

    figure = time_to_accuracy(results)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        write_with(file, lambda stream, file=file: figure.savefig(stream, format=file.suffix[1:], dpi=200))
    plt.close(figure)
    return files


def main(
    data: Annotated[str, typer.Option(help="auto, bccd, smears, or a folder in Pascal VOC layout.")] = "auto",
    images: Annotated[int, typer.Option(min=1, help="Images each sees (rounded to whole epochs).")] = 2000,
    evaluations: Annotated[int, typer.Option(min=1, help="Evaluations on val, evenly spread.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Only this contestant; may be repeated.")] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch/--pretrained", help="How `original` starts; its own way is pretrained."),
    ] = True,
    out: Annotated[Path, typer.Option(help="Folder for the results and the figure.")] = Path("bench"),
    seed: Annotated[int, typer.Option(help="Of the weights, the order and the augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Begin anew, dropping results of others.")] = False,
    progress: Annotated[bool, typer.Option(help="Progress bars on stderr.")] = True,
) -> None:
    """Val mAP@0.5 against minutes and images, for ours, the original recipe and torchvision's.

    Example: python -m tests.benchmarks.training --data bccd --images 4000 --only scratch
    """
    recipes = contestants(pretrained=not from_scratch)
    unknown = sorted(set(only or ()) - set(recipes))
    if unknown:
        raise typer.BadParameter(
            f"there is no contestant {', '.join(unknown)}; choose from {', '.join(recipes)}",
            param_hint="--only",
        )
    try:
        source = resolve(data, progress=progress)
        chosen = str(choose_device(device))
        race = Race(source, images, evaluations, seed, chosen, out / RESULTS, progress)
        results = hold(race, {name: recipes[name] for name in only or recipes}, force)
        print("\n" + table(results))
        files = save_figure(results, race.path)
    except SsdError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print("\nwritten: " + ", ".join(map(str, [race.path, *files])))


if __name__ == "__main__":
    typer.run(main)
