"""Sweeps: the chain once for every combination of some settings' values, and a page that compares the runs.

    runs/SWEEP/sweep.json         what was asked
               comparison.html    the runs and groups side by side, the best named; also .csv
               seed=0,lr=0.001/   a run folder like any other for each combination

What is done stays done: the same command again goes on where it stopped.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdlib.common import files
from ssdlib.common.errors import ConfigError, SsdError, shell
from ssdlib.common.terminal import say
from ssdlib.config import Profile, find_profile, flatten
from ssdlib.runs.comparison import (
    SEED,
    Comparison,
    RunSummary,
    compare_runs,
    read_run,
    short_name,
    value_text,
    write_comparison,
)
from ssdlib.runs.folder import RunFolder, read_stages
from ssdlib.runs.overrides import apply_overrides, parse_value
from ssdlib.runs.pipeline import ChainInterrupted, run_chain, stages_left

if TYPE_CHECKING:
    from ssdlib.data.source import DataSource

ALIASES = {"lr": "recipe.learning_rate"}
FORMAT = 1
_VALUE_LENGTH = 24
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Combination:
    """One run of a sweep."""

    name: str
    """The name of its folder."""
    overrides: dict[str, Any]
    profile: Profile


@dataclass
class Sweep:
    """A sweep as planned by `plan_sweep`; nothing has been run or written yet."""

    folder: Path
    profile: str
    data: str
    axes: dict[str, tuple[Any, ...]]
    """The values that each setting, by its dotted name, is to take."""
    combinations: list[Combination]
    settings: dict[str, Any] = field(default_factory=dict)
    """What is the same for all runs but differs from the profile."""


# ---------------------------------------------------------------------------------------------- planning


def parse_axis(text: str, profile: Profile) -> tuple[str, tuple[Any, ...]]:
    """The dotted name of a setting of `profile` and its values, from NAME=VALUE,VALUE,...

    NAME is a setting's dotted name, the end of one (`epochs`, `model.width`) if no other ends so, or `lr`.
    VALUEs are JSON, so commas inside brackets and quotes do not part them; what is not JSON is text. The
    values of `recipe` are names of recipes. Raises ConfigError that lists the choices for an unknown or
    ambiguous name, and for a value that is missing, given twice, or of the wrong type.
    """
    name, separator, rest = text.partition("=")
    if not separator or not name.strip() or not rest.strip():
        raise ConfigError(f"--sweep wants NAME=VALUE,VALUE such as lr=1e-3,3e-3, not {text!r}")
    name = find_setting(name.strip(), setting_names(profile))
    values: list[Any] = []
    try:
        for part in split_values(rest):
            if not part:
                raise ConfigError("there is an empty value between commas")
            value = parse_value(part)
            if value in values:
                raise ConfigError(f"the value {part} is given twice")
            apply_overrides(profile, {name: value})
            values.append(value)
    except ConfigError as error:
        raise ConfigError(f"--sweep {text}: {error}") from error
    return name, tuple(values)


def setting_names(profile: Profile) -> list[str]:
    """Dotted names of all settings of a profile and of their groups, a group before its settings."""
    paths = (name.split(".") for name in flatten(profile.to_dict()))
    return list(dict.fromkeys(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)))


def find_setting(name: str, settings: Sequence[str]) -> str:
    """The one of `settings` that `name` means. Raises ConfigError with the choices if none or several fit."""
    wanted = ALIASES.get(name, name)
    if wanted in settings:
        return wanted
    found = [setting for setting in settings if setting.endswith(f".{wanted}")]
    if len(found) > 1:
        raise ConfigError(f"--sweep {name}: that may be {' or '.join(found)}; give the whole name")
    if not found:
        endings = [setting.rpartition(".")[2] for setting in settings]
        close = difflib.get_close_matches(name.rpartition(".")[2], [*endings, *ALIASES], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"there is no setting {name!r} to sweep.{hint} There are: {', '.join(settings)}")
    return found[0]


def split_values(text: str) -> list[str]:
    """The parts of `text` between its commas, except for commas inside brackets, braces and double quotes."""
    parts, depth, quoted, begin = [], 0, False, 0
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted and letter in "[]{}":
            depth += 1 if letter in "[{" else -1
        elif letter == "," and not quoted and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [part.strip() for part in (*parts, text[begin:])]


def plan_sweep(
    folder: str | Path,
    axes: Sequence[str],
    *,
    profile: str = "quick",
    data: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> Sweep:
    """The sweep over all combinations of some settings' values; nothing is written.

    axes: NAME=VALUE,VALUE texts, see `parse_axis`. overrides: settings that are the same for all runs.
    Raises ConfigError for an impossible setting, value or combination.
    """
    folder, overrides = Path(folder), dict(overrides or {})
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} is a single run: choose another name for the sweep with --run")
    base = apply_overrides(find_profile(profile), overrides)
    parsed = [parse_axis(text, base) for text in axes]
    names = [name for name, _ in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is swept twice: give all its values in one --sweep")
        if any(other == name or other.startswith(f"{name}.") for other in overrides) and name != "recipe":
            raise ConfigError(f"{name} is both set and swept: drop --set or --sweep of it")
    # Always in this order, whatever the order on the command line, so that folder names stay the same. The
    # seed comes first, so that each setting is tried once before any is tried again.
    order = setting_names(base)
    swept = dict(sorted(parsed, key=lambda axis: (axis[0] != SEED, order.index(axis[0]))))
    labels = [short_name(name) for name in swept]
    if len(set(labels)) < len(labels):
        labels = list(swept)
    combinations = []
    for values in itertools.product(*swept.values()):
        merged = overrides | dict(zip(swept, values, strict=True))
        name = folder_name(dict(zip(labels, values, strict=True)))
        try:
            resolved = apply_overrides(find_profile(profile), merged)
        except ConfigError as error:
            raise ConfigError(f"the combination {name} cannot be: {error}") from error
        combinations.append(Combination(name, merged, resolved))
    return Sweep(folder, profile, data, swept, combinations, overrides)


def folder_name(values: Mapping[str, Any]) -> str:
    """The name of a combination's folder, such as `seed=0,lr=0.001`: readable, and safe on every file system.

    Where a value had to be changed or shortened, a few digits of its checksum keep it apart from others.
    """
    name = ",".join(f"{label}={_safe(value_text(value))}" for label, value in values.items())
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 9]}-{_checksum(name)}"


def _safe(text: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.")[:_VALUE_LENGTH]
    # Some file systems do not tell capitals from small letters.
    return safe if safe == text and text == text.lower() else f"{safe}-{_checksum(text)}".lstrip("-")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ----------------------------------------------------------------------------------------------- running


def run_sweep(
    sweep: Sweep,
    stages: Sequence[Path],
    *,
    force: bool = False,
    progress: bool = True,
    chain: Callable[..., Any] = run_chain,
) -> Comparison:
    """Run the stages not done yet, one combination after the other, and write the page after each.

    A combination that fails is noted and does not stop the others: see the states in the result. Raises
    ChainInterrupted after Ctrl-C, and ConfigError, before anything runs, for a combination whose folder was
    made with other settings or data (unless `force`).
    """
    from ssdlib.data.source import resolve

    source = resolve(sweep.data, progress=progress)
    # All runs get what "auto" turned out to be, even if the network comes or goes meanwhile.
    data = source.kind if sweep.data == "auto" else sweep.data
    changed = {c.name for c in sweep.combinations if not _same_settings(sweep, c, data, force)}
    _write_request(sweep, stages, source)
    errors: dict[str, str] = {}
    comparison = _compare(sweep, stages, source, errors)
    for place, combination in enumerate(sweep.combinations, 1):
        folder = sweep.folder / combination.name
        left = stages if combination.name in changed else stages_left(read_stages(folder), stages)
        what = f"from {left[0].stem}" if left else "done before"
        say(f"[{place}/{len(sweep.combinations)}] {combination.name}: {what}", file=sys.stderr)
        if not left:
            continue
        try:
            chain(
                sweep.profile,
                data,
                folder,
                stages=left,
                overrides=combination.overrides,
                force=force,
                progress=progress,
            )
        except (ChainInterrupted, KeyboardInterrupt) as stop:
            raise ChainInterrupted(
                f"the sweep was stopped in {combination.name}; what was done is kept. The same command with "
                f"{shell('--run', sweep.folder)} goes on.\nSo far: {sweep.folder / 'comparison.html'}"
            ) from stop
        except Exception as error:
            errors[combination.name] = str(error) or type(error).__name__
            if not isinstance(error, SsdError):
                say(traceback.format_exc(), file=sys.stderr)  # a fault of ours
            say(f"{combination.name} failed: {error}", file=sys.stderr)
        finally:
            comparison = _compare(sweep, stages, source, errors)
    return comparison


def _same_settings(sweep: Sweep, combination: Combination, data: str, force: bool) -> bool:
    """Whether the folder of a combination, if there is one, was made with its settings and this data.

    Raises ConfigError if not, unless forced.
    """
    folder, overrides = sweep.folder / combination.name, combination.overrides
    if not (folder / "config.json").exists():
        return True
    try:
        RunFolder.open(folder, profile=sweep.profile, data=data, overrides=overrides, progress=False)
    except ConfigError:
        if not force:
            raise
        return False
    return True


def _write_request(sweep: Sweep, stages: Sequence[Path], source: DataSource) -> None:
    """Write sweep.json, for people and for other programs; the sweep itself does not read it."""
    path = sweep.folder / "sweep.json"
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    request = {
        "format": FORMAT,
        "created": files.read_json(path, shape=dict[str, Any]).get("created", now) if path.exists() else now,
        "changed": now,
        "profile": sweep.profile,
        "data": {"request": sweep.data, **source.describe()},
        "sweep": sweep.axes,
        "set": sweep.settings,
        "stages": [stage.stem for stage in stages],
        "runs": [combination.name for combination in sweep.combinations],
    }
    files.write_json(path, request)


def _compare(
    sweep: Sweep, stages: Sequence[Path], source: DataSource, errors: Mapping[str, str]
) -> Comparison:
    """The comparison of all runs in the sweep's folder, earlier ones included; also written as a page.

    `errors` are failures by combination: one before the first stage, such as of the data, is in no file.
    """
    names = [stage.stem for stage in stages]
    folders = sorted(path.parent for path in sweep.folder.glob("*/config.json"))
    runs = {folder.name: read_run(folder, names) for folder in folders}
    asked = []
    for c in sweep.combinations:
        settings = flatten(c.profile.to_dict())
        planned = RunSummary(c.name, sweep.folder / c.name, settings, "not run", data=source.describe())
        run = runs.pop(c.name, planned)
        if c.name in errors and run.state != "failed":
            run = replace(run, state="failed", error=errors[c.name])
        asked.append(run)
    # The compared settings are shown even where all runs agree in them; groups of settings are too long.
    compared = [
        "recipe.name" if name == "recipe" else name
        for name, values in sweep.axes.items()
        if not any(isinstance(value, Mapping) for value in values)
    ]
    comparison = compare_runs([*asked, *runs.values()], title=sweep.folder.name, always=compared)
    write_comparison(comparison, sweep.folder)
    return comparison
