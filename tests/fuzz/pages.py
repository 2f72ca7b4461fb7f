"""HTML as an attacker may write it, and what every page that is written promises: it can be opened."""

import re
from pathlib import Path

from bs4 import BeautifulSoup
from hypothesis import strategies as st

from ssdlib.common import pages

ADDRESSES = (
    "javascript:alert(1)", " JaVa\tScRiPt:alert(1)", "java&#115;cript&colon;alert(1)", "vbscript:x",
    "data:text/html,<script>alert(1)</script>", "data:image/svg+xml,<svg onload=alert(1)>", "//x.example/a",
    "https://x.example/a.png", "HTTP://x.example/a.js", "\\\\x.example\\a", "http:x.example",
    "/\t/x.example", "../../secret", "/dev/zero", "#here", "03_c.ipynb", "01_.ipynb?x",
    f"data:image/png;base64,{'A' * 8}", "blob:https://x.example/1", "file:///etc/passwd", "",
    "'\" onload=alert(1) x='", "zero.png", "pipe.png",
)  # fmt: skip
_ELEMENTS = """
script style iframe object embed form meta base link svg math a img image use video audio source p input
button details template noscript title textarea select table td mglyph mtext annotation-xml foreignObject
set animate plaintext xmp noembed frameset frame body html head portal h1 h2 !DOCTYPE picture track marquee
keygen isindex
"""
_ATTRIBUTES = """
src href xlink:href data action formaction srcdoc style onload onerror onclick ontoggle http-equiv content
srcset poster background id name class alt title ping manifest dynsrc lowsrc longdesc to values
attributeName open autofocus onfocus cite codebase encoding definitionURL
"""
TEXTS = (
    "text", "<!--", "-->", "--!>", "<![CDATA[", "]]>", "<?php", "</script>", "</style>", "</title>",
    "</textarea>", "<", ">", "\"'", "&lt;script&gt;alert(1)&lt;/script&gt;", "<script>alert(1)</script>",
    "$x<y$", "$$", "`", "```", "\n\n", "\n# ", "[a](javascript:alert(1))", "![a](//x.example/a)",
    "![b](attachment:a.png)", "![c](/dev/zero)", "![d](zero.png)", "<javascript:alert(1)>",
    "[r]: javascript:x\n\n[r]", "\x1b[31m", "\r", "\0", "\u202e", "&#x0;", "@import url(//x.example)",
    "0;url=//x.example", "{{ 7 * 7 }}", "{% raw %}", "\n    ", "> " * 200, "*" * 300, "[" * 300, "<b>" * 300,
    "|a|b|\n|-|-|\n", "$\\frac{a}{<img src=x onerror=alert(1)>}$", "\ud800",
)  # fmt: skip


@st.composite
def markup(draw: st.DrawFn) -> str:
    """HTML and Markdown of an attacker: elements that load, run or break out, in any nesting."""
    pieces = []
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.integers(0, 2)) == 0:
            pieces.append(draw(st.sampled_from(TEXTS)))
            continue
        element = draw(st.sampled_from(_ELEMENTS.split()))
        given = draw(
            st.lists(st.tuples(st.sampled_from(_ATTRIBUTES.split()), st.sampled_from(ADDRESSES)), max_size=3)
        )
        quote = draw(st.sampled_from(['"', "'", ""]))
        gap = draw(st.sampled_from([" ", "/", "\n", "\f"]))
        attributes = "".join(f"{gap}{name}={quote}{value}{quote}" for name, value in given)
        pieces.append(f"<{element}{attributes}{draw(st.sampled_from(['>', '>', '/>', '']))}")
        if draw(st.booleans()):
            pieces.append(f"{draw(st.sampled_from(TEXTS))}</{element}>")
    return "".join(pieces)


OWN_SCRIPT = Path(pages.__file__).parents[1].joinpath("runs/report.html").read_text(encoding="utf-8")


def assert_harmless(file: Path) -> None:
    """That a browser runs nothing of the page but its own script, and loads nothing from elsewhere."""
    text = file.read_text(encoding="utf-8")
    for parser in ("html.parser", "lxml"):
        page = BeautifulSoup(text, parser)
        for script in page.find_all("script"):
            assert not script.attrs and script.get_text() in OWN_SCRIPT, script
        assert len(page.find_all("style")) == 1 and len(page.find_all("script")) <= 1
        assert not page.find_all(
            ["iframe", "object", "embed", "form", "base", "link", "frame", "template", "portal", "source"]
        )
        metas = [meta.attrs for meta in page.find_all("meta")]
        assert all("http-equiv" not in attributes for attributes in metas) and len(metas) == 2, metas
        for element in page.find_all(True):
            for name, value in element.attrs.items():
                value, name = str(value), name.lower()
                assert not name.startswith("on") and name not in ("srcdoc", "formaction", "action", "ping")
                if name in ("src", "srcset", "data", "poster", "background", "xlink:href"):
                    assert element.name == "img" and re.match(r"data:image/[\w+.-]+;base64,|$", value), (
                        element
                    )
                if name == "href":
                    assert element.name == "a", element
                    plain = re.sub(r"[\x00-\x20]", "", value)
                    assert re.match(r"https?://|mailto:|#|[^:\\]*$", plain, re.I), element
                    assert not plain.startswith("//"), element
                if name == "style":
                    assert re.fullmatch(r"--color:#[0-9a-f]{6}", value), element
