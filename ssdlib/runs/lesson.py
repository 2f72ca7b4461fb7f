"""What the notebooks share: how they begin, show figures and tables, check results, use each other's code."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor, nn

from ssdlib.common import paths
from ssdlib.common.errors import SsdError
from ssdlib.common.language import translate
from ssdlib.common.terminal import say
from ssdlib.common.threads import share_processors
from ssdlib.plots.style import STYLE, described, in_language

MINE = "mine"
"""The tag of a cell whose functions and classes other notebooks use."""

_KNOWN = {"math": math, "torch": torch, "nn": nn, "F": F, "Tensor": Tensor}


def begin(quality: int = 90) -> None:
    """Set the style of figures, and JPEG of this quality as their format: of photographs a fifth of a PNG.

    The number of threads is set, too, by the processors that are free.
    """
    share_processors()
    plt.rcParams.update(STYLE)
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": quality})


def show(figure: Figure, text: str) -> None:
    """Display a figure with a description of it for those who cannot see it, and close it."""
    display(in_language(figure), metadata=described(text))
    plt.close(figure)


def show_table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
    """Display a table of HTML; the first cell of a row names it, the others are set flush right.

    GitHub drops styles, and Jupyter has its own for what has none: hence `align` and `style` both.

    Cells are text or numbers already formatted. nbval does not compare HTML, so this is the place for numbers
    of a network that was just trained, which differ from one processor to the next.
    """

    def line(tag: str, cells: Sequence[Any]) -> str:
        first, *others = (html.escape(translate(str(cell))) for cell in cells)
        right = "".join(f'<{tag} align="right" style="text-align:right">{cell}</{tag}>' for cell in others)
        scope = "row" if tag == "td" else "col"
        return f'<tr><th scope="{scope}" align="left" style="text-align:left">{first}</th>{right}</tr>'

    head, body = line("th", header), "".join(line("td", row) for row in rows)
    title = f"<caption>{html.escape(translate(caption))}</caption>" if caption else ""
    display(HTML(f"<table>{title}<thead>{head}</thead><tbody>{body}</tbody></table>"))


def check(holds: Any, text: str) -> None:
    """Print PASS and what was shown, or NOTE where it does not hold; the notebook goes on either way."""
    say(f"PASS: {text}" if holds else f"NOTE: not so here: {text}")


def mine_or_answer(mine: Callable, answer: Callable) -> Callable:
    """The function `mine`, or `answer` as long as nothing but `...` is written in `mine`."""
    code = mine.__code__
    named = code.co_names or code.co_nlocals > code.co_argcount + code.co_kwonlyargcount
    return mine if named or set(code.co_consts) - {None, ..., mine.__doc__} else answer


def pieces(notebook: str, *names: str) -> list[Any]:
    """The functions and classes of these names as they are written in another notebook of the course.

    notebook is its file name without the ending, such as "02_prior_boxes". The cells of it tagged `mine` are
    run in order, with torch, nn, F, Tensor, math and this function at hand; so a learner's own version is
    used once it is saved. Raises SsdError if there is no such notebook, or no such cell defines a name.
    """
    path = paths.project_root() / "notebooks" / f"{notebook}.ipynb"
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        written = {
            k: "".join(c["source"]) for k, c in enumerate(cells) if MINE in c["metadata"].get("tags", ())
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SsdError(f"{path} cannot be read as a notebook: {error}") from error
    namespace = dict(_KNOWN, pieces=pieces, mine_or_answer=mine_or_answer, __name__=f"notebooks.{notebook}")
    for number, source in written.items():
        exec(compile(source, f"{path.name}, cell {number}", "exec"), namespace)
    missing = [name for name in names if name not in namespace]
    if missing:
        raise SsdError(
            f"no cell of {path.name} tagged {MINE!r} defines {', '.join(missing)}: write it there and save "
            "the notebook, or get that of the course anew."
        )
    return [namespace[name] for name in names]
