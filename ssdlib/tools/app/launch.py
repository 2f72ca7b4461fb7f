"""From a predictor to an open page: in a browser (`serve`) or in a notebook (`open_inline`)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies_environment

from ssdlib.common.errors import ConfigError
from ssdlib.common.runtime import need_extra

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detector
    from ssdlib.tools.app.uploads import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    predictor: Detector,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    limits: Limits | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Show the page until Ctrl-C. `ready` is called with the address once it can be opened.

    Without a port, the first free one from 7860. `share` opens a tunnel through Gradio's servers to the whole
    world; without it nothing but this machine is contacted. Raises ConfigError if Gradio is missing or the
    address cannot be had.
    """
    require_gradio()
    local = host in LOOPBACK and not share
    options = {"server_name": host, "server_port": port, "share": share, "inbrowser": browser}
    # Uploads under way lie in a folder of this page's own, which goes when the page does.
    with tempfile.TemporaryDirectory(prefix="ssdlib-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            blocks, address = _page(host).launch_page(predictor, limits=limits, local=local, **options)
        except OSError as error:  # what Gradio raises for a port that is taken
            raise ConfigError(f"the page cannot be served on {host}: {error}") from error
        try:
            ready(address)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


def open_inline(predictor: Detector, **options: Any) -> Any:
    """The same page in the output of a notebook's cell (JupyterLab, Colab).

    Returns Gradio's Blocks; its `close()` ends the server. `options`, such as height, go to `Blocks.launch`.
    Raises ConfigError if Gradio is missing.
    """
    # On Colab the kernel is another computer than the reader's, and the page says where images are looked at.
    local = "google.colab" not in sys.modules
    return _page().launch_page(predictor, local=local, **{"inline": True, "height": 1150, **options})[0]


def require_gradio() -> None:
    """Raise ConfigError if Gradio is missing: at once, while importing it would take seconds."""
    if find_spec("gradio") is None:
        need_extra("app", "gradio")


def _page(*hosts: str) -> ModuleType:
    """The module of the page, once Gradio can be imported and can reach what is served on `hosts`."""
    require_gradio()
    # Gradio reads this, and its folder, when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    _spare_proxies(hosts)
    from ssdlib.tools.app import page

    return page


def _spare_proxies(hosts: Sequence[str]) -> None:
    """Keep requests to this machine away from the environment's proxies: Gradio asks for its own page."""
    if getproxies_environment():  # elsewhere the variable alone would switch off the system's own settings
        known = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
        spared = ",".join(dict.fromkeys(filter(None, (*known, *LOOPBACK, *hosts))))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = spared
