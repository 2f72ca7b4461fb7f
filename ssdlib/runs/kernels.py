"""The processes that the notebooks of the chain run in, and how papermill is told to use them.

The kernel of the next notebook is started while one runs and imports what all of them need, so that only the
first notebook waits for its imports.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.utils import run_sync
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from ssdlib.common import paths
from ssdlib.common.runtime import available_cores

BACKEND = "module://matplotlib_inline.backend_inline"
"""The one backend of matplotlib that puts figures into notebooks."""
SAVING_SECONDS = 60.0
"""How long a kernel that is asked to stop may take: a training finishes its step or evaluation, and saves."""
ENGINE = "ssdlib"
"""Papermill's name of `ChainEngine`."""

# In a namespace of its own: what a notebook forgets to import must be missing here as in JupyterLab.
_IMPORTS = (
    'exec("import ssdlib.evaluation.evaluate, ssdlib.plots.data, ssdlib.runs.folder, ssdlib.runs.lesson, '
    'ssdlib.training.trainer", {})'
)


class ChainKernel(AsyncKernelManager):
    """A kernel that is this very Python, in the environment that the notebooks need.

    A kernelspec of the user's that has the same name, python3, may start another.
    """

    # Of this, half passes between the interrupt and SIGTERM; a kernel that is done ends at once.
    shutdown_wait_time = 2 * SAVING_SECONDS

    def __init__(self, log: Path = Path(os.devnull), **options: Any) -> None:
        """log: the file that gets what the kernel writes to stderr, which would else appear between the
        progress bars."""
        super().__init__(**options)
        self.log_file = log
        self._clients: list[Any] = []

    @classmethod
    def started(cls, folder: Path, log: Path) -> ChainKernel:
        """A kernel that has been started in `folder` and begins with the imports; nothing waits for it."""
        kernel = cls(log, kernel_name="python3")
        options = {
            "HistoryManager.hist_file": ":memory:",
            "IPKernelApp.exec_lines": _IMPORTS,
            "IPKernelApp.log_level": "ERROR",  # it warns of every port on this machine
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        run_sync(kernel.start_kernel)(cwd=str(folder), extra_arguments=arguments)
        return kernel

    async def start_kernel(self, **options: Any) -> None:
        # Where no folder has a kernelspec, python3 is ipykernel under sys.executable.
        self.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        with self.log_file.open("wb") as stream:
            await super().start_kernel(**options | {"env": kernel_environment(), "stderr": stream})

    def client(self, **options: Any) -> Any:
        self._clients.append(super().client(**options))
        return self._clients[-1]

    def end(self, *, now: bool = False) -> None:
        """End the process, with SAVING_SECONDS to save what it does unless `now`, and remove an empty log."""

        async def end() -> None:
            try:
                if await self.is_alive():
                    await self.shutdown_kernel(now=now)
            finally:
                await self.cleanup_resources()
                for client in self._clients:
                    client.stop_channels()

        run_sync(end)()
        with contextlib.suppress(OSError):
            if self.log_file.stat().st_size == 0:
                self.log_file.unlink()


def kernel_environment() -> dict[str, str]:
    """The environment of the kernels; the user's own values win, but for what would spoil the notebooks."""
    package_parent = str(Path(__file__).resolve().parents[2])
    return {
        # As many threads as the container may use, not as many as the machine has.
        "OMP_NUM_THREADS": str(usable_cores()),
        **os.environ,
        # With any other the figures would be in no notebook and no report.
        "MPLBACKEND": BACKEND,
        # The same folders as the chain's, found and said once.
        paths.HOME: str(paths.home()),
        "PYTHONPATH": os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH")))),
        # The debugger warns about frozen modules in every single notebook otherwise.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The number of cores this process may use by its affinity and its container's quota, at least 1."""
    cores = available_cores()
    with contextlib.suppress(OSError, ValueError):
        quota, period = quota_file.read_text().split()
        cores = min(cores, round(int(quota) / int(period)))
    return max(1, cores)


class ChainEngine(NBClientEngine):
    """Papermill's engine, but that the executed notebook is saved every second and not twice in each cell."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, kernel_name: str, **options: Any
    ) -> Any:
        save, saved = nb_man.save, time.monotonic()

        def save_if_due(**named: Any) -> None:
            nonlocal saved
            if time.monotonic() - saved >= 1.0:
                save(**named)
                saved = time.monotonic()

        nb_man.save = save_if_due
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **options)
        finally:
            del nb_man.save  # papermill's own, for the last one


papermill_engines.register(ENGINE, ChainEngine)
