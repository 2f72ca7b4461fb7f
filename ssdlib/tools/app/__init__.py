"""A page in the browser: drop images in, see and count cells, move thresholds, take the results away.

`session` holds all that happens and `markup` draws it as HTML, both without Gradio; `page` is what Gradio
shows (extra `app`), and `launch` opens it.
"""

from ssdlib.tools.app.launch import open_inline, serve

__all__ = ["open_inline", "serve"]
