"""The page as the network sees it: many visitors at once, equal files, foreign sites, what is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.config import ModelConfig
from ssdlib.data.images import encode_image
from ssdlib.inference.detections import Detections
from ssdlib.tools.app import address, launch
from ssdlib.tools.app.uploads import Limits

pytest.importorskip("gradio", reason="needs the extra app")
httpx = pytest.importorskip("httpx")


class OneCell:
    """A predictor that finds one cell in each image."""

    config = ModelConfig(class_names=("WBC", "RBC"))
    class_names = config.class_names
    batch_size = 8

    def stream(self, images):
        for image in images:
            size = (image.shape[1], image.shape[0])
            yield Detections([[20, 20, 60, 60]], [0.9], [2], size, self.class_names)


def field(number):
    """An image file that is told from others by its width."""
    return encode_image(np.full((90, 100 + number, 3), 200, np.uint8), ".png")


def seen(number):
    return f"{100 + number} × 90 pixels"


class Visitor:
    """A page opened by a program: what it sends, and what it would show."""

    def __init__(self, address, functions=None):
        self.client = httpx.Client(base_url=address, timeout=120)
        self.session = uuid4().hex
        self.functions = functions or self.client.get("/config").json()["dependencies"]

    def send(self, *files):
        """The paths of an upload of (name, content)."""
        answer = self.client.post("/gradio_api/upload", files=[("files", file) for file in files])
        answer.raise_for_status()
        return answer.json()

    def call(self, function, data):
        body = {"fn_index": function["id"], "data": data, "session_hash": self.session}
        answer = self.client.post("/gradio_api/run/predict", json=body)
        answer.raise_for_status()
        return answer.json()["data"]

    def show(self, *files, arrived=None):
        """All that the page says after an upload has been looked at."""
        paths = arrived or self.send(*files)
        records = [
            {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for path, (name, _) in zip(paths, files, strict=True)
        ]
        begin = next(one for one in self.functions if one["targets"][0][1] == "upload")
        self.call(begin, [records])
        then = next(one for one in self.functions if one["trigger_after"] == begin["id"])
        body = {"fn_index": then["id"], "data": [None, 0, 0.5, 0.5], "session_hash": self.session}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as lines:
            for line in lines.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return json.dumps(message["output"]["data"], ensure_ascii=False)
        raise AssertionError("nothing came")

    def slide(self):
        """What the page says when a threshold is moved while the first field is shown."""
        moved = next(one for one in self.functions if one["targets"][0][1] == "input")
        return json.dumps(self.call(moved, [0, 0, 0.5, 0.6]))


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Serves the page with the limits given; gives its address."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    module, started = launch._page(), []

    def serve(**limits):
        blocks, address = module.launch_page(OneCell(), limits=Limits(**limits), server_name="127.0.0.1")
        started.append(blocks)
        return address

    yield serve
    for blocks in started:
        blocks.close(verbose=False)


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_class_of_fifty_at_once_each_with_an_own_image(served, tmp_path):
    address = served()

    functions = Visitor(address).functions

    def visit(number):
        return Visitor(address, functions).show((f"field-{number}.png", field(number)))

    with ThreadPoolExecutor(50) as pool:
        shown = list(pool.map(visit, range(1, 51)))
    for number, page in enumerate(shown, start=1):
        assert f"1. field-{number}.png" in page and seen(number) in page and "2. " not in page
    assert files_in(tmp_path) == []


def test_ten_with_the_same_file_at_once(served, tmp_path):
    address, content = served(), field(7)
    visitors = [Visitor(address) for _ in range(10)]
    # All have arrived before the first is read.
    arrived = [visitor.send(("field.png", content)) for visitor in visitors]
    for visitor, paths in zip(visitors, arrived, strict=True):
        page = visitor.show(("field.png", content), arrived=paths)
        assert seen(7) in page and "not arrived" not in page
    assert files_in(tmp_path) == []


def test_what_systems_leave_is_named_and_the_others_are_done(served, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # in which Gradio refuses hidden files
    drop = [("a.png", field(3)), ("._a.png", b"\0\x05\x16\x07"), ("b.png", field(4))]
    page = Visitor(served()).show(*drop)
    assert "._a.png is a hidden file" in page and "1. a.png" in page and "2. b.png" in page
    assert files_in(tmp_path) == []


def test_an_upload_that_is_named_again_is_not_taken_for_missing(served):
    visitor = Visitor(served())
    first = visitor.send(("a.png", field(1)))
    visitor.show(("a.png", b""), arrived=first)
    page = visitor.show(("a.png", b""), ("b.png", b""), arrived=[*first, *visitor.send(("b.png", field(2)))])
    assert "2. b.png" in page and "3. " not in page and "not arrived" not in page


def test_a_visitor_whose_images_are_gone_is_told(served):
    address = served()
    visitor = Visitor(address)
    assert seen(5) in visitor.show(("a.png", field(5)))
    assert "No image is left here" not in visitor.slide()
    visitor.session = uuid4().hex  # as after a restart
    assert "No image is left here" in visitor.slide()


def test_without_memory_for_more_the_next_is_told_and_nobody_loses(served):
    address = served(memory_bytes=len(field(5)) + 100)
    first, second = Visitor(address), Visitor(address)
    assert seen(5) in first.show(("a.png", field(5)))
    assert "b.png: the page has no memory" in second.show(("b.png", field(6)))
    assert "No image is left here" not in first.slide()


FOREIGN = {"Origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}", "Origin": "http://[::1]:{port}"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, 200),
        (FOREIGN, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:{port}"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "0.0.0.0:{port}"}, 403),
        ({"Host": "["}, 403),
    ],
)
def test_only_the_page_itself_may_send(served, tmp_path, headers, status):
    address = served()
    headers = {key: value.format(port=address.rstrip("/").rsplit(":")[-1]) for key, value in headers.items()}
    post = partial(httpx.post, headers=headers, timeout=60)
    answer = post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(3_000_000))})
    assert answer.status_code == status and ("page" in answer.text or status == 200)
    for path in ("run/predict", "queue/join"):
        answer = post(f"{address}gradio_api/{path}", json={"fn_index": 0, "data": []})
        assert (answer.status_code == 403) == (status == 403)
    if status == 403:
        assert files_in(tmp_path) == []
    if "Host" in headers:  # what rebinding would read
        assert httpx.get(f"{address}config", headers=headers).status_code == status


@pytest.mark.parametrize("options", [{"server_name": "0.0.0.0"}, {"local": False}])
def test_a_page_for_others_has_any_name_but_no_foreign_origin(monkeypatch, tmp_path, options):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    blocks, _ = launch._page().launch_page(OneCell(), **options)
    try:
        upload = f"http://127.0.0.1:{blocks.server_port}/gradio_api/upload"
        for headers, status in [
            ({"Host": "lab.example", "Origin": "https://lab.example"}, 200),
            (
                {"Host": "10.0.0.7:80", "Origin": "https://lab.example", "X-Forwarded-Host": "lab.example"},
                200,
            ),
            ({"Host": "lab.example", **FOREIGN}, 403),
        ]:
            answer = httpx.post(upload, headers=headers, files={"files": ("a.png", b"x")})
            assert answer.status_code == status
    finally:
        blocks.close(verbose=False)


def test_uploads_have_a_sum_and_go_when_nobody_fetches_them(served, monkeypatch, tmp_path):
    from ssdlib.tools.app import gate

    monkeypatch.setattr(gate, "LINGER", 1.5)
    visitor, content = Visitor(served(arriving_bytes=1_000_000)), bytes(400_000)
    for _ in range(2):
        visitor.send(("a.png", content))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        visitor.send(("a.png", content))
    assert refused.value.response.status_code == 413
    assert "Try again in a minute" in refused.value.response.text
    assert sum(path.stat().st_size for path in files_in(tmp_path)) == 800_000
    time.sleep(3)
    assert files_in(tmp_path) == [] and len(visitor.send(("a.png", content))) == 1


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/deep_link?session_hash=mine",  # which writes a visitor's picture to the disk
        "gradio_api/file=http://example.invalid/x.png",  # which fetches it
        "gradio_api/proxy=https://x.hf.space/",
        "gradio_api/file=/etc/hostname",
        "gradio_api/dev/reload",
        "gradio_api/queue/status",
        "gradio_api/upload/../deep_link",
        "openapi.json",
        "login",
        "monitoring/summary",
    ],
)
def test_of_gradios_routes_only_those_of_the_page_are_open(served, tmp_path, path):
    address = served()
    visitor = Visitor(address)
    visitor.session = "mine"
    visitor.show(("a.png", field(1)))
    for method in ("GET", "HEAD", "POST"):
        assert httpx.request(method, address + path, timeout=60).status_code == 404
    assert files_in(tmp_path) == []
    for path in ("", "config", "theme.css", "gradio_api/startup-events"):
        assert httpx.get(address + path, timeout=60).status_code == 200


def test_gradio_keeps_nothing_of_what_a_page_showed(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    blocks, address = launch._page().launch_page(OneCell(), server_name="127.0.0.1")
    try:
        kept = blocks.state_holder.session_data
        for number in range(3):
            visitor = Visitor(address)
            visitor.show((f"{number}.png", field(number)))
            assert list(kept) == [visitor.session]  # the last alone
        with visitor.client.stream("GET", f"/gradio_api/heartbeat/{visitor.session}"):
            pass  # and that is closed
        end = time.monotonic() + 30
        while kept and time.monotonic() < end:
            time.sleep(0.1)
        assert not kept
    finally:
        blocks.close(verbose=False)


def test_an_upload_that_comes_to_a_halt_is_given_up(served, monkeypatch, tmp_path):
    from ssdlib.tools.app import gate

    monkeypatch.setattr(gate, "STALL", 1.0)
    url = httpx.URL(f"{served()}gradio_api/upload")
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx'
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port), 30) as connection:
        connection.sendall(head.encode() + part)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert files_in(tmp_path) == []


def test_a_form_is_files_alone(served, tmp_path):
    """Gradio keeps other fields in memory, of any size."""
    url = f"{served()}gradio_api/upload"
    answer = httpx.post(url, files={"files": ("a.png", b"x")}, data={"more": "x" * 1000}, timeout=60)
    assert answer.status_code == 400 and files_in(tmp_path) == []


def test_the_terminal_gets_no_commands_from_what_gradio_quotes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launch, "_upload_folder", lambda: tmp_path)
    monkeypatch.setattr(launch.os, "environ", {**os.environ})

    class Blocks:
        def block_thread(self):
            print("Cannot move /etc/\x1b[2J\x9b0m.png", file=sys.stderr)

        def close(self, verbose):
            pass

    served_by = SimpleNamespace(launch_page=lambda *_, **__: (Blocks(), "http://127.0.0.1:1/"))
    monkeypatch.setattr(launch, "_page", lambda *_: served_by)
    launch.serve(OneCell(), ready=lambda _: None)
    assert capsys.readouterr().err == "Cannot move /etc/\\x1b[2J\\x9b0m.png\n"


@pytest.mark.parametrize("error", [OSError("port 1 is taken"), ValueError("Please set share=True")])
def test_a_page_that_cannot_be_served_is_an_error_in_words(monkeypatch, tmp_path, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(launch, "_upload_folder", lambda: tmp_path)
    monkeypatch.setattr(launch.os, "environ", {**os.environ})
    monkeypatch.setattr(launch, "_page", lambda *_: SimpleNamespace(launch_page=fails))
    with pytest.raises(ConfigError, match=r"the page .* on") as raised:
        launch.serve(OneCell())
    assert "share" not in str(raised.value)


@pytest.mark.parametrize("path", ["upload", "process_recording", "component_server"])
def test_what_is_broken_or_has_no_place_leaves_nothing(served, tmp_path, path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = f"{served(file_bytes=1000)}gradio_api/{path}"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    for content in (part + bytes(9000) + b"\r\n--b--\r\n", b"no form", part.replace(b"name=", b"game=")):
        assert httpx.post(f"{url}?upload_id=x", content=content, headers=form).status_code in (400, 404, 413)

    def breaks_off():
        yield part + bytes(500)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        httpx.post(url, content=breaks_off(), headers=form)
    time.sleep(0.5)
    assert files_in(tmp_path) == []


def test_a_request_that_is_no_upload_is_small(served):
    body = b'{"fn_index": 0, "data": ["' + b"x" * 3_000_000 + b'"]}'
    for path in ("run/predict", "queue/join"):
        answer = httpx.post(f"{served()}gradio_api/{path}", content=body)
        assert answer.status_code == 400


def test_what_a_killed_page_left_goes_at_the_next_start(tmp_path):
    """And what a living one has stays."""
    code = (
        "import signal, time; from ssdlib.tools.app import launch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "folder = launch._upload_folder(); (folder / 'upload').write_text('x'); print(folder, flush=True)\n"
        "time.sleep(60)"
    )

    def start():
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )

    killed, living, after = start(), None, None
    try:
        left = Path(killed.stdout.readline().strip())
        assert f"-{killed.pid}-" in left.name
        living = start()
        lives = Path(living.stdout.readline().strip())
        assert (left / "upload").is_file() and (lives / "upload").is_file()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "upload").is_file()
        (tmp_path / f"{launch.FOLDER}link").symlink_to(Path(__file__).parent)
        after = start()
        now = Path(after.stdout.readline().strip())
        assert not left.exists() and (lives / "upload").is_file() and (now / "upload").is_file()
        assert Path(__file__).is_file()
        living.send_signal(signal.SIGINT)  # Ctrl-C
        living.wait(30)
        assert not lives.exists()
    finally:
        for process in filter(None, (killed, living, after)):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("host", "share", "said"),
    [
        ("127.0.0.1", False, ""),
        ("localhost", False, ""),
        ("127.0.0.2", False, ""),
        ("::1", False, ""),
        ("0.0.0.0", False, "Everyone in the network"),
        ("::", False, "Everyone in the network"),
        ("192.168.1.4", False, "Everyone in the network"),
        ("lab.example", False, "Everyone in the network"),
        ("127.0.0.1", True, "Anyone in the world"),
    ],
)
def test_who_can_open_it_is_said(host, share, said):
    warning = launch.who_can_open(host, share)
    assert warning.startswith(said) and ("no password" in warning) == bool(said)


@pytest.mark.parametrize("network", [True, False])
def test_the_address_that_others_use(monkeypatch, network):
    class Probe:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, _):
            if not network:
                raise OSError("Network is unreachable")

        def getsockname(self):
            return "192.168.1.4", 5

    monkeypatch.setattr(address.socket, "socket", lambda *_: Probe())
    monkeypatch.setattr(address.socket, "gethostname", lambda: "microscope")
    assert address.own_address() == ("192.168.1.4" if network else "microscope")
