"""Several runs side by side: their settings that differ, their results, and the spread over seeds.

Everything is read from the run folders, so runs made by a sweep and runs made by hand compare alike. Runs
whose settings differ in the seed alone form a group. The best run and the best group are chosen by val; the
result on test is given for the best run only, because a test split that helps to choose is no test any more.
"""

from __future__ import annotations

import io
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ssdlib.common import files, pages
from ssdlib.common.errors import ConfigError, StageError
from ssdlib.common.tables import CSV_ENCODING, Table, csv_lines, number
from ssdlib.common.terminal import printable
from ssdlib.config import flatten
from ssdlib.runs.folder import Figure, data_name, read_config, read_stages
from ssdlib.training.history import History

SEED = "seed"
CLASSES = "recipe.model.class_names"
"""A setting that follows from the data."""
NAMED = ("name", "recipe.name")
"""The names of the profile and of the recipe, each of which stands for many settings."""
SHORT_NAMES = {"name": "profile", "recipe.name": "recipe", "recipe.learning_rate": "lr"}
LEGEND_LIMIT = 8
"""Groups that the figure names; more colors are not told apart."""


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs to know of one run."""

    name: str
    path: Path
    settings: dict[str, Any]
    """The whole profile by dotted name: {"recipe.learning_rate": 0.001, "seed": 0, ...}."""
    state: str
    """done, failed, interrupted, killed, unfinished, running or not run."""
    error: str = ""
    history: History = field(default_factory=History)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the training came to its last epoch; the results of others are not compared."""
        return len(self.history.epochs) >= self.settings["recipe.epochs"]

    @property
    def result(self) -> float | None:
        """mAP@0.5 on val of the best epoch, whose weights are kept; None before the training's end."""
        return self.history.best.map_50 if self.history.best and self.trained else None

    @property
    def val_ap_50(self) -> dict[str, float | None]:
        """AP@0.5 on val by class; empty before stage 05 has measured it."""
        per_class = self.metrics.get("val", {}).get("per_class", {})
        return {name: values.get("ap_50") for name, values in per_class.items()}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    """The compared settings that its runs share."""
    runs: tuple[RunSummary, ...]

    @property
    def label(self) -> str:
        """Such as "lr=0.003, epochs=20"; "all runs" where nothing but the seed differs."""
        settings = (f"{short_name(name)}={value_text(value)}" for name, value in self.settings.items())
        return ", ".join(settings) or "all runs"

    @property
    def results(self) -> list[float]:
        """Best val mAP@0.5 of each run that was trained to its end."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the results; None without any."""
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
        ranked = [run for run in self.runs if run.result is not None]
        return len({(run.data.get("fingerprint"), run.settings["val_images"]) for run in ranked}) <= 1

    @property
    def best_run(self) -> RunSummary | None:
        """The run with the highest val mAP@0.5; None before there is one, or if the val images differ."""
        return self.runs[0] if self.same_data and self.runs[0].result is not None else None

    @property
    def notices(self) -> list[str]:
        """Warnings that belong above the results: that the data are synthetic, or not the same."""
        found = list(dict.fromkeys(notice for run in self.runs if (notice := run.data.get("notice"))))
        if not self.same_data:
            found.append(
                "These runs were validated on different images: their figures do not compare, "
                "so none is called the best."
            )
        return found

    @property
    def class_names(self) -> list[str]:
        """The classes of all runs, in label order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.val_ap_50))

    def conclusions(self) -> list[str]:
        """Which run is best, and whether the best group's lead is more than luck, in sentences."""
        best = self.best_run
        if best is None:
            return ["No run has been trained to its end yet."] if self.same_data else []
        found = f"Best run on val: {best.name}, mAP@0.5 {best.result:.3f} at epoch {best.history.best_epoch}."
        on_test = best.metrics.get("test", {}).get("map_50")
        if on_test is not None:
            found += f" On test, which chose nothing, it has {on_test:.3f}."
        return [found, self.verdict()] if self.verdict() else [found]

    def verdict(self) -> str:
        """Whether the best group's lead is more than luck, in a sentence; empty where there is no choice."""
        ranked = [group for group in self.groups if group.results]
        if self.best_run is None or len(ranked) < 2:
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

    def to_table(self) -> Table:
        """A row for each run, the best group first, and under each group the mean over its seeds.

        Results are on val; one in brackets is of a training that has not come to its end.
        """
        names = self.class_names
        header = ["run", *map(short_name, self.columns), "mAP@0.5", *names, "COCO mAP", "best epoch", "time"]
        rows = []
        for group in self.groups:
            for run in group.runs:
                history = run.history
                so_far = f"({history.best.map_50:.3f})" if history.best and not run.trained else None
                rows.append(
                    [
                        run.name,
                        *(value_text(run.settings.get(name)) for name in self.columns),
                        so_far or number(run.result),
                        *(number(run.val_ap_50.get(name)) for name in names),
                        number(run.metrics.get("val", {}).get("map")),
                        f"{history.best_epoch or '–'}/{run.settings['recipe.epochs']}",
                        pages.duration(sum(e.seconds for e in history.epochs)) if history.epochs else "n/a",
                        run.state,
                    ]
                )
            if group.deviation is not None:
                shared = [value_text(group.settings[n]) if n != SEED else "" for n in self.columns]
                row = [f"mean of {len(group.results)}", *shared, f"{group.mean:.3f} ± {group.deviation:.3f}"]
                rows.append([*row, *[""] * (1 + len(header) - len(row))])
        return Table([*header, "state"], rows)

    def to_text(self) -> str:
        """The notices, the table and the conclusions, for a terminal."""
        blocks = [*self.notices, self.to_table().to_text(), *self.conclusions()]
        if self.best_run:
            blocks.append(f"its weights: {self.best_run.path / 'checkpoints/best.safetensors'}")
        return "\n".join(blocks)

    def to_csv(self) -> str:
        """A line for each run with its settings and its results on val; a missing value is an empty cell."""
        rows = []
        for run in self.runs:
            epochs, best = run.history.epochs, run.history.best
            rows.append(
                {
                    "run": run.name,
                    "state": run.state,
                    **{name: value_text(run.settings.get(name)) for name in self.columns},
                    "epochs": len(epochs),
                    "best_epoch": run.history.best_epoch,
                    "val_map_50": best and best.map_50,
                    "trained": run.trained,
                    "val_map": run.metrics.get("val", {}).get("map"),
                    **{f"val_ap_50_{name}": run.val_ap_50.get(name) for name in self.class_names},
                    "seconds": sum(one.seconds for one in epochs) if epochs else None,
                    "images_per_second": statistics.median(o.images_per_second for o in epochs)
                    if epochs
                    else None,
                }
            )
        return "".join(csv_lines([rows[0], *(row.values() for row in rows)]))


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
    # Stable, so that equals stay in the order in which they were given; unfinished trainings come last.
    best_so_far = {id(run): run.history.best.map_50 if run.history.best else -1.0 for run in runs}
    runs.sort(key=lambda run: (run.result is None, -best_so_far[id(run)]))
    return Comparison(title, columns, tuple(runs), _groups(runs, columns))


def read_run(folder: str | Path, stages: Sequence[str] = ()) -> RunSummary:
    """Read one run folder; what it lacks stays empty. Raises StageError if it is no run's folder.

    stages: names such as 04_train that make it "done"; by default those that have been started.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise StageError(f"{folder} is not a run: it has no config.json")
    config = read_config(folder / "config.json")
    try:
        history = History.from_dict(_read(folder / "history.json", {"epochs": []}))
        settings = flatten(config["profile"])
        files.check_shape({name: settings[name] for name in ("recipe.epochs", "val_images")}, _Settings)
        state, error = _state(folder, stages, len(history.epochs) >= settings["recipe.epochs"])
        metrics = _read(folder / "metrics.json", {}, _Metrics)
        return RunSummary(folder.name, folder, settings, state, error, history, metrics, config["data"])
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise StageError(
            f"{folder}: config.json or history.json is not as a run writes it ({problem!r}). "
            "Make the run anew."
        ) from problem


_Count = Annotated[int, Field(strict=True)]
_Settings = TypedDict("_Settings", {"recipe.epochs": _Count, "val_images": _Count | None})


class _Class(TypedDict, total=False):
    ap_50: Figure | None


class _Section(TypedDict, total=False):
    map_50: Figure | None
    map: Figure | None
    per_class: dict[str, _Class]


class _Metrics(TypedDict, total=False):
    """What is taken from metrics.json."""

    val: _Section
    test: _Section


def _read(path: Path, default: dict[str, Any], shape: Any = dict[str, Any]) -> dict[str, Any]:
    return files.read_json(path, shape=shape) if path.exists() else default


def _state(folder: Path, stages: Sequence[str], trained: bool) -> tuple[str, str]:
    """(state of the whole run, what went wrong) over the stages that were asked for."""
    entries = {entry["name"]: entry for entry in read_stages(folder)}
    asked = [entries.get(name, {"state": "not run"}) for name in stages]
    asked = asked or [entry for entry in entries.values() if entry["state"] != "not run"]
    states = [entry["state"] for entry in asked]
    for state in ("failed", "interrupted", "killed", "running"):
        if state in states:
            return state, asked[states.index(state)].get("error", "")
    if not states:  # made without the notebooks
        return ("done" if trained else "unfinished"), ""
    return ("done" if set(states) == {"done"} else "not run" if "done" not in states else "unfinished"), ""


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


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write comparison.html and .csv into `folder` and return the page's path.

    Links to the runs' reports are relative to `folder`.
    """
    path, runs, table = Path(folder) / "comparison.html", comparison.runs, comparison.to_table()
    shared = {k: v for k, v in runs[0].settings.items() if all(run.settings.get(k) == v for run in runs)}
    reports = {run.name: run.path / "report.html" for run in runs}
    page = pages.render(
        "runs/comparison.html",
        title=comparison.title,
        comparison=comparison,
        done=sum(run.state == "done" for run in runs),
        data=sorted({data_name(run.data) for run in runs}),
        settings=", ".join(map(short_name, comparison.columns)),
        seconds=sum(record.seconds for run in runs for record in run.history.epochs),
        table=table,
        means={row[0] for row in table.rows} - {run.name for run in runs},
        figure=_figure(comparison),
        links={name: _relative(report, path.parent) for name, report in reports.items() if report.exists()},
        shared=Table((), [(name, value_text(value)) for name, value in shared.items()]),
    )
    files.write_text(path.with_suffix(".csv"), comparison.to_csv(), CSV_ENCODING)
    files.write_text(path, page)
    return path


def _relative(path: Path, folder: Path) -> str:
    """The URL of a file as seen from a page in `folder`."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix(), safe="/=,+")


def _drawable(text: str) -> str:
    """Text that matplotlib draws as it stands, and that leaves room for the curves."""
    return printable(text[:120], keep="").replace("$", r"\$")


def _figure(comparison: Comparison) -> bytes | None:
    """A PNG of val mAP@0.5 against epochs; None before the first epoch."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from ssdlib.plots.style import STYLE, mark_synthetic
    from ssdlib.plots.training import map_curves

    if not any(run.history.epochs for run in comparison.runs):
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        groups = {group.label: [run.history for run in group.runs] for group in comparison.groups}
        ax = map_curves(figure.subplots(), groups)
        lines, labels = (found[::-1][:LEGEND_LIMIT] for found in ax.get_legend_handles_labels())
        ax.legend(lines, [_drawable(label) for label in labels], loc="lower right")
        if any(run.data.get("synthetic") for run in comparison.runs):
            mark_synthetic(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
