"""The page as Gradio shows it: what is where, and which event calls what. Needs the extra `app`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ssdlib.common.errors import SsdError
from ssdlib.common.paths import project_root
from ssdlib.common.tables import CSV_ENCODING
from ssdlib.data.images import IMAGE_SUFFIXES, list_images, read_image
from ssdlib.inference.detections import Detector
from ssdlib.inference.fields import detect_image
from ssdlib.tools.app import markup
from ssdlib.tools.app.address import is_loopback
from ssdlib.tools.app.gate import Gate
from ssdlib.tools.app.session import LEAST_SCORE, Session
from ssdlib.tools.app.uploads import Limits
from ssdlib.tools.app.visitors import Sessions, SharedPredictor

SAVE = Path(__file__).with_name("save.js").read_text(encoding="utf-8")
"""Hands the browser a file from memory; a `gradio.DownloadButton` would serve it from the server's disk."""

SAVES = {
    "Save CSV": ("cells.csv", "text/csv", lambda session, _: session.to_csv().encode(CSV_ENCODING)),
    "Save JSON": ("cells.json", "application/json", lambda session, _: session.to_json().encode()),
    "Save picture": ("{stem}-cells.jpg", "image/jpeg", Session.picture),
}
"""File name, media type and content of what each button saves of a session and the chosen field."""

UPLOAD = Path(__file__).with_name("upload.js").read_text(encoding="utf-8")
"""Keeps files that are chosen or dropped while Gradio's upload box changes; run when the page opens."""

CLEAR_BOX = """(files) => {
  Array.from(document.querySelectorAll('#ssd-upload .icon-button-wrapper button')).at(-1)?.click();
  return [files];
}"""
"""Empties the upload box in the browser as soon as its files are on their way: the server's answer could
empty it of the next ones."""

GONE = (
    "No image is left here: the page forgot yours, unused for long, as others needed the memory, or the "
    "connection was lost, or the page was started anew. Drop them in again."
)

PRIVATE = {"api_visibility": "private"}
WORKERS = 3
"""Images open at a time, of all visitors together: what bounds the memory. The network takes a few tiles of
each in turn, so that a large image lets small ones pass."""
NETWORK = {"concurrency_id": "network", "concurrency_limit": WORKERS, "trigger_mode": "multiple", **PRIVATE}
BEGIN = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", **PRIVATE}
AT_ONCE = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", **PRIVATE}


def launch_page(
    predictor: Detector, *, limits: Limits | None = None, local: bool = True, **options: Any
) -> tuple[gr.Blocks, str]:
    """The page, and the address at which it is served from now on until `close()`.

    `local`: nobody but this computer can open it. `options` go to `Blocks.launch`; without them it is closed
    to everything but the page, and nothing is loaded from elsewhere.
    """
    limits = limits or Limits()
    local = local and not options.get("share") and is_loopback(options.get("server_name") or "127.0.0.1")
    # A class of 50 that drops in 24 images each, one by one.
    blocks = _Page(predictor, limits, local).blocks.queue(max_size=1200)
    # The system's own letters, so that none is loaded from elsewhere; the colors are those of page.css.
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    closed = {
        "theme": gr.themes.Base(primary_hue="rose", neutral_hue="stone", font=system, font_mono=mono),
        "css": markup.style([read_image(path) for path in _samples().values()]),
        "js": UPLOAD,
        "max_file_size": limits.file_bytes,
        # Gradio would keep what each of 10,000 pages showed last, pictures and saved files among it.
        "state_session_capacity": 1,
        "app_kwargs": {"middleware": [Middleware(Gate, limits=limits, only_here=local)]},
        "prevent_thread_lock": True,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "share": False,
    }
    _, address, shared = blocks.launch(**{**closed, **options})
    return blocks, shared or address


class _Page:
    """The components of the page, and what its events do; Gradio's hash of an open page is the visitor's."""

    def __init__(self, predictor: Detector, limits: Limits, local: bool) -> None:
        names = predictor.class_names
        self.config = predictor.config
        self.sessions = Sessions(lambda: Session(self.config, limits), limits.memory_bytes)
        self.detect = partial(detect_image, SharedPredictor(predictor))
        with gr.Blocks(title="Count the cells", analytics_enabled=False) as self.blocks:
            gr.HTML(markup.header(names, local))
            self._lay_out(names, limits)
            self._connect()

    def _lay_out(self, names: Sequence[str], limits: Limits) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.upload = upload_box(limits)
                self.stop = gr.Button("Stop", size="sm", visible=False, elem_id="ssd-stop")
            with gr.Column(scale=2, min_width=300):
                labels = _samples()
                hint = "No image at hand? Synthetic smears, drawn by this project:"
                gr.HTML(hint, visible=bool(labels), elem_classes="ssd-label")
                with gr.Row(elem_id="ssd-samples", visible=bool(labels)):
                    numbered = enumerate(labels, start=1)
                    self.samples = [gr.Button(label, elem_id=f"ssd-sample-{n}") for n, label in numbered]
                scale = "Micrometers per pixel (0: not known)"
                self.scale = gr.Number(0, label=scale, minimum=0, step=0.001, elem_id="ssd-scale")
        self.status = gr.HTML(elem_id="ssd-status")
        with gr.Row(visible=False) as self.results:
            with gr.Column(scale=3, min_width=320):
                self.chosen = gr.Dropdown(label="Image", visible=False, elem_id="ssd-chosen")
                # Gradio would refuse what a page shows that was opened before the server was started anew.
                self.chosen.preprocess = lambda shown: shown if isinstance(shown, int) else None
                self.picture = gr.HTML()
                look = "Look again at the scale given"
                self.again = gr.Button(look, size="sm", visible=False, elem_id="ssd-again")
            with gr.Column(scale=2, min_width=300):
                self.counts = gr.HTML()
                slider = partial(gr.Slider, LEAST_SCORE, 1, step=0.01, buttons=[])
                self.sliders = [
                    slider(value=first, label=f"{name}: least score", elem_id=f"ssd-threshold-{number}")
                    for number, (name, first) in enumerate(self.config.thresholds.items(), start=1)
                ]
                self.sizes = gr.HTML()
                with gr.Row(elem_id="ssd-downloads"):
                    self.saves = [gr.Button(label, size="sm") for label in SAVES]
                self.clear = gr.Button("Clear the page", size="sm", elem_id="ssd-clear")
        self.all_images = gr.HTML()
        self.payload = gr.Textbox(visible="hidden", elem_id="ssd-payload")

    def _connect(self) -> None:
        settings = [self.chosen, self.scale, *self.sliders]
        drawn = [self.picture, self.counts, self.sizes, self.all_images, self.again]
        outcome = [self.status, self.stop, self.results, self.chosen, *drawn]
        begun = [self.status, self.stop]
        for begin in (
            self.upload.upload(self.on_upload, self.upload, begun, js=CLEAR_BOX, **BEGIN),
            *(button.click(self.on_sample, button, begun, **BEGIN) for button in self.samples),
            self.again.click(self.on_again, None, begun, **BEGIN),
        ):
            begin.then(self.on_begun, settings, outcome, show_progress_on=self.upload, **NETWORK)
        self.stop.click(self.on_stop, None, self.stop, queue=False, show_progress="hidden", **PRIVATE)
        for control in settings:
            control.input(self.on_change, settings, [self.status, *drawn], **AT_ONCE)
        self.clear.click(self.on_clear, None, outcome, queue=False, **PRIVATE)
        for button in self.saves:
            made = button.click(
                self.on_save, [button, self.chosen], self.payload, show_progress="hidden", **PRIVATE
            )
            made.then(None, self.payload, self.payload, js=SAVE, **PRIVATE)
        self.blocks.unload(self.on_leave)

    def on_upload(self, request: gr.Request, files: Sequence[Any]) -> tuple:
        """Into memory with them; at once, also where others have to be waited for."""
        session = self.sessions[request.session_hash]
        taken = session.take(file.path for file in files)
        new = {Path(file.path): file.orig_name for file in files if file.path in taken}
        try:
            for path, name in new.items():
                self.sessions.add(request.session_hash, path, name)
        finally:
            for path in new:
                with suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()  # which the gate made for it, when this was the last
        return self._begun(session)

    def on_sample(self, request: gr.Request, label: str) -> tuple:
        session = self.sessions[request.session_hash]
        path = _samples().get(label)
        if path and path.name not in [upload.name for upload in session.waiting]:  # not for a double click
            self.sessions.add(request.session_hash, path)
        return self._begun(session)

    def on_again(self, request: gr.Request) -> tuple:
        session = self.sessions[request.session_hash]
        session.waiting += session.outdated
        return self._begun(session)

    def _begun(self, session: Session) -> tuple:
        """For `begun`: no message, and a way to stop what waits."""
        return "", gr.Button(visible=bool(session.waiting))

    # Gradio puts the request and the progress at their places among what the page sends.
    def on_begun(
        self,
        request: gr.Request,
        number: int | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        *settings: Any,
    ) -> tuple:
        session = self.sessions[request.session_hash]
        session.refused += [*_lost(session, number), *_settle(session, settings)]
        before = len(session.fields)

        def on_progress(name: str, done: int, tiles_done: int, tiles: int) -> None:
            images = done + len(session.waiting)
            which = f", image {done + 1} of {images}" if images > 1 else ""
            where = f", {tiles_done} of {tiles} tiles" if tiles > 1 else ""
            progress((done + tiles_done / tiles) / max(images, 1), desc=f"{name}{which}{where}")

        session.run(self.detect, on_progress)
        after = len(session.fields)
        return self._outcome(session, after - 1 if after > before else number, session.next_refused())

    def on_stop(self, request: gr.Request) -> gr.Button:
        self.sessions[request.session_hash].stop()
        return gr.Button(visible=False)

    def on_change(self, request: gr.Request, number: int | None, *settings: Any) -> tuple:
        session = self.sessions[request.session_hash]
        wrong = [*_lost(session, number), *_settle(session, settings)]
        return markup.refused(wrong), *self._drawn(session, number)

    def on_clear(self, request: gr.Request) -> tuple:
        session = self.sessions[request.session_hash]
        session.clear()
        return self._outcome(session, None)

    def on_save(self, request: gr.Request, label: str, number: int | None) -> str:
        """A file for `SAVE`; empty if there is nothing to save."""
        session = self.sessions[request.session_hash]
        for line in _lost(session, number):
            gr.Warning(line)
        if number is None or number >= len(session.fields):
            return ""
        name, media_type, content = SAVES[label]
        name = name.format(stem=Path(session.shown[number].image).stem)
        data = base64.b64encode(content(session, number)).decode("ascii")
        return json.dumps({"name": name, "type": media_type, "data": data})

    def on_leave(self, request: gr.Request) -> None:
        self.sessions.forget(request.session_hash)
        self.blocks.state_holder.session_data.clear()

    def _outcome(self, session: Session, number: int | None, refused: Sequence[str] = ()) -> tuple:
        """For `outcome`: what was refused, and the results with this field chosen."""
        names = [(f"{n}. {found.image}", n - 1) for n, found in enumerate(session.shown, start=1)]
        number = number if names else None
        return (
            markup.refused(refused),
            gr.Button(visible=bool(session.waiting)),
            gr.Row(visible=bool(names)),
            gr.Dropdown(choices=names, value=number, visible=len(names) > 1),
            *self._drawn(session, number),
        )

    def _drawn(self, session: Session, number: int | None) -> tuple:
        """For `drawn`: picture, counts, sizes, all images, and whether to offer another look."""
        again = gr.Button(visible=bool(session.outdated))
        if number is None or number >= len(session.fields):
            return "", "", "", "", again
        return (
            markup.picture(session, number),
            markup.counts(session, number),
            markup.histogram(session, number),
            markup.all_images(session),
            again,
        )


def upload_box(limits: Limits) -> gr.File:
    """Where images are dropped, with two of Gradio's own steps replaced (as of Gradio 6.31).

    `gradio.File` leaves an empty temporary file behind for each upload and forgets the names; and it fetches
    an address that is sent in place of an upload, while this page contacts nobody.
    """
    each = f"up to {limits.file_bytes / 1e6:g} MB and {limits.pixels / 1e6:g} megapixels each"
    box = gr.File(
        label=f"Field images, {each}",
        file_count="multiple",
        file_types=list(IMAGE_SUFFIXES),
        height=206,
        elem_id="ssd-upload",
    )

    async def only_uploads(path: str) -> str:
        if "://" in path:
            raise gr.Error("Send the image itself.")
        return path

    # Not a subclass: Gradio would write a stub file beside this one for it.
    box.preprocess = lambda payload: [file for file in payload.root if not file.is_stream] if payload else []
    box.async_move_resource_to_block_cache = only_uploads
    return box


def _samples() -> dict[str, Path]:
    """Images to try, by the label of their button. They come with the repository, not with the package."""
    folder = project_root() / "data/samples/JPEGImages"
    images = list_images(folder)[:6] if folder.is_dir() else []
    return {f"Smear {number}": path for number, path in enumerate(images, start=1)}


def _lost(session: Session, number: int | None) -> list[str]:
    """What to say where the page shows a field, the `number`, of a session that has none any more."""
    return [GONE] if number is not None and not session.fields else []


def _settle(session: Session, settings: Sequence[Any]) -> list[str]:
    """Take over the scale and the thresholds as the page has them; returns what is wrong with them."""
    scale, *thresholds = settings
    try:
        session.set_scale(scale)
        session.set_thresholds(dict(zip(session.class_names, thresholds, strict=True)))
    except SsdError as error:
        return [str(error)]
    except (TypeError, ValueError):  # a number field that was emptied
        return ["A threshold is not a number."]
    return []
