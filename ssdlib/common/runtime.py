"""What this machine is and what to do with it: device, number format, and the facts a run records."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import ConfigError
from ssdlib.common.paths import checkout
from ssdlib.common.threads import available_cores

if TYPE_CHECKING:  # torch takes seconds to import, and much of what is asked here needs none of it
    import torch

PACKAGES = (
    "torch", "torchvision", "numpy", "opencv-python", "opencv-python-headless", "pillow", "lxml", "pyyaml",
    "safetensors", "accelerate", "pydantic", "onnx", "onnxruntime", "onnxscript", "gradio", "ray", "pyarrow",
    "pandas", "supervision", "scipy", "tifffile", "imagecodecs",
)  # fmt: skip
"""Packages on which the numbers of a run depend; a test compares them with those of pyproject.toml."""


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises ConfigError for a name that is no device, or a device that this machine lacks.
    """
    import torch

    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device == "auto":
        # Not MPS, which must be asked for: with versions of PyTorch that are accepted here the backward pass
        # of BatchNorm in channels_last is silently wrong there (pytorch/pytorch#175189) or fails (#188371).
        return torch.device("cuda" if here["cuda"] else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:N or mps, not {device!r}") from error
    if (chosen.index or 0) >= here.get(chosen.type, 0):
        available = ", ".join(name for name, count in here.items() if count)
        raise ConfigError(f"there is no device {str(chosen)!r} here; there is {available}")
    return chosen


@cache
def cpu_facts() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor, by name; empty where there is no such file."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def has_native_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there, not merely possible.

    CPUs: avx512_bf16 or AMX on x86, bf16 on ARM, unless oneDNN has been told by ONEDNN_MAX_CPU_ISA to stay
    below them. GPUs: compute capability 8.0 on.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not (limit in ("DEFAULT", "ALL") or "AVX10" in limit or limit.endswith(("BF16", "AMX", "FP16"))):
        return False
    flags = cpu_facts().get("flags") or cpu_facts().get("Features", "")  # x86, ARM
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def choose_precision(precision: str = "auto", device: str | torch.device = "cpu") -> str:
    """The number format, `fp32` or `bf16`; `auto` is bf16 where the device has it natively."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision must be auto, fp32 or bf16, not {precision!r}")
    if precision != "auto":
        return precision
    return "bf16" if has_native_bf16(device) else "fp32"


_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "sve", "i8mm", "bf16",
)  # fmt: skip


def instruction_sets() -> str:
    """The processor's sets of instructions that decide how fast a network is, as its system names them."""
    flags = (cpu_facts().get("flags") or cpu_facts().get("Features", "")).split()
    return " ".join(name for name in _SETS if name in flags) or "not known"


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free, for the next ones. Returns whether it is set.

    By default glibc gives each large block back to the system at once, and getting it anew means filling it
    with zeros, page by page: a fifth of a training step on a CPU. Costs about 15 % more memory. Not set
    where the user has tuned malloc by MALLOC_* variables or glibc.malloc tunables, nor outside Linux's glibc.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    return _mallopt(mmap_max=0, trim_threshold=-1)


MALLOC_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**64 - 1),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables for a process to be started in which another thread than the first computes: what
`keep_freed_memory` sets, and one heap for all threads. Otherwise each has heaps of 64 MB, too small for a
batch's tensors, and memory grows by the thousand images. Only glibc reads them."""


def return_freed_memory() -> bool:
    """Undo `keep_freed_memory`: set the limits that glibc settles at where large blocks are freed."""
    return _mallopt(mmap_max=65536, trim_threshold=64 * 2**20, mmap_threshold=32 * 2**20)


def _mallopt(**settings: int) -> bool:
    numbers = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}  # M_... in glibc's malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(numbers[name], value) for name, value in settings.items())


def cpu_name() -> str:
    """The name that the processor gives itself."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def need_extra(extra: str, *modules: str) -> ModuleType:
    """The first of `modules`, which belong to an optional extra of this project; all are imported.

    Raises ConfigError that says which package is missing, and how to install it.
    """
    # ONNX Runtime would report its use to its makers, and leave a file in the temporary folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        first, *_ = [importlib.import_module(name) for name in modules]
        return first
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this needs the package {error.name}, which is not installed: pip install 'ssdlib[{extra}]'"
        ) from error


def environment() -> dict[str, Any]:
    """Versions, hardware and git revision, for a run's environment.json."""
    import torch

    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = choose_device()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "native_bf16": has_native_bf16(device),
        "git_revision": git_revision(),
    }


def git_revision() -> str | None:
    """The checkout's commit, with `+` if files have changed since; None outside a git checkout."""
    root = checkout()
    if root is None:
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
