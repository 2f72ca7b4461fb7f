"""From a predictor to an open page: in a browser (`serve`) or in a notebook (`open_inline`)."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO
from urllib.request import getproxies_environment

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import lock_open
from ssdlib.common.runtime import need_extra
from ssdlib.common.terminal import printable
from ssdlib.tools.app.address import is_loopback, own_address

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detector
    from ssdlib.tools.app.uploads import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::")
FOLDER = "ssdlib-app-"


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
    """Show the page until Ctrl-C. `ready` is called with the address for visitors once it can be opened.

    Without a port, the first free one from 7860. `share` opens a tunnel through Gradio's servers to the whole
    world; without it nothing but this machine is contacted. Raises ConfigError if Gradio is missing or the
    address cannot be had.
    """
    require_gradio()
    options = {"server_name": host, "server_port": port, "share": share, "inbrowser": browser}
    os.environ["GRADIO_TEMP_DIR"] = str(_upload_folder())
    with redirect_stderr(_Printable(sys.stderr)):
        try:
            blocks, address = _page(host).launch_page(predictor, limits=limits, **options)
        except OSError as error:  # what Gradio raises for a port that is taken
            raise ConfigError(f"the page cannot be served on {host}: {error}") from error
        except ValueError as error:  # which advises to make the page public
            raise ConfigError(
                f"the page does not answer on {host}: this computer is too busy, or a proxy stands "
                "before it. Try again, or name the host in no_proxy."
            ) from error
        try:
            ready(
                address if share or host not in ANYWHERE else f"http://{own_address()}:{blocks.server_port}/"
            )
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


class _Printable:
    """A text stream that writes `printable` text alone: Gradio's tracebacks quote what visitors send."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def who_can_open(host: str, share: bool = False) -> str:
    """Who else than this computer reaches a page served so, as a warning; empty if nobody does."""
    if share:
        return (
            "Anyone in the world who has this link can use the page while it is open: there is no password, "
            "and images pass through Gradio's servers."
        )
    if is_loopback(host):
        return ""
    return (
        "Everyone in the network who reaches this computer can use the page: there is no password, and "
        "images travel unencrypted. Without --host it is for this computer alone."
    )


@cache
def _upload_folder() -> Path:
    """A new folder of this process's own for uploads under way, which is removed when it ends.

    A process that was killed leaves its folder: those are removed now. Its number stands in the name, but
    whether it lives is told by a lock, as a number may be another process's by now.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError):
            os.close(_lock(folder))
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with suppress(OSError):
        _lock(folder)
    return folder


def _lock(folder: Path) -> int:
    """A descriptor of the folder, locked as long as it is open. Raises OSError if another holds it.

    Windows locks no folders: there it always is, and what a killed page leaves is the system's to tidy.
    """
    if os.name == "nt":
        raise OSError
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        lock_open(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_inline(predictor: Detector, **options: Any) -> Any:
    """The same page in the output of a notebook's cell (JupyterLab, Colab).

    Returns Gradio's Blocks; its `close()` ends the server. `options`, such as height, go to `Blocks.launch`.
    Raises ConfigError if Gradio is missing.
    """
    # On Colab and JupyterHub the kernel is another computer than the reader's, and goes by other names; the
    # page says where images are looked at.
    local = "google.colab" not in sys.modules and "JUPYTERHUB_SERVICE_PREFIX" not in os.environ
    os.environ["GRADIO_TEMP_DIR"] = str(_upload_folder())
    return _page().launch_page(predictor, local=local, **{"inline": True, "height": 1150, **options})[0]


def require_gradio() -> None:
    """Raise ConfigError if Gradio is missing or too old, at once, while importing it would take seconds."""
    if find_spec("gradio") is None:
        need_extra("app", "gradio")
    if int((there := version("gradio")).partition(".")[0]) < 6:  # Colab's own
        raise ConfigError(f"Gradio {there} is too old for the page: pip install 'ssdlib[app]'")


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
