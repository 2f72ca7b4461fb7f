"""The chain: the notebooks run by papermill, one after the other, into one run folder, and a report.

A failing cell stops the chain and is named; what ran before, the executed notebook and the report are kept.
A chain that did not finish can go on where it stopped, even after a `kill -9`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ssdlib.common import files, paths
from ssdlib.common.errors import StageError, shell
from ssdlib.common.language import LANGUAGES, language
from ssdlib.common.terminal import printable, say
from ssdlib.runs.folder import RunFolder, read_stages

if TYPE_CHECKING:
    from ssdlib.runs.kernels import ChainKernel, ChainKernels
    from ssdlib.runs.report import NotebookSection

STAGE_PATTERN = "[0-9][0-9]_*.ipynb"
GIVEN_PARAMETERS = ("PROFILE", "DATA", "RUN_DIR")
"""What every notebook's parameters cell must have, because the chain sets it."""
RETRAIN = "RETRAIN"
"""The parameter of a notebook that says to train anew what has been trained to the end."""


class ChainInterrupted(StageError):
    """Ctrl-C, SIGTERM or SIGHUP: the kernel has saved its state, and the message says how to go on."""


def find_stages() -> list[Path]:
    """The notebooks of the chain, `NN_name.ipynb`, in order. Raises StageError if there are none."""
    folder = paths.project_root() / "notebooks"
    found = sorted(folder.glob(STAGE_PATTERN))
    if not found:
        raise StageError(
            f"no notebooks such as 01_name.ipynb in {folder}. The chain runs from a checkout of the project: "
            "clone it, go into its folder and install it with `make setup`."
        )
    return found


def select_stages(
    stages: Sequence[Path],
    *,
    from_stage: str | None = None,
    to_stage: str | None = None,
    only: str | None = None,
) -> list[Path]:
    """The part of the chain that was asked for. A stage is named "04", "4", "04_train" or "train".

    Raises StageError for a name that no stage has, or that leaves nothing to do.
    """
    if only is not None and (from_stage is not None or to_stage is not None):
        raise StageError("give either one stage (--only) or a range (--from, --to), not both")
    first = _position(stages, only or from_stage) if only or from_stage else 0
    last = _position(stages, only or to_stage) if only or to_stage else len(stages) - 1
    if first > last:
        raise StageError(f"{stages[first].stem} comes after {stages[last].stem}: nothing to run")
    return list(stages[first : last + 1])


def _position(stages: Sequence[Path], name: str) -> int:
    for index, stage in enumerate(stages):
        number, _, word = stage.stem.partition("_")
        if name.removesuffix(".ipynb") in (stage.stem, number, word, number.lstrip("0")):
            return index
    raise StageError(f"there is no stage {name!r}; they are: {', '.join(s.stem for s in stages)}")


def run_chain(
    profile: str = "quick",
    data: str = "auto",
    run_dir: str | Path = "",
    *,
    stages: Sequence[Path] | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    go_on: bool = False,
    progress: bool = True,
) -> RunFolder:
    """Run the notebooks, or only `stages`, into `run_dir`, write its report.html and return the run.

    With `go_on` those before the first that is not done are passed over; where all are done, all are run, but
    none if only the report is missing. A finished training is repeated only if its stage and all
    else that was begun is done.

    Raises StageError that names the notebook, the cell and the error when a cell fails, ConfigError when
    `run_dir` was made with other settings or without the extra `lab`, and TrainingError while another process
    runs notebooks into it. The report is written in every other case, Ctrl-C included.
    """
    from ssdlib.common.runtime import need_extra

    need_extra("lab", "ipykernel", "jupyter_client")
    from ssdlib.runs.kernels import ChainKernels

    known = find_stages()
    # Before all else, so that the first kernel's imports run beside ours and the checks.
    with contextlib.closing(ChainKernels(known[0].parent)) as kernels:
        from ssdlib.runs.report import notebook_section
        from ssdlib.training import checkpoints

        need_extra("lab", "papermill", "nbconvert")
        chosen = known if stages is None else stages
        names = _check_parameters(chosen)
        run = RunFolder.open(
            run_dir, profile=profile, data=data, overrides=overrides, force=force, progress=progress
        )
        run.check_data()
        with checkpoints.alone(run.path, checkpoints.CHAIN_LOCK):
            record = StageRecord(run.path, [stage.stem for stage in known])
            if go_on:
                chosen = _going_on(record, chosen)
            sections: dict[Path, Future[NotebookSection]] = {}
            try:
                with ThreadPoolExecutor(1) as beside:
                    for output in _run_stages(
                        run, record, kernels, {stage: names[stage] for stage in chosen}, data, progress
                    ):
                        sections[output] = beside.submit(notebook_section, output)
            finally:
                _write_report(run, {output: section.result() for output, section in sections.items()})
    return run


def _run_stages(
    run: RunFolder,
    record: StageRecord,
    kernels: ChainKernels,
    stages: Mapping[Path, set[str]],
    data: str,
    progress: bool,
) -> Iterator[Path]:
    """Run `stages`, which have these parameters, one after the other; what was executed, of each."""
    given = {"PROFILE": run.profile.name, "DATA": _data_parameter(run, data), "RUN_DIR": str(run.path)}
    repeated = record.repeated()
    with tqdm(total=len(stages), unit="notebook", disable=not progress, **_bar_options()) as bar:
        for number, (stage, names) in enumerate(stages.items(), 1):
            bar.set_description(printable(stage.stem))
            again = {RETRAIN: stage.stem in repeated} if RETRAIN in names else {}
            output = run.path / "notebooks" / stage.name
            try:
                with record.running(stage.stem):
                    kernel = kernels.next(last=number == len(stages))
                    _execute(stage, output, given | again, kernel, progress)
            except KeyboardInterrupt as stop:
                options = shell("--profile", run.profile.name, "--data", given["DATA"], "--run", run.path)
                raise ChainInterrupted(
                    f"stopped in {stage.name}; what was done is in {run.path}\n"
                    f"Go on with: python -m ssdlib run --from {stage.name[:2]} {options}"
                ) from stop
            if warning := _without_pictures(output):
                tqdm.write(printable(f"warning: {warning}"), file=sys.stderr)
            bar.update(1)
            yield output


def stages_left(entries: Iterable[Mapping[str, Any]], stages: Sequence[Path]) -> list[Path]:
    """The stages from the first that is not done yet by `entries` (`read_stages`); empty where all are."""
    states = {entry["name"]: entry["state"] for entry in entries}
    return list(itertools.dropwhile(lambda stage: states.get(stage.stem) == "done", stages))


def _going_on(record: StageRecord, stages: Sequence[Path]) -> Sequence[Path]:
    """The stages to run where a run is asked for again, which is said on stderr."""
    left = stages_left(record.entries.values(), stages)
    if not left and not record.reported():
        say(f"{record.path.parent}: all stages were done, the report was not", file=sys.stderr)
        return []
    if not left:
        say(f"{record.path.parent} had come to its end: everything anew", file=sys.stderr)
        return stages
    if len(left) < len(stages):
        first = left[0].stem
        say(
            f"{first}: {record.entries[first]['state']}. Going on there (--from {first[:2]}); --from "
            f"{stages[0].stem[:2]} runs all stages again.",
            file=sys.stderr,
        )
    return left


def _write_report(run: RunFolder, known: Mapping[Path, NotebookSection]) -> None:
    """Write the report, with the sections that are `known`.

    While another error is on its way out, a failure here must not hide it.
    """
    from ssdlib.runs.report import write_report

    failing = sys.exc_info()[0] is not None
    if not run.path.is_dir():  # moved away, which is said
        return
    try:
        write_report(run, known)
    except Exception as error:
        if not failing:
            raise
        say(f"warning: the report could not be written: {error}", file=sys.stderr)


def _check_parameters(stages: Sequence[Path]) -> dict[Path, set[str]]:
    """The names of each notebook's parameters.

    Raises StageError, before anything has run, for a notebook that lacks one of GIVEN_PARAMETERS.
    """
    from papermill import inspect_notebook

    found = {}
    for stage in stages:
        try:
            names = found[stage] = set(inspect_notebook(_unformatted(stage)))
        except Exception as error:
            raise StageError(
                f"{stage} is not a notebook that can be run ({error}). Save it again in JupyterLab with the "
                "kernel python3."
            ) from error
        missing = [name for name in GIVEN_PARAMETERS if name not in names]
        if missing:
            raise StageError(
                f"{stage.name} has no parameter {', '.join(missing)}: add it to the cell tagged 'parameters'"
            )
    return found


def _data_parameter(run: RunFolder, request: str) -> str:
    """The DATA parameter of every notebook: what the chain resolved once, so that all take the same."""
    from ssdlib.data.source import NAMED, split_request

    if request == "auto":
        return run.source.kind
    parts = split_request(request)
    return ",".join(part if part in NAMED else str(paths.find(part, "")) for part in parts)


def _execute(
    stage: Path, output: Path, parameters: Mapping[str, Any], kernel: ChainKernel, progress: bool
) -> None:
    """Run one notebook and end its kernel; what was executed is saved even where it fails.

    Raises StageError.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    from ssdlib.runs.engine import ENGINE

    output.parent.mkdir(parents=True, exist_ok=True)
    source = stage
    if language() != LANGUAGES[0]:  # where it goes, as executing it begins with a copy there
        from ssdlib.runs.translation import build

        source = output
        build(stage, stage.parent, language(), source)
    log, last_line, failed = output.with_suffix(".log"), _LastLine(enabled=progress), True
    try:
        log.unlink(missing_ok=True)
        papermill.execute_notebook(
            _unformatted(source),
            _unformatted(output),
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=str(stage.parent),
            progress_bar={"position": 1, "leave": False, **_bar_options()} if progress else False,
            stderr_file=last_line,
            autosave_cell_every=10,
            engine_name=ENGINE,
            km=kernel,
            start_timeout=300,  # the imports of a first start from a slow disk are in it
        )
        failed = False
    except papermill.PapermillExecutionError as error:
        value = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue).strip()
        raise StageError(
            f"{stage.name} failed in cell {error.cell_index + 1} (In [{error.exec_count}]): "
            f"{error.ename}: {value}\nThe executed notebook, with the whole traceback, is {output}"
        ) from error
    except DeadKernelError as error:
        raise StageError(
            f"{stage.name} failed{_running_cell(output)}: its Python process died. Most often the memory was "
            f"used up: try a smaller profile or batch. What was executed is in {output}, last words: {log}"
        ) from error
    except RuntimeError as error:
        # jupyter_client has no error of its own for a process that ends, or says nothing, before it is ready.
        raise StageError(
            f"{stage.name} was not begun: its Python ({sys.executable} -m ipykernel_launcher) did not "
            f"start: {_last_words(kernel.log_file) or error}\nAll that it said is in {log}"
        ) from error
    except OSError as error:
        raise StageError(
            f"{stage.name} could not be run and saved as {output}: {error}. Free some "
            f"space if the disk is full, then go on with --from {stage.name[:2]}; earlier files stay."
        ) from error
    finally:
        if failed:
            kernel.end(log=log)
        else:
            kernel.ask_to_end()
        last_line.close()


def _unformatted(path: Path) -> str:
    # papermill fills {names} in paths from the parameters; ours are meant as they are.
    return str(path).replace("{", "{{").replace("}", "}}")


def _running_cell(output: Path) -> str:
    """The words " in cell N" for the last cell that papermill began; empty if that is not known."""
    with contextlib.suppress(Exception):
        cells = files.read_json(output)["cells"]
        # Its states do not tell: when all is over, papermill calls the cells that it never began completed.
        begun = [i for i, cell in enumerate(cells) if cell["metadata"]["papermill"]["start_time"]]
        return f" in cell {max(begun) + 1}"
    return ""


def _last_words(log: Path) -> str:
    """The last line of a file that has something in it, or an empty text."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _without_pictures(output: Path) -> str:
    """What to say of an executed notebook that shows figures but has none; else an empty text."""
    from ssdlib.runs.kernels import BACKEND

    cells = [cell for cell in files.read_json(output)["cells"] if cell["cell_type"] == "code"]
    shows = any("plt.show(" in "".join(cell["source"]) for cell in cells)
    kinds = (kind for cell in cells for one in cell["outputs"] for kind in one.get("data", ()))
    if not shows or any(kind.startswith("image/") for kind in kinds):
        return ""
    return (
        f"{output.name} shows figures, but has no picture: something in it, or in IPython's startup files, "
        f"has chosen another backend of matplotlib than {BACKEND}."
    )


class StageRecord:
    """The states, durations and errors of the stages, written to stages.json at every change."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.path = folder / "stages.json"
        known = {entry["name"]: entry for entry in read_stages(folder)}
        self.entries = {name: known.get(name, {"name": name, "state": "not run"}) for name in names}

    def repeated(self) -> set[str]:
        """The stages that are done, of a chain whose every begun stage is; else none."""
        begun = {name: entry["state"] for name, entry in self.entries.items() if entry["state"] != "not run"}
        return set(begun) if set(begun.values()) == {"done"} else set()

    def reported(self) -> bool:
        """Whether the report was written after the last change."""
        report = self.path.with_name("report.html")
        return report.exists() and report.stat().st_mtime >= self.path.stat().st_mtime

    def _write(self) -> None:
        if not self.path.parent.is_dir():  # written all the same, it would be there again, empty but for this
            raise StageError(
                f"the run folder {self.path.parent} is not there any more. If it was moved, what was done is "
                "in it, and the same command goes on there: --run ITS_NEW_PLACE."
            )
        files.write_json(self.path, {"stages": list(self.entries.values())})

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Note the stage as running, then as done, failed or interrupted."""
        started = time.monotonic()
        entry = {
            "name": name,
            "state": "running",
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        self.entries[name] = entry
        self._write()
        try:
            yield
            entry["state"] = "done"
        except BaseException as error:
            entry["state"] = "failed" if isinstance(error, Exception) else "interrupted"
            entry["error"] = str(error) or type(error).__name__
            raise
        finally:
            entry["seconds"] = round(time.monotonic() - started, 2)
            self._write()


def _bar_options() -> dict[str, Any]:
    """What all progress bars have in common. A log file gets a line now and then, not ten a second."""
    return {"mininterval": 0.1 if sys.stderr.isatty() else 30.0, "dynamic_ncols": True}


class _LastLine:
    """The stream that papermill copies the kernel's stderr to, shown as one line below the other bars.

    So the progress bar of a training cell appears live on the terminal.
    """

    def __init__(self, *, enabled: bool) -> None:
        shown = enabled and sys.stderr.isatty()
        self._line = tqdm(total=0, bar_format="    {desc}", position=2, leave=False, disable=not shown)

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text))]
        latest = next((line for line in reversed(lines) if line), None)
        if latest:
            self._line.set_description_str(printable(latest, keep=""), refresh=True)

    def flush(self) -> None:
        """Do nothing, since nothing is buffered; papermill calls it as of any stream."""

    def close(self) -> None:
        self._line.close()
