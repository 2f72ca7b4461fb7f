"""The page in a real browser: Debian's Chromium, driven by Playwright. `make test-browser` runs it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def shots(tmp_path_factory) -> Path:
    """Where screenshots go: SCREENSHOTS, else a temporary folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def temporary(tmp_path_factory) -> Path:
    """The server's folder for temporary files, which must be empty in the end."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def server(temporary):
    """Address of `ssdlib app`, as a user starts it; stopped by SIGTERM, after which no file may be left."""
    pytest.importorskip("gradio", reason="needs the extra app")
    command = [sys.executable, "-m", "ssdlib", "app", "--quiet"]
    environment = {**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().split()
        assert address, "the server ended before it was ready"
        yield address[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert list(temporary.rglob("*")) == []


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def own_server(monkeypatch, tmp_path):
    """Serves the page with a detector of the test's own, in this process; gives its address."""
    pytest.importorskip("gradio", reason="needs the extra app")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    from ssdlib.tools.app import page

    started = []

    def serve(detector):
        blocks, address = page.launch_page(detector, server_name="127.0.0.1")
        started.append(blocks)
        return address

    yield serve
    for blocks in started:
        blocks.close(verbose=False)


@pytest.fixture
def open_page(browser, server):
    """Opens the page in a window of a size and scheme; whatever it asks of other hosts fails the test."""
    contexts, foreign, faults = [], [], []

    def opened(width=1280, height=900, scheme="light", address=server, **options):
        def note(request):
            if not request.url.startswith((address, "data:", "blob:")):
                foreign.append(request.url)

        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("request", note)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Smear 1", exact=True).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not foreign and not faults
