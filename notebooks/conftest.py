"""How nbval runs the notebooks: what it compares, and where they write."""

import os
import tempfile

NOT_COMPARED = ("stderr", "image/png", "image/svg+xml", "text/html")
"""Progress bars and notices; figures and tables drawn by other versions of other libraries."""


def pytest_collectstart(collector):
    if collector.fspath and collector.fspath.ext == ".ipynb":
        collector.skip_compare += NOT_COMPARED


def pytest_configure(config):
    # A fresh run folder: no checkpoint of an earlier session can stand in for what the notebooks write.
    if "SSDLIB_RUN_DIR" not in os.environ:
        os.environ["SSDLIB_RUN_DIR"] = tempfile.mkdtemp(prefix="ssdlib-nbval-") + "/run"
