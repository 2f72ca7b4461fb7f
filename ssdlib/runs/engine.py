"""How papermill executes the notebooks of the chain."""

from __future__ import annotations

import time
from typing import Any

from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

ENGINE = "ssdlib"
"""Papermill's name of `ChainEngine`."""


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
