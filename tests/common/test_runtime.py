"""Which device and number format a machine gets, and what a run records of it."""

from __future__ import annotations

import json
import re
import sys
import tomllib

import pytest
import torch

from ssdlib.common import runtime
from ssdlib.common.errors import ConfigError
from ssdlib.common.paths import project_root
from ssdlib.common.runtime import choose_device, choose_precision, environment, has_native_bf16, need_extra


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be another one: machine(flags=..., limit=..., cuda=..., mps=...)."""

    def pretend(*flags: str, limit: str | None = None, cuda: int = 0, mps: bool = False, capability=(8, 0)):
        name = "Features" if "asimd" in flags else "flags"
        monkeypatch.setattr(runtime, "cpu_facts", lambda: {name: " ".join(flags)})
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if limit is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ((), None, False),
        (("avx2", "avx512f", "avx512_vnni"), None, False),
        (("avx512_bf16",), None, True),
        (("amx_bf16",), None, True),
        (("asimd", "bf16"), None, True),  # ARM
        (("avx512_bf16",), "DEFAULT", True),
        (("avx512_bf16",), "avx2", False),
        (("avx512_bf16",), "AVX512_CORE_VNNI", False),
        (("avx512_bf16",), "AVX512_CORE_BF16", True),
        (("amx_bf16",), "AVX512_CORE_AMX", True),
        (("amx_bf16",), "AVX10_1_512", True),
        (("avx2",), "AVX512_CORE_AMX", False),
    ],
)
def test_native_bf16_heeds_the_processor_and_onednn(machine, flags, limit, expected):
    machine(*flags, limit=limit)
    assert has_native_bf16() is expected
    assert has_native_bf16(torch.device("cpu")) is expected
    assert choose_precision("auto") == ("bf16" if expected else "fp32")
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("bf16") == "bf16"


def test_bf16_on_other_devices(machine):
    machine("avx512_bf16", cuda=1, capability=(7, 5))
    assert not has_native_bf16("cuda")
    machine(cuda=1, capability=(9, 0))
    assert has_native_bf16("cuda") and choose_precision("auto", "cuda:0") == "bf16"
    assert not has_native_bf16("mps")


@pytest.mark.parametrize("precision", ["", "fp16", "BF16", "float32"])
def test_unknown_precisions(precision):
    with pytest.raises(ConfigError, match="auto, fp32 or bf16"):
        choose_precision(precision)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(0, False, "cpu"), (0, True, "cpu"), (2, False, "cuda"), (1, True, "cuda")]
)
def test_auto_takes_a_cuda_gpu_and_never_mps(machine, cuda, mps, expected):
    machine(cuda=cuda, mps=mps)
    assert choose_device() == choose_device("auto") == torch.device(expected)
    if mps:
        assert choose_device("mps") == torch.device("mps")
    assert choose_device(torch.device("cpu")) == choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "must be auto"), ("cuda:0", "no device 'cuda:0' here; there is cpu"), ("meta", "no device")],
)
def test_devices_that_are_not_there(machine, device, message):
    machine()
    with pytest.raises(ConfigError, match=message):
        choose_device(device)


def test_the_second_of_two_gpus(machine):
    machine(cuda=2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="there is cpu, cuda"):
        choose_device("cuda:2")


def test_environment_is_json_and_complete():
    facts = environment()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert torch.__version__.startswith(facts["packages"]["torch"].split("+")[0])
    assert {"python", "platform", "cpu", "cores", "threads", "device", "gpu", "git_revision"} <= set(facts)
    assert facts["cores"] >= 1 and facts["cpu"]


def test_environment_lists_every_package_that_changes_numbers():
    """Every package that the project declares, but for those that only show, run or test things."""
    project = tomllib.loads((project_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (lines for extra, lines in project["optional-dependencies"].items() if extra != "dev")
    declared = {re.match(r"[\w-]+", line)[0] for line in sum(extras, project["dependencies"])}
    assert {"torch", "ray", "onnxruntime"} <= declared
    assert declared - set(runtime.PACKAGES) <= {
        "tensorboard", "matplotlib", "jinja2", "tqdm", "typer", "jupyterlab", "ipykernel", "ipython",
        "ipywidgets", "jupyter-client", "matplotlib-inline", "nbclient", "nbformat", "nbconvert", "nh3",
        "beautifulsoup4", "latex2mathml", "papermill", "roifile", "platformdirs", "tifffile",
        "imagecodecs", "typing-extensions", "starlette",
    }  # fmt: skip


def test_git_revision_without_git(monkeypatch):
    revision = runtime.git_revision()
    assert revision is None or len(revision.rstrip("+")) == 12
    monkeypatch.setenv("PATH", "")
    assert runtime.git_revision() is None


def test_an_extra_is_imported_or_named_with_what_is_missing(monkeypatch):
    assert need_extra("onnx", "json", "sys") is json
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"package onnxruntime, .* pip install 'ssdlib\[onnx\]'"):
        need_extra("onnx", "json", "onnxruntime")
