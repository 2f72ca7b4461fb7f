"""From a detector to an open page: in a browser (`serve`) or in a notebook (`open_inline`)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import ConfigError
from ssdlib.common.runtime import need_extra

if TYPE_CHECKING:
    from ssdlib.tools.app.session import Detector, Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    detector: Detector,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    limits: Limits | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Show the page until Ctrl-C. `ready` is told the address once it can be opened.

    Without a port, the first free one from 7860. `share` opens a tunnel through Gradio's servers to the whole
    world; without it nothing but this machine is contacted. Raises ConfigError if Gradio is missing or the
    address cannot be had.
    """
    require_gradio()
    with _own_folder():
        page = _page()
        blocks = page.build_page(detector, limits=limits, local=host in LOOPBACK and not share)
        options = page.launch_options(limits)
        try:
            _, address, shared = blocks.launch(
                **options, server_name=host, server_port=port, share=share, inbrowser=browser
            )
        except OSError as error:  # Gradio's word for a port that is taken
            raise ConfigError(f"the page cannot be served on {host}: {error}") from error
        try:
            ready(shared or address)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


def open_inline(
    detector: Detector, *, height: int = 1150, limits: Limits | None = None, **options: Any
) -> Any:
    """The same page in the output of a notebook's cell (JupyterLab, Colab), `height` pixels high.

    Returns Gradio's Blocks; its `close()` ends the server. More `options` go to `Blocks.launch`. Raises
    ConfigError if Gradio is missing.
    """
    page = _page()
    # On Colab the kernel is another computer than the reader's, and the page says where images are looked at.
    blocks = page.build_page(detector, limits=limits, local="google.colab" not in sys.modules)
    settings = {"inline": True, "height": height, "share": False, **options}
    blocks.launch(**page.launch_options(limits), **settings)
    return blocks


def require_gradio() -> None:
    """Raise ConfigError if Gradio is missing: at once, while importing it would take seconds."""
    if find_spec("gradio") is None:
        need_extra("app", "gradio")


def _page() -> ModuleType:
    require_gradio()
    # Read by Gradio when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from ssdlib.tools.app import page

    return page


@contextmanager
def _own_folder() -> Iterator[None]:
    """Uploads under way lie in a folder of this page's own, which goes when the page does."""
    former = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="ssdlib-app-")
    try:
        yield
    finally:
        shutil.rmtree(os.environ.pop("GRADIO_TEMP_DIR"), ignore_errors=True)
        if former is not None:
            os.environ["GRADIO_TEMP_DIR"] = former
