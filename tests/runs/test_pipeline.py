"""The chain: order, parameters, failures, interruption. Its notebooks here have two or three cells."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ssdlib.common import paths
from ssdlib.common.errors import ConfigError, StageError
from ssdlib.data.smears import write_dataset
from ssdlib.runs.folder import read_stages
from ssdlib.runs.pipeline import (
    ChainInterrupted,
    StageRecord,
    find_stages,
    run_chain,
    select_stages,
    usable_cores,
)

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


def test_a_missing_parameter_is_said_before_anything_runs(tmp_path, stages, smears):
    write_notebook(stages / "03_third.ipynb", parameters="PROFILE = 'smoke'")
    with pytest.raises(StageError, match=r"03_third\.ipynb has no parameter DATA, RUN_DIR"):
        run_chain("smoke", smears, tmp_path / "run")
    with pytest.raises(ConfigError, match="no profile"):
        run_chain("fast", smears, tmp_path / "run", stages=find_stages()[:1])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_the_kernel_and_keeps_the_state(tmp_path, smears):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(
        folder / "01_slow.ipynb",
        "import os, time\nopen(RUN_DIR + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)",
    )
    out = tmp_path / "run"
    # Tests that a shell has started in the background inherit SIGINT ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, pathlib; from ssdlib.common import paths; from ssdlib.__main__ import main\n"
        f"paths.project_root = lambda: pathlib.Path({str(tmp_path)!r})\n"
        f"sys.exit(main(['run', '--profile=smoke', '--data', {smears!r}, '--run', {str(out)!r}]))"
    )
    chain = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pid_file = tmp_path / "run/pid"
    deadline = time.monotonic() + 40
    while not (pid_file.exists() and pid_file.read_text()):
        assert chain.poll() is None and time.monotonic() < deadline, chain.communicate()[1]
        time.sleep(0.05)
    kernel = int(pid_file.read_text())
    chain.send_signal(signal.SIGINT)
    _, errors = chain.communicate(timeout=20)
    assert chain.returncode == 130, errors
    assert "stopped in 01_slow.ipynb" in errors and "--from 01" in errors and "Traceback" not in errors
    assert states(tmp_path / "run") == ["interrupted"]
    assert (tmp_path / "run/report.html").exists() and (tmp_path / "run/notebooks/01_slow.ipynb").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


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


def test_a_kernel_that_does_not_start_is_said_with_its_reason(tmp_path, folder, smears, monkeypatch):
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('libzmq is not what it was')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_notebook(folder / "01_any.ipynb", "1")
    with pytest.raises(StageError) as stopped:
        run_chain("smoke", smears, tmp_path / "run", progress=False)
    log = tmp_path / "run/notebooks/kernel.log"
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


def test_a_record_is_written_at_every_change(tmp_path):
    record = StageRecord(tmp_path, ["01_a", "02_b"])
    with pytest.raises(KeyError), record.running("01_a"):
        assert json.loads(record.path.read_text())["stages"][0]["state"] == "running"
        raise KeyError("why")
    assert states(tmp_path) == ["failed", "not run"] and "why" in read_stages(tmp_path)[0]["error"]


@pytest.mark.parametrize(
    ("quota", "expected"), [("", None), ("max 100000", None), ("100000 100000", 1), ("1000 100000", 1)]
)
def test_cores_heed_a_containers_quota(tmp_path, quota, expected):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == (expected or usable_cores(tmp_path / "missing"))


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, folder, text):
    (folder / "01_broken.ipynb").write_text(text)
    with pytest.raises(StageError, match=r"01_broken\.ipynb is not a notebook that can be run"):
        run_chain("smoke", "smears", tmp_path / "run")
