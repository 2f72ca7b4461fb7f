"""The processes that the notebooks of the chain run in.

The kernel of the next notebook is started while one runs, and imports what all of them need; that of the last
one ends meanwhile. So no notebook but the first waits for its imports.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.utils import run_sync

from ssdlib.common import paths
from ssdlib.common.threads import share_processors

BACKEND = "module://matplotlib_inline.backend_inline"
"""The one backend of matplotlib that puts figures into notebooks."""
SAVING_SECONDS = 60.0
"""How long a kernel that is asked to stop may take: a training finishes its step or evaluation, and saves."""

IMPORTS = (
    "import torchvision, ssdlib.plots.data, ssdlib.runs.folder, ssdlib.runs.lesson, ssdlib.training.trainer"
)
"""What a kernel begins with, in a namespace of its own: a notebook has only what it imports itself."""


class ChainKernel(AsyncKernelManager):
    """A kernel that is this very Python, in the environment that the notebooks need.

    A kernelspec of the user's that has the same name, python3, may start another.
    """

    # Of this, half passes between the interrupt and SIGTERM; a kernel that is done ends at once.
    shutdown_wait_time = 2 * SAVING_SECONDS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log_file = Path(os.devnull)
        """What gets the kernel's stderr, which would else appear between the progress bars."""
        self._clients: list[Any] = []
        self._asked = False

    @classmethod
    def started(cls, folder: Path) -> ChainKernel:
        """A kernel that has been started in `folder` and begins with the imports; nothing waits for it."""
        kernel = cls(kernel_name="python3")
        with tempfile.NamedTemporaryFile(prefix="kernel-", suffix=".log", delete=False) as log:
            kernel.log_file = Path(log.name)
        options = {
            "HistoryManager.hist_file": ":memory:",
            "IPKernelApp.exec_lines": f"exec({IMPORTS!r}, {{}})",
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

    def ask_to_end(self) -> None:
        """Let the process end by itself; `end` sees to it later."""

        async def ask() -> None:
            await self._clients[-1].shutdown(reply=True, timeout=5.0)

        with contextlib.suppress(RuntimeError, TimeoutError, queue.Empty):
            run_sync(ask)()
            self._asked = True

    def end(self, *, now: bool = False, log: Path | None = None) -> None:
        """End the process; unless `now`, it has SAVING_SECONDS to save what it does.

        log: what gets the words of its stderr, if there are any.
        """

        async def end() -> None:
            try:
                if self._asked:
                    # Now and then ipykernel does not come to its end; half of this, and it is made to.
                    await self.finish_shutdown(waittime=20.0)
                elif await self.is_alive():
                    await self.shutdown_kernel(now=now)
            finally:
                await self.cleanup_resources()
                for client in self._clients:
                    client.stop_channels()

        run_sync(end)()
        with contextlib.suppress(OSError):  # the folder may be gone, and the words with it
            if log and self.log_file.stat().st_size:
                shutil.copyfile(self.log_file, log)
            self.log_file.unlink()


class ChainKernels:
    """The kernels of a chain in `folder`, one for each notebook. The first is started at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kernels = [ChainKernel.started(folder)]  # one or two before, the present one, and the next

    def next(self, *, last: bool) -> ChainKernel:
        """The kernel of the next notebook. Unless it is the `last`, another is started."""
        kernel = self._kernels[-1]
        while len(self._kernels) > 2:
            self._kernels.pop(0).end()
        if not last:
            self._kernels.append(ChainKernel.started(self.folder))
        return kernel

    def close(self) -> None:
        """End all that are left; what they have not been asked to end is lost."""
        for kernel in self._kernels:
            kernel.end(now=True)


def kernel_environment() -> dict[str, str]:
    """The environment of the kernels; the user's own values win, but for what would spoil the notebooks."""
    package_parent = str(Path(__file__).resolve().parents[2])
    share_processors()  # of the whole chain, before its first kernel; the others find what it has set
    return {
        **os.environ,
        # With any other the figures would be in no notebook and no report.
        "MPLBACKEND": BACKEND,
        # The same folders as the chain's, found and said once.
        paths.HOME: str(paths.home()),
        "PYTHONPATH": os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH")))),
        # The debugger warns about frozen modules in every single notebook otherwise.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
