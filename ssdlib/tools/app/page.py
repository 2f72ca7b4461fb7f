"""The page as Gradio shows it: what is where, and which event calls what. Needs the extra `app`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ssdlib.common.errors import SsdError
from ssdlib.common.paths import project_root
from ssdlib.data.images import IMAGE_SUFFIXES, list_images, read_image
from ssdlib.tools.app import markup
from ssdlib.tools.app.session import (
    FIRST_THRESHOLD,
    LEAST_SCORE,
    Detector,
    Limits,
    Session,
    Sessions,
    Turns,
    look,
)

SAVE = """(payload) => {
  if (!payload) return '';
  const {name, type, data} = JSON.parse(payload);
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type}));
  link.download = name;
  document.body.appendChild(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return '';
}"""
"""Hands the browser a file that was made in memory: the server's disk never sees it."""

PRIVATE = {"api_visibility": "private"}
WORKERS = 3
"""Images open at a time, of all visitors together: what bounds the memory. The network takes a few tiles of
each in turn, so that a large image lets small ones pass."""
NETWORK = {"concurrency_id": "network", "concurrency_limit": WORKERS, "trigger_mode": "multiple", **PRIVATE}
BEGIN = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", **PRIVATE}
AT_ONCE = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", **PRIVATE}


def build_page(detector: Detector, *, limits: Limits | None = None, local: bool = True) -> gr.Blocks:
    """The page, not yet launched: give `launch` the `launch_options`. `local`: nobody else can open it."""
    limits = limits or Limits()
    # What Gradio keeps by itself (an upload whose page was closed meanwhile) goes after five minutes.
    with gr.Blocks(title="Count the cells", analytics_enabled=False, delete_cache=(60, 300)) as blocks:
        gr.HTML(markup.header(detector.class_names, local))
        layout = _Layout(detector.class_names, limits)
        _connect(layout, detector, Sessions(lambda: Session(detector.class_names, limits)))
    return blocks.queue(max_size=32)


def launch_options(limits: Limits | None = None) -> dict[str, Any]:
    """For `Blocks.launch`: closed to everything but the page, and nothing loaded from elsewhere."""
    thumbnails = "".join(
        f"\n#ssd-sample-{number} {{ background-image: url({markup.thumbnail(read_image(path))}); }}"
        for number, path in enumerate(_samples(), start=1)
    )
    return {
        "theme": _theme(),
        "css": Path(__file__).with_name("page.css").read_text(encoding="utf-8") + thumbnails,
        "max_file_size": (limits or Limits()).file_bytes,
        "prevent_thread_lock": True,
        "quiet": True,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
    }


class _Layout:
    """Every part of the page, in the order in which it is seen."""

    def __init__(self, class_names: Sequence[str], limits: Limits) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.upload = _upload(limits)
                self.stop = gr.Button("Stop", size="sm", visible=False, elem_id="ssd-stop")
            with gr.Column(scale=2, min_width=300):
                self.samples = _sample_buttons()
                self.scale = gr.Number(
                    label="Micrometers per pixel (0: not known)",
                    value=0,
                    minimum=0,
                    step=0.001,
                    elem_id="ssd-scale",
                )
        self.status = gr.HTML(elem_id="ssd-status")
        with gr.Row(visible=False) as self.results:
            with gr.Column(scale=3, min_width=320):
                self.chosen = gr.Dropdown(label="Image", visible=False, elem_id="ssd-chosen")
                self.picture = gr.HTML()
                self.again = gr.Button(
                    "Look again at the scale given", size="sm", visible=False, elem_id="ssd-again"
                )
            with gr.Column(scale=2, min_width=300):
                self.tiles = gr.HTML()
                self.sliders = [_slider(*item) for item in enumerate(class_names, start=1)]
                self.sizes = gr.HTML()
                with gr.Row(elem_id="ssd-downloads"):
                    self.saves = {
                        kind: gr.Button(f"Save {kind}", size="sm") for kind in ("CSV", "JSON", "picture")
                    }
                self.clear = gr.Button("Clear the page", size="sm", elem_id="ssd-clear")
        self.every = gr.HTML()
        self.payload = gr.Textbox(visible="hidden", elem_id="ssd-payload")
        self.settings = [self.scale, *self.sliders]
        self.drawn = [self.picture, self.tiles, self.sizes, self.every, self.again]
        self.begun = [self.upload, self.status, self.stop]
        self.outcome = [self.status, self.stop, self.results, self.chosen, *self.drawn]


def _upload(limits: Limits) -> gr.File:
    each = f"up to {limits.file_bytes / 1e6:g} MB and {limits.pixels / 1e6:g} megapixels each"
    upload = gr.File(
        label=f"Field images, {each}",
        file_count="multiple",
        file_types=list(IMAGE_SUFFIXES),
        height=206,
        elem_id="ssd-upload",
    )
    # Gradio's own leaves an empty file behind for each upload, and forgets the names.
    upload.preprocess = lambda payload: (
        [file for file in payload.root if not file.is_stream] if payload else []
    )
    upload.async_move_resource_to_block_cache = _only_uploads
    return upload


async def _only_uploads(path: str) -> str:
    """Gradio's own fetches an address that is sent in place of an upload: this page contacts nobody."""
    if "://" in path:
        raise gr.Error("Send the image itself.")
    return path


def _sample_buttons() -> list[tuple[gr.Button, Path]]:
    if not (samples := _samples()):
        return []
    gr.HTML('<p class="ssd-label">No image at hand? Synthetic smears, drawn by this project:</p>')
    with gr.Row(elem_id="ssd-samples"):
        return [
            (gr.Button(f"Smear {number}", elem_id=f"ssd-sample-{number}"), path)
            for number, path in enumerate(samples, start=1)
        ]


def _samples() -> list[Path]:
    """They come with the repository, not with the installed package."""
    folder = project_root() / "data/samples/JPEGImages"
    return list_images(folder)[:6] if folder.is_dir() else []


def _slider(number: int, name: str) -> gr.Slider:
    return gr.Slider(
        LEAST_SCORE,
        1,
        value=FIRST_THRESHOLD,
        step=0.01,
        label=f"{name}: least score",
        buttons=[],
        elem_id=f"ssd-threshold-{number}",
    )


def _connect(layout: _Layout, detector: Detector, sessions: Sessions) -> None:
    """Say what happens on each event. Sessions are told apart by Gradio's hash of the open page."""

    turns = Turns()

    def begin(request: gr.Request, files: Iterable[tuple[str, str]]) -> tuple:
        """Into memory with them; at once, also where others have to be waited for."""
        session = sessions[request.session_hash]
        for path, name in files:
            try:
                session.bring(path, name)
            except SsdError as error:
                session.refused.append(str(error))
        return None, "", gr.Button(visible=bool(session.waiting))

    def on_upload(request: gr.Request, uploads: Sequence[Any]) -> tuple:
        try:
            return begin(request, [(file.path, file.orig_name or file.path) for file in uploads])
        finally:
            _delete(file.path for file in uploads)

    def on_sample(path: Path) -> Callable[..., tuple]:
        def bring(request: gr.Request) -> tuple:
            waiting = {arrival.name for arrival in sessions[request.session_hash].waiting}
            return begin(request, [] if path.name in waiting else [(str(path), path.name)])  # a double click

        return bring

    def on_again(request: gr.Request) -> tuple:
        sessions[request.session_hash].bring_again()
        return begin(request, [])

    # Gradio gives the request and the progress by position, before what the page sends.
    def on_begun(request: gr.Request, progress: Any = gr.Progress(), *sent: Any) -> tuple:  # noqa: B008
        number, *values = sent
        session = sessions[request.session_hash]
        session.refused += _settle(session, values)
        before = list(session.fields)

        def heard(name: str, done: int, tiles_done: int, tiles: int) -> None:
            images = done + len(session.waiting)
            which = f", image {done + 1} of {images}" if images > 1 else ""
            where = f", {tiles_done} of {tiles} tiles" if tiles > 1 else ""
            progress((done + tiles_done / tiles) / max(images, 1), desc=f"{name}{which}{where}")

        session.work(partial(look, detector, turn=turns), heard)
        new = len(session.fields) > len(before)
        return show(session, len(session.fields) - 1 if new else number, session.next_refused())

    def on_stop(request: gr.Request) -> dict[str, Any]:
        sessions[request.session_hash].stop()
        return gr.Button(visible=False)

    def on_change(request: gr.Request, number: int | None, *values: Any) -> tuple:
        session = sessions[request.session_hash]
        return markup.messages(_settle(session, values)), *_draw(session, number)

    def on_clear(request: gr.Request) -> tuple:
        session = sessions[request.session_hash]
        session.clear()
        return show(session, None)

    def on_save(kind: str) -> Callable[..., str]:
        def save(request: gr.Request, number: int | None) -> str:
            return _payload(sessions[request.session_hash], kind, number)

        return save

    def on_leave(request: gr.Request) -> None:
        sessions.forget(request.session_hash)

    def show(session: Session, number: int | None, refused: Sequence[str] = ()) -> tuple:
        names = [(f"{n}. {field.name}", n - 1) for n, field in enumerate(session.fields, start=1)]
        number = number if names else None
        choice = gr.Dropdown(choices=names, value=number, visible=len(names) > 1)
        results = gr.Row(visible=bool(names))
        stop = gr.Button(visible=session.working)
        return markup.messages(refused), stop, results, choice, *_draw(session, number)

    beginnings = [layout.upload.upload(on_upload, layout.upload, layout.begun, **BEGIN)]
    beginnings += [
        button.click(on_sample(path), None, layout.begun, **BEGIN) for button, path in layout.samples
    ]
    beginnings += [layout.again.click(on_again, None, layout.begun, **BEGIN)]
    for begun in beginnings:
        begun.then(
            on_begun,
            [layout.chosen, *layout.settings],
            layout.outcome,
            show_progress_on=layout.upload,
            **NETWORK,
        )
    layout.stop.click(on_stop, None, layout.stop, queue=False, show_progress="hidden", **PRIVATE)
    for control in (*layout.settings, layout.chosen):
        control.input(on_change, [layout.chosen, *layout.settings], [layout.status, *layout.drawn], **AT_ONCE)
    layout.clear.click(on_clear, None, layout.outcome, queue=False, **PRIVATE)
    for kind, button in layout.saves.items():
        made = button.click(on_save(kind), layout.chosen, layout.payload, show_progress="hidden", **PRIVATE)
        made.then(None, layout.payload, layout.payload, js=SAVE, **PRIVATE)
    gr.context.Context.root_block.unload(on_leave)


def _settle(session: Session, values: Sequence[Any]) -> list[str]:
    """Take over the scale and the thresholds as the page has them; returns what is wrong with them."""
    scale, *thresholds = values
    try:
        session.set_scale(scale)
        session.set_thresholds(dict(zip(session.class_names, thresholds, strict=True)))
    except SsdError as error:
        return [str(error)]
    except (TypeError, ValueError):  # a number field that was emptied
        return ["A threshold is not a number."]
    return []


def _draw(session: Session, number: int | None) -> tuple[str, str, str, str, Any]:
    """Picture, counts, sizes, all images, whether there is something to look at again."""
    again = gr.Button(visible=session.outdated)
    if number is None or number >= len(session.fields):
        return "", "", "", "", again
    return (
        markup.picture(session, number),
        markup.tiles(session, number),
        markup.histogram(session, number),
        markup.table(session),
        again,
    )


def _payload(session: Session, kind: str, number: int | None) -> str:
    """A file for `SAVE`; empty if there is nothing to save."""
    if number is None or number >= len(session.fields):
        return ""
    if kind == "picture":
        stem = Path(session.fields[number].name).stem
        name, media_type, content = f"{stem}-cells.jpg", "image/jpeg", session.picture(number)
    elif kind == "CSV":
        name, media_type, content = "cells.csv", "text/csv", session.to_csv().encode()
    else:
        name, media_type, content = "cells.json", "application/json", session.to_json().encode()
    data = base64.b64encode(content).decode("ascii")
    return json.dumps({"name": name, "type": media_type, "data": data})


def _delete(paths: Iterable[str]) -> None:
    """Uploads, and the folder that Gradio made for each."""
    for path in map(Path, paths):
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def _theme() -> gr.Theme:
    """The report's colors; the system's own letters, so that none is loaded from elsewhere."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Base(primary_hue="rose", neutral_hue="stone", font=system, font_mono=mono)
    return theme.set(
        body_background_fill="#fbfaf8",
        body_background_fill_dark="#171514",
        block_background_fill="#ffffff",
        block_background_fill_dark="#201d1c",
        block_border_color="#e4dfd8",
        block_border_color_dark="#383330",
        slider_color="#9c2f45",
        slider_color_dark="#e58aa0",
        color_accent="#9c2f45",
    )
