"""The chain: order, parameters, failures, interruption. Its notebooks here have two or three cells."""

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ssdlib.__main__ import main
from ssdlib.common import paths
from ssdlib.common.errors import ConfigError, SsdError, StageError
from ssdlib.data.smears import write_dataset
from ssdlib.runs.folder import read_stages
from ssdlib.runs.pipeline import (
    ChainInterrupted,
    StageRecord,
    _LastLine,
    find_stages,
    run_chain,
    select_stages,
)
from ssdlib.runs.translation import MARK, OPEN, key_of
from tests.spawned import Process

PARAMETERS = 'PROFILE = "smoke"\nDATA = "smears"\nRUN_DIR = ""'


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> None:
    cells = [new_markdown_cell(f"# {path.stem}")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    return str(
        write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=2, val=1, test=1, progress=False)
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebooks' folder of a checkout, still empty."""
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr("ssdlib.runs.kernels.IMPORTS", "pass")  # these need none
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


@pytest.fixture
def stages(folder):
    write_notebook(folder / "01_first.ipynb", "open(RUN_DIR + '/first', 'w').write(PROFILE + DATA)")
    write_notebook(
        folder / "02_second.ipynb",
        "import os\nif os.path.exists(RUN_DIR + '/break'):\n    raise ValueError('the reason')",
        "open(RUN_DIR + '/second', 'w').write('done')",
    )
    return folder


def states(folder: Path) -> list[str]:
    return [entry["state"] for entry in read_stages(folder)]


def test_chain_fails_names_the_cell_goes_on_and_keeps_everything(tmp_path, stages, smears):
    out = tmp_path / "run {odd} name"
    out.mkdir()
    (out / "break").touch()
    with pytest.raises(StageError, match=r"02_second\.ipynb failed in cell 4 .*ValueError: the reason"):
        run_chain("smoke", smears, out, progress=False)
    assert (out / "first").read_text() == "smoke" + smears
    assert states(out) == ["done", "failed"]
    assert all("seconds" in entry for entry in read_stages(out))
    assert "the reason" in (out / "notebooks/02_second.ipynb").read_text()
    assert "the reason" in (out / "report.html").read_text()

    first = (out / "notebooks/01_first.ipynb").stat().st_mtime_ns
    (out / "break").unlink()
    run_chain("smoke", smears, out, stages=select_stages(find_stages(), from_stage="2"), progress=False)
    assert states(out) == ["done", "done"]
    assert (out / "second").read_text() == "done"
    assert (out / "notebooks/01_first.ipynb").stat().st_mtime_ns == first, (
        "a stage not asked for is left alone"
    )


@pytest.mark.parametrize("then", ["", "\nraise ValueError('by the way')"])
def test_a_run_folder_that_is_moved_away_is_said_and_not_made_again(tmp_path, folder, smears, then):
    write_notebook(folder / "01_moves.ipynb", f"import os\nos.rename(RUN_DIR, RUN_DIR + '-moved'){then}")
    write_notebook(folder / "02_next.ipynb", "1")
    with pytest.raises(StageError, match=r"run is not there any more.*--run ITS_NEW_PLACE"):
        run_chain("smoke", smears, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    run_chain("smoke", smears, tmp_path / "run-moved", stages=find_stages()[1:], progress=False)
    assert states(tmp_path / "run-moved") == ["killed", "done"]


def test_a_missing_parameter_is_said_before_anything_runs(tmp_path, stages, smears):
    write_notebook(stages / "03_third.ipynb", parameters="PROFILE = 'smoke'")
    with pytest.raises(StageError, match=r"03_third\.ipynb has no parameter DATA, RUN_DIR"):
        run_chain("smoke", smears, tmp_path / "run")
    with pytest.raises(ConfigError, match="no profile"):
        run_chain("fast", smears, tmp_path / "run", stages=find_stages()[:1])
    assert not (tmp_path / "run").exists()


SAVES_WHEN_INTERRUPTED = """import os, time
open(RUN_DIR + '/pid', 'w').write(str(os.getpid()))
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(3)  # as long as a step takes
    open(RUN_DIR + '/saved', 'w').write('')
    raise"""


def chain(folder: str, data: str, *more: str, terminal: str = "") -> int:
    """The command `run` on the notebooks of a checkout `folder`, into its folder run."""
    # Tests that a shell has started in the background inherit SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    paths.project_root = lambda: Path(folder)
    if terminal:
        for descriptor in (1, 2):
            os.dup2(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), descriptor)
    return main(["run", "--profile=smoke", "--data", data, "--run", f"{folder}/run", *more])


def written(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGTERM", "SIGTERM"], ["SIGHUP"]])
def test_a_signal_stops_the_kernel_and_keeps_the_state(tmp_path, folder, smears, signals):
    write_notebook(folder / "01_slow.ipynb", SAVES_WHEN_INTERRUPTED)
    process, run = Process(tmp_path / "log", chain, str(tmp_path), smears), tmp_path / "run"
    process.wait_until(lambda: written(run / "pid"))
    for name in signals:  # `timeout` sends two
        process.signal(getattr(signal, name))
        time.sleep(0.1)
    assert process.wait(60) == 130, process.text
    assert "stopped in 01_slow.ipynb" in process.text and "--from 01" in process.text
    assert "Traceback" not in process.text and (run / "saved").exists()
    (entry,) = read_stages(run)
    stopped_by = signals[0].replace("SIGINT", "Ctrl-C")
    assert (entry["state"], entry["error"]) == ("interrupted", f"stopped by {stopped_by}")
    assert (run / "report.html").exists() and (run / "notebooks/01_slow.ipynb").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(written(run / "pid")), 0)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_closed_terminal_stops_it_likewise(tmp_path, folder, smears):
    write_notebook(folder / "01_slow.ipynb", SAVES_WHEN_INTERRUPTED)
    ours, theirs = os.openpty()
    begin = functools.partial(chain, terminal=os.ttyname(theirs))
    process, run = Process(tmp_path / "log", begin, str(tmp_path), smears, "--quiet"), tmp_path / "run"
    process.wait_until(lambda: written(run / "pid"))
    os.close(theirs)
    os.close(ours)
    process.signal(signal.SIGHUP)
    assert process.wait(60) == 130
    assert (run / "saved").exists() and states(run) == ["interrupted"]


@pytest.fixture
def training_stages(folder):
    """Three stages that note that they ran, and whether to train anew; the last waits if told to."""
    note = "import os, time\nwith open(RUN_DIR + '/notes', 'a') as notes:\n    print({}, file=notes)"
    write_notebook(folder / "01_first.ipynb", note.format("1"))
    retrain = PARAMETERS + "\nRETRAIN = None"
    write_notebook(folder / "02_train.ipynb", note.format("'train', RETRAIN"), parameters=retrain)
    wait = "\nwhile os.path.exists(RUN_DIR + '/wait'):\n    time.sleep(0.1)"
    write_notebook(folder / "03_last.ipynb", note.format("3") + wait)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_it_goes_on_there_and_trains_nothing_twice(tmp_path, training_stages, smears, capsys):
    run = tmp_path / "run"

    def again(*more: str, code: int = 0) -> tuple[list[str], str]:
        """What a further command ran, and what it said."""
        (run / "notes").unlink(missing_ok=True)
        assert main(["run", "--profile=smoke", "--data", smears, "--run", str(run), "-q", *more]) == code
        return written(run / "notes").splitlines(), capsys.readouterr().err

    run.mkdir()
    (run / "wait").touch()
    process = Process(tmp_path / "log", chain, str(tmp_path), smears)
    process.wait_until(lambda: "3" in written(run / "notes"))
    assert states(run) == ["done", "done", "running"]
    ran, said = again("--only=01", code=1)
    assert f"{run} is being run by process {process.process.pid}" in said and not ran
    process.signal(signal.SIGKILL)
    process.wait()
    (run / "wait").unlink()

    assert states(run) == ["done", "done", "killed"]
    assert "03_last was killed" in read_stages(run)[2]["error"]
    assert again("--from=02")[0] == ["train False", "3"], "what was trained to the end is kept"
    ran, said = again()
    assert ran == ["1", "train True", "3"] and "had come to its end: everything anew" in said
    stages = json.loads((run / "stages.json").read_text())
    stages["stages"][1]["state"] = "running"
    (run / "stages.json").write_text(json.dumps(stages))
    ran, said = again()
    assert ran == ["train False", "3"] and "02_train: killed. Going on there (--from 02)" in said
    assert not list(run.glob("*.lock")) and "was killed" not in (run / "report.html").read_text()
    os.utime(run / "report.html", (0, 0))  # as if killed before it was written anew
    ran, said = again()
    assert not ran and "all stages were done, the report was not" in said
    assert again()[0] == ["1", "train True", "3"]


@pytest.mark.parametrize(
    "content",
    ["[]", '{"stages": {}}', '{"stages": ["01_first"]}', '{"stages": [{"name": "01_first"}]}',
     '{"stages": [{"name": "01_first", "state": "done", "seconds": "<b>"}]}',
     '{"stages": [{"name": "01_first", "state": "done", "seconds": NaN}]}'],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises(SsdError, match=r"stages\.json is not what its name says .*Remove it"):
        read_stages(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["01_a", "02_b", "03_c"]),
        ({"only": "02"}, ["02_b"]),
        ({"only": "b"}, ["02_b"]),
        ({"from_stage": "2"}, ["02_b", "03_c"]),
        ({"from_stage": "01_a", "to_stage": "02_b.ipynb"}, ["01_a", "02_b"]),
    ],
)
def test_choosing_stages(options, expected):
    paths = [Path(f"{name}.ipynb") for name in ("01_a", "02_b", "03_c")]
    assert [path.stem for path in select_stages(paths, **options)] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "04"}, "no stage '04'; they are: 01_a, 02_b"),
        ({"from_stage": "02", "to_stage": "01"}, "nothing to run"),
        ({"only": "01", "from_stage": "02"}, "not both"),
    ],
)
def test_impossible_choices_of_stages(options, message):
    with pytest.raises(StageError, match=message):
        select_stages([Path("01_a.ipynb"), Path("02_b.ipynb")], **options)


def test_stages_are_found_by_pattern(folder):
    with pytest.raises(StageError, match="checkout"):
        find_stages()
    for name in ("02_b.ipynb", "01_a.ipynb", "draft.ipynb", "01_a.py"):
        (folder / name).touch()
    assert [path.name for path in find_stages()] == ["01_a.ipynb", "02_b.ipynb"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_kernel_that_dies_is_said_with_its_cell(tmp_path, folder, smears):
    write_notebook(
        folder / "01_dies.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "1", "2"
    )
    with pytest.raises(StageError, match=r"01_dies\.ipynb failed in cell 4: its Python process died"):
        run_chain("smoke", smears, tmp_path / "run", progress=False)
    assert states(tmp_path / "run") == ["failed"]


def test_the_kernel_is_this_python_whatever_the_kernelspec_of_that_name_starts(
    tmp_path, folder, smears, monkeypatch
):
    foreign = tmp_path / "jupyter/kernels/python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "false", "what Jupyter would start"
    write_notebook(folder / "01_who.ipynb", "import sys\nopen(RUN_DIR + '/who', 'w').write(sys.executable)")
    run_chain("smoke", smears, tmp_path / "run", progress=False)
    assert Path((tmp_path / "run/who").read_text()).samefile(sys.executable)


def test_a_kernel_has_imported_what_notebooks_need_and_gives_none_of_it_a_name(
    tmp_path, folder, smears, monkeypatch
):
    monkeypatch.setattr("ssdlib.runs.kernels.IMPORTS", "import colorsys")
    check = "import sys\nassert 'colorsys' in sys.modules\nassert 'colorsys' not in globals()"
    write_notebook(folder / "01_any.ipynb", check)
    run_chain("smoke", smears, tmp_path / "run", progress=False)
    assert states(tmp_path / "run") == ["done"]


@pytest.mark.parametrize("last", ["", "raise ValueError('at the end')"])
def test_the_next_kernel_is_started_while_one_runs_and_none_is_left(tmp_path, folder, smears, last):
    """So the second notebook does not wait for its imports. The third's is left where the second fails."""
    note = "import os, psutil, time\nopen(RUN_DIR + '/{}', 'w').write(f'{{os.getpid()}} {{{}}}')"
    write_notebook(folder / "01_a.ipynb", "import time\ntime.sleep(0.5)", note.format("one", "time.time()"))
    began = "psutil.Process().create_time()"
    write_notebook(folder / "02_b.ipynb", note.format("two", began), last)
    write_notebook(folder / "03_c.ipynb", "1")
    with pytest.raises(StageError, match="at the end") if last else contextlib.nullcontext():
        run_chain("smoke", smears, tmp_path / "run", progress=False)
    (one, ended), (two, started) = ((tmp_path / "run" / name).read_text().split() for name in ("one", "two"))
    assert float(started) < float(ended)
    assert not any(psutil.pid_exists(int(pid)) for pid in (one, two))
    kernels = [child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline()]
    assert not kernels, "the waiting ones have been ended, too"


def test_a_kernel_that_does_not_start_is_said_with_its_reason(tmp_path, folder, smears, monkeypatch):
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('libzmq is not what it was')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_notebook(folder / "01_any.ipynb", "1")
    with pytest.raises(StageError) as stopped:
        run_chain("smoke", smears, tmp_path / "run", progress=False)
    log = tmp_path / "run/notebooks/01_any.log"
    assert "01_any.ipynb was not begun" in str(stopped.value) and str(log) in str(stopped.value)
    assert "ImportError: libzmq is not what it was" in str(stopped.value)
    assert "Traceback" in log.read_text() and states(tmp_path / "run") == ["failed"]


def test_figures_are_in_the_notebooks_and_it_is_said_where_they_are_not(
    tmp_path, folder, smears, monkeypatch, capsys
):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    write_notebook(folder / "01_shown.ipynb", draw)
    write_notebook(folder / "02_lost.ipynb", "%matplotlib agg", draw)
    run_chain("smoke", smears, tmp_path / "run", progress=False)
    assert "image/png" in (tmp_path / "run/notebooks/01_shown.ipynb").read_text()
    said = capsys.readouterr().err
    assert "02_lost.ipynb shows figures, but has no picture" in said and "01_shown" not in said


def test_the_command_to_go_on_with_can_be_copied(tmp_path, folder, smears_root, monkeypatch):
    data = shutil.copytree(smears_root, tmp_path / "my $cells; (new)")
    write_notebook(folder / "01_any.ipynb", "1")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdlib.runs.pipeline._execute", stop)
    with pytest.raises(ChainInterrupted) as stopped:
        run_chain("smoke", str(data), tmp_path / "a run", progress=False)
    words = shlex.split(str(stopped.value).partition("Go on with: ")[2])
    assert words == [
        *("python", "-m", "ssdlib", "run", "--from", "01", "--profile", "smoke"),
        *("--data", str(data), "--run", str(tmp_path / "a run")),
    ]


def test_what_a_kernel_says_steers_no_terminal():
    line, shown = _LastLine(enabled=False), []
    line._line = SimpleNamespace(set_description_str=lambda text, refresh: shown.append(text))
    line.write("\x1b[1mbold\x1b[0m \x1b]0;title\x07\n")
    assert shown == [r"bold \x1b]0;title\x07"]


def test_a_record_is_written_at_every_change(tmp_path):
    record = StageRecord(tmp_path, ["01_a", "02_b"])
    with pytest.raises(KeyError), record.running("01_a"):
        assert json.loads(record.path.read_text())["stages"][0]["state"] == "running"
        raise KeyError("why")
    assert states(tmp_path) == ["failed", "not run"] and "why" in read_stages(tmp_path)[0]["error"]


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, folder, text):
    (folder / "01_broken.ipynb").write_text(text)
    with pytest.raises(StageError, match=r"01_broken\.ipynb is not a notebook that can be run"):
        run_chain("smoke", "smears", tmp_path / "run")


def test_the_chain_in_another_language(tmp_path, folder, smears, monkeypatch):
    monkeypatch.setenv("SSDLIB_LANGUAGE", "en")  # put back afterwards
    write_notebook(folder / "01_first.ipynb", "import os\nprint('in', os.environ['SSDLIB_LANGUAGE'])")
    notebook = nbformat.read(folder / "01_first.ipynb", 4)
    notebook.cells.insert(1, new_markdown_cell("## One\n\nText."))
    notebook.cells.insert(2, new_markdown_cell("## Two"))
    nbformat.write(notebook, folder / "01_first.ipynb")
    known = {"": "# Раз", "## One\n\nText.": "## Один"}
    blocks = "\n".join(
        f"<!-- cell {key_of(english)} -->\n\n{russian}\n" for english, russian in known.items()
    )
    (folder / "ru").mkdir()
    (folder / "ru/01.md").write_text(blocks, encoding="utf-8")
    run = tmp_path / "run"
    assert (
        main(["run", "--profile=smoke", "--data", smears, "--run", str(run), "-q", "--language", "ru"]) == 0
    )
    texts = [cell.source for cell in nbformat.read(run / "notebooks/01_first.ipynb", 4).cells]
    assert texts[0] == f"{OPEN}\n\n# Раз" and "## Один" in texts and f"{MARK}## Two" in texts
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ru">' in page and "Содержание" in page and "in ru" in page and "выполнен" in page
    assert main(["run", "--language", "xx"]) == 1
