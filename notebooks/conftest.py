"""How nbval runs the notebooks: in what Python, what it compares, and where they write."""

import os
import tempfile

NOT_COMPARED = ("stderr", "image/png", "image/svg+xml", "text/html")
"""Progress bars and notices; figures and tables drawn by other versions of other libraries."""


def pytest_collectstart(collector):
    if collector.fspath and collector.fspath.ext == ".ipynb":
        collector.skip_compare += NOT_COMPARED


def pytest_configure(config):
    # Of several kernels named python3, the one of another Python could be found first.
    config.option.nbval_current_env = not getattr(config.option, "nbval_kernel_name", None)
    # A backend of matplotlib from the environment would leave the cells without their figures.
    os.environ.pop("MPLBACKEND", None)
    # A fresh run folder: no checkpoint of an earlier session can stand in for what the notebooks write.
    if "SSDLIB_RUN_DIR" not in os.environ:
        os.environ["SSDLIB_RUN_DIR"] = tempfile.mkdtemp(prefix="ssdlib-nbval-") + "/run"
