"""HTML pages from the package's Jinja templates; every value is escaped unless it is `markupsafe.Markup`."""

from __future__ import annotations

import base64
import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from ssdlib.common.language import language, translate

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


def render(template: str, **values: Any) -> str:
    """The text of a template, named by its path inside the package (`runs/report.html`), with `values` in it.

    A name that the template uses and `values` lacks is an error. Templates extend `common/page.html`, which
    brings the style and the macros for tables and figures.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    # Jinja doubles the percent signs of its texts, since values might be filled in by them.
    environment.install_gettext_callables(
        lambda text: translate(text.replace("%%", "%")).replace("%", "%%"),
        lambda one, many, count: translate(one if count == 1 else many),
        newstyle=True,
    )
    environment.globals["language"] = language
    environment.filters |= {
        "t": translate,
        "data_uri": data_uri,
        "duration": duration,
        "size": size,
        "urlencode": url_path,
    }
    return environment


def data_uri(image: bytes, suffix: str = ".png") -> str:
    """The image inside a URL, for pages that load nothing from elsewhere."""
    return f"data:{IMAGE_TYPES[suffix.lower()]};base64,{base64.b64encode(image).decode('ascii')}"


def url_path(path: str) -> str:
    """The path as part of a URL, also one whose bytes are no UTF-8."""
    try:
        content = os.fsencode(path)
    except UnicodeEncodeError:  # no name that a file can have
        content = path.encode(errors="backslashreplace")
    return quote(content, safe="/")


def duration(seconds: float) -> str:
    """Seconds in words, such as `2.5 s`, `3 min 07 s` or `1 h 02 min`."""
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours} h {rest // 60:02d} min"
    return f"{rest // 60} min {rest % 60:02d} s" if rest >= 60 else f"{seconds:.1f} s"


def size(count: float) -> str:
    """A number of bytes in the largest fitting decimal unit, such as `1.4 MB`."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
