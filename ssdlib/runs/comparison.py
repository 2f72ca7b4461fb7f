"""Several runs side by side: their settings that differ, their results, and the spread over seeds.

Everything is read from the run folders, so runs made by a sweep and runs made by hand compare alike. Runs
whose settings differ in the seed alone form a group. The best run and the best group are named by val; what
a run scored on test is told of the best run only, because a test split that helps to choose is none.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdlib.common import files
from ssdlib.common.errors import StageError
from ssdlib.runs.folder import read_stages
from ssdlib.training.history import History

SEED = "seed"
CLASSES = "recipe.model.class_names"
"""Follows from the data: not a setting that anybody chose."""
NAMED = ("name", "recipe.name")
"""Names that stand for many settings at once: those of the profile and of the recipe."""
SHORT_NAMES = {"name": "profile", "recipe.name": "recipe", "recipe.learning_rate": "lr"}
FORMAT = 1


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs to know of one run."""

    name: str
    path: Path
    settings: dict[str, Any]
    """The whole profile, flat: {"recipe.learning_rate": 0.001, "seed": 0, ...}."""
    state: str
    """done, failed, interrupted, unfinished, running or not run."""
    error: str = ""
    history: History = field(default_factory=History)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the training came to its last epoch: only then does the result count."""
        return len(self.history.epochs) >= self.settings["recipe.epochs"]

    @property
    def val_map_50(self) -> float | None:
        """mAP@0.5 on val of the best epoch so far, which is the one whose weights are kept."""
        return self.history.best.map_50 if self.history.best else None

    @property
    def result(self) -> float | None:
        """`val_map_50` of a run that was trained to its end, else None."""
        return self.val_map_50 if self.trained else None

    @property
    def val_map(self) -> float | None:
        """mAP on val over IoU 0.5 to 0.95, as COCO counts it; the stage 05 measures it."""
        return self.metrics.get("val", {}).get("map")

    @property
    def val_ap_50(self) -> dict[str, float | None]:
        """AP@0.5 on val of each class; empty before the stage 05."""
        classes = self.metrics.get("val", {}).get("per_class", {})
        return {name: values.get("ap_50") for name, values in classes.items()}

    @property
    def test_map_50(self) -> float | None:
        """mAP@0.5 on test."""
        return self.metrics.get("test", {}).get("map_50")

    @property
    def seconds(self) -> float | None:
        """Time in training and its evaluations."""
        return sum(record.seconds for record in self.history.epochs) if self.history.epochs else None

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs."""
        speeds = [record.images_per_second for record in self.history.epochs]
        return statistics.median(speeds) if speeds else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    """The compared settings that its runs share."""
    runs: tuple[RunSummary, ...]

    @property
    def label(self) -> str:
        """Such as "lr=0.003, epochs=20"; "all runs" where nothing but the seed differs."""
        return label_of(self.settings) or "all runs"

    @property
    def results(self) -> list[float]:
        """Best val mAP@0.5 of each run that was trained to its end."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.results) if self.results else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (divided by n - 1); None for fewer than two results."""
        return statistics.stdev(self.results) if len(self.results) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Runs, best on val first, and their groups, best mean first."""

    title: str
    columns: tuple[str, ...]
    """Dotted names of the settings that are compared."""
    runs: tuple[RunSummary, ...]
    groups: tuple[Group, ...]

    @property
    def same_data(self) -> bool:
        """Whether all results are of the same val images, so that they can be ranked at all."""
        return len({(r.data.get("fingerprint"), r.settings["val_images"]) for r in self._results}) <= 1

    @property
    def best_run(self) -> RunSummary | None:
        """The run with the highest val mAP@0.5; None before there is one, or if the val images differ."""
        return self._results[0] if self._results and self.same_data else None

    @property
    def best_group(self) -> Group | None:
        """The group with the highest mean val mAP@0.5."""
        return self.groups[0] if self.same_data and self.groups[0].results else None

    @property
    def notices(self) -> list[str]:
        """What everyone who reads the results must know: that data are synthetic, or not the same."""
        found = list(dict.fromkeys(n for run in self.runs if (n := run.data.get("notice"))))
        if not self.same_data:
            found.append(
                "These runs were validated on different images: their figures do not compare, "
                "so none is called the best."
            )
        return found

    @property
    def class_names(self) -> list[str]:
        """Of all runs, in label order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.val_ap_50))

    @property
    def _results(self) -> list[RunSummary]:
        return [run for run in self.runs if run.result is not None]

    def verdict(self) -> str:
        """Whether the best group's lead is more than luck, in a sentence; empty where there is no choice."""
        ranked = [group for group in self.groups if group.results]
        if self.best_group is None or len(ranked) < 2:
            return ""
        first, second = ranked[:2]
        lead = f"{first.label} leads {second.label} by {100 * (first.mean - second.mean):.1f} points"
        spreads = [group.deviation for group in (first, second)]
        if None in spreads:
            return f"{lead}; with a single seed such a lead may be luck."
        points = f"{100 * max(spreads):.1f}"
        if first.mean - second.mean <= max(spreads):
            return f"{lead}, no more than the spread over seeds ({points}): that may be luck."
        return f"{lead}; the spread over seeds is {points}."

    def to_dict(self) -> dict[str, Any]:
        """JSON values. Test results are those of the best run alone."""
        best = self.best_run
        return {
            "format": FORMAT,
            "title": self.title,
            "chosen_by": "mAP@0.5 on val",
            "best_run": best and best.name,
            "best_run_test_map_50": best and best.test_map_50,
            "best_group": self.best_group and self.best_group.label,
            "verdict": self.verdict(),
            "notices": self.notices,
            "settings": list(self.columns),
            "groups": [_group_dict(group) for group in self.groups],
            "runs": [self._run_dict(run) for run in self.runs],
        }

    def _run_dict(self, run: RunSummary) -> dict[str, Any]:
        return {
            "run": run.name,
            "state": run.state,
            "error": run.error,
            "settings": {name: run.settings.get(name) for name in self.columns},
            "epochs": len(run.history.epochs),
            "best_epoch": run.history.best_epoch,
            "val_map_50": run.val_map_50,
            "trained": run.trained,
            "val_map": run.val_map,
            "val_ap_50": run.val_ap_50,
            "seconds": run.seconds,
            "images_per_second": run.images_per_second,
        }

    def to_text(self) -> str:
        """Notices, a line for each group, and the best by val, for a terminal."""
        lines = [*self.notices]
        for group in self.groups:
            spread = f" ± {group.deviation:.3f}" if group.deviation is not None else ""
            result = f"{group.mean:.3f}{spread} (n={len(group.results)})" if group.results else "n/a"
            lines.append(f"{group.label}: val mAP@0.5 {result}")
        if self.best_run is not None:
            lines.append(f"best run on val: {self.best_run.name}, mAP@0.5 {self.best_run.result:.3f}")
            lines.append(f"its weights: {self.best_run.path / 'checkpoints/best.safetensors'}")
        return "\n".join([*lines, *filter(None, [self.verdict()])])

    def to_csv(self) -> str:
        """A line for each run, as in the JSON; empty cells are values that are missing."""
        stream = io.StringIO()
        fixed = ("epochs", "best_epoch", "val_map_50", "trained", "val_map")
        last = ("seconds", "images_per_second")
        classes = self.class_names
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["run", "state", *self.columns, *fixed, *(f"val_ap_50_{n}" for n in classes), *last])
        for run in map(self._run_dict, self.runs):
            settings = [value_text(value) for value in run["settings"].values()]
            classwise = [run["val_ap_50"].get(name) for name in classes]
            results = [run[name] for name in fixed], classwise, [run[name] for name in last]
            writer.writerow([run["run"], run["state"], *settings, *(v for part in results for v in part)])
        return stream.getvalue()


def _group_dict(group: Group) -> dict[str, Any]:
    results = group.results
    return {
        "label": group.label,
        "settings": group.settings,
        "runs": [run.name for run in group.runs],
        "n": len(results),
        "mean": group.mean,
        "standard_deviation": group.deviation,
        "min": min(results, default=None),
        "max": max(results, default=None),
    }


def compare_runs(
    folders: Sequence[str | Path | RunSummary],
    *,
    title: str = "Comparison of runs",
    always: Sequence[str] = (),
) -> Comparison:
    """Compare the runs in these folders (or those already read with `read_run`).

    always: settings that are shown even where all runs agree in them.
    Raises StageError for a folder that holds no run, or if there is none at all.
    """
    runs = [one if isinstance(one, RunSummary) else read_run(one) for one in folders]
    if not runs:
        raise StageError("there is no run to compare: name at least one run folder")
    columns = differing_settings([run.settings for run in runs], always)
    # Stable, so that equals stay in the order in which they were given.
    runs.sort(key=lambda r: (r.result is None, -(r.result or 0), r.val_map_50 is None, -(r.val_map_50 or 0)))
    return Comparison(title, columns, tuple(runs), _groups(runs, columns))


def read_run(folder: str | Path, stages: Sequence[str] = ()) -> RunSummary:
    """Read one run folder; what it lacks stays empty. Raises StageError if it is no run's folder.

    stages: names such as 04_train that make it "done"; by default those that have been started.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise StageError(f"{folder} is not a run: it has no config.json")
    config = files.read_json(folder / "config.json")
    history = History.from_dict(_read(folder / "history.json", {"epochs": []}))
    settings = flat(config["profile"])
    state, error = _state(folder, stages, len(history.epochs) >= settings["recipe.epochs"])
    return RunSummary(
        folder.name,
        folder,
        settings,
        state,
        error,
        history,
        _read(folder / "metrics.json", {}),
        config["data"],
    )


def _read(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    return files.read_json(path) if path.exists() else default


def _state(folder: Path, stages: Sequence[str], trained: bool) -> tuple[str, str]:
    """(state of the whole run, what went wrong) over the stages that were asked for."""
    entries = {entry["name"]: entry for entry in read_stages(folder)}
    asked = [entries.get(name, {"state": "not run"}) for name in stages]
    asked = asked or [entry for entry in entries.values() if entry["state"] != "not run"]
    states = [entry["state"] for entry in asked]
    for state in ("failed", "interrupted", "running"):
        if state in states:
            return state, asked[states.index(state)].get("error", "")
    if not states:  # made without the notebooks
        return ("done" if trained else "unfinished"), ""
    return ("done" if set(states) == {"done"} else "not run" if "done" not in states else "unfinished"), ""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def differing_settings(settings: Sequence[Mapping[str, Any]], always: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the settings in which runs differ, and those in `always`, the seed last.

    What follows from the name of a recipe or profile is not listed: it would be dozens of lines that say
    one thing. A setting that differs among runs of the same recipe and profile is.
    """
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in settings:
        alike.setdefault(tuple(one.get(name) for name in NAMED), []).append(one)
    names = [name for name in dict.fromkeys(n for one in settings for n in one) if name != CLASSES]
    found = [
        name
        for name in names
        if name in always
        or (name in NAMED and _varies(settings, name))
        or any(_varies(family, name) for family in alike.values())
    ]
    return tuple(sorted(found, key=lambda name: name == SEED))


def _varies(settings: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({json.dumps(one.get(name)) for one in settings}) > 1


def _groups(runs: Sequence[RunSummary], columns: Sequence[str]) -> tuple[Group, ...]:
    """Runs gathered by all settings but the seed, and by data; best mean first, without results last."""
    members: dict[str, list[RunSummary]] = {}
    for run in runs:
        rest = {name: value for name, value in run.settings.items() if name not in (SEED, CLASSES)}
        members.setdefault(json.dumps([rest, run.data.get("fingerprint")], sort_keys=True), []).append(run)
    shown = [name for name in columns if name != SEED]
    groups = [Group({n: some[0].settings.get(n) for n in shown}, tuple(some)) for some in members.values()]
    return tuple(sorted(groups, key=lambda group: (group.mean is None, -(group.mean or 0))))


def short_name(name: str) -> str:
    """The name by which a setting is shown: its last word, or a usual short form."""
    return SHORT_NAMES.get(name, name.rpartition(".")[2])


def value_text(value: Any) -> str:
    """A setting's value as people write it: 0.001, true, scratch, [0.1,0.2]."""
    if isinstance(value, float):
        short = format(value, "g")
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def label_of(settings: Mapping[str, Any]) -> str:
    """ "lr=0.003, epochs=20"."""
    return ", ".join(f"{short_name(name)}={value_text(value)}" for name, value in settings.items())
