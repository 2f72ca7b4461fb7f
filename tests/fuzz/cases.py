"""What every reader promises, whatever its file holds, and the damage that the tests do to sound files.

A reader gives a value or raises SsdError within seconds, in little memory, and writes nothing outside the
folder that it was told to write to. `make test-slow` tries the same few hundred damaged files each time;
`make fuzz` tries new ones for an hour.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ssdlib.__main__ import main
from ssdlib.common.errors import SsdError

TIMES = int(os.environ.get("SSDLIB_FUZZ", "1"))
"""How many times the examples of `make test-slow` are tried; if more than once, others each time."""
MOST_SECONDS, MOST_WAITING, MOST_BYTES = 20, 100, 1_400_000_000
"""Of one call: seconds of the processor, and by the clock, as others may be at work beside it; and memory on
top of what Python and its libraries have, together less than 2 GB."""


def fuzzed(examples: int) -> Callable:
    """A decorator above `@given` of a test that tries so many examples in `make test-slow`."""
    chosen = settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: pytest.mark.slow(chosen(test))


class PromiseBroken(BaseException):
    """No Exception, so that no reader takes it for damage in its file."""


@contextmanager
def limits() -> Iterator[None]:
    """Inside it nothing may last `MOST_SECONDS` or need `MOST_BYTES` more than before."""

    def too_long(*_: object) -> None:
        raise PromiseBroken(f"not done after {MOST_SECONDS} s")

    before, began = _peak(reset=True), time.process_time()
    # For code in C that never comes back. What a test has put in the place of stderr may be no file.
    faulthandler.dump_traceback_later(2 * MOST_WAITING, exit=True, file=sys.__stderr__)
    former = {number: signal.signal(number, too_long) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MOST_WAITING)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
        faulthandler.cancel_dump_traceback_later()
    if time.process_time() - began > MOST_SECONDS:
        too_long()
    if (needed := _peak() - before) > MOST_BYTES:
        raise PromiseBroken(f"needed {needed / 1e9:.1f} GB")


def _peak(reset: bool = False) -> int:
    """The most memory of this process, in bytes, since the last reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call gives, or its SsdError. Any other exception is a fault, and so is a broken limit."""
    with limits():
        try:
            return call(*arguments, **options)
        except SsdError as error:
            assert str(error).strip() and len(str(error)) < 20_000
            return error


def command(*words: object) -> tuple[int, str]:
    """The exit code of a command line, run in this process, and what it prints."""
    printed = io.StringIO()
    with limits(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(word) for word in words])
    text = printed.getvalue()
    assert code in (0, 1, 2, 3), text
    assert "Traceback" not in text
    assert not [one for one in text if ord(one) < 32 and one not in "\n\t\r"], text
    return code, text


@contextmanager
def nothing_changed(folder: Path, but: str = "out") -> Iterator[None]:
    """Inside it nothing in `folder` may appear, change or vanish, except in its folder `but`."""
    before = _contents(folder, but)
    yield
    after = _contents(folder, but)
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not differing, f"outside {but}: {differing}"


def _contents(folder: Path, but: str) -> dict[Path, bytes]:
    """What every file holds, and b"folder" for every folder."""
    found = {}
    for here, folders, files in os.walk(folder):
        if here == str(folder):
            folders[:] = [name for name in folders if name != but]
        for path in (Path(here, name) for name in files):
            found[path] = path.read_bytes() if path.is_file() else b"link, pipe or device"
        found.update({Path(here, name): b"folder" for name in folders})
    return found


# --- damage ----------------------------------------------------------------------------------------------


class Raw(str):
    """Text that stands in a JSON file as it is."""


NAMES = (
    "", " ", ".", "..", "../beside", "../../beside", "/dev/zero", "/", "~", "a/../../beside", ".. /beside",
    "CON", "\x1b[2J\x1b]0;title\x07", "zero\0byte", "\ud800", "\u202egpj.exe", "ü" * 300, "x" * 5000, "=1+1",
    "-rf", "a\nb", "<script>alert(1)</script>", "*", "[1]", "%s{}", "https://example.org/a.jpg", ".hidden",
    "C:\\a\\b.jpg",
)  # fmt: skip
NUMBERS = (
    -1, 0, 1, 2**31, 2**32, 2**63, -(2**63), 10**30, 1e308, -1e308, 1e-320, 0.5, -0.0, float("nan"),
    float("inf"),
)  # fmt: skip
VALUES = (
    *NAMES, *NUMBERS, None, True, False, [], {}, [[]], [{}], [None], {"": None}, "1", "nan", "1e999",
    [1] * 1000, Raw("1" * 9000), Raw("-" + "1" * 400), Raw("[" * 50_000 + "]" * 50_000),
    Raw('{"a":' * 5000 + "1" + "}" * 5000),
)  # fmt: skip


def odd_values() -> st.SearchStrategy[Any]:
    """Values of JSON where others are due."""
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
    nested = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )
    return st.sampled_from(VALUES) | nested


@st.composite
def reshaped(draw: st.DrawFn, value: Any, odd: st.SearchStrategy[Any] | None = None) -> Any:
    """A copy of nested lists and dictionaries in which up to three values are replaced, lost or doubled."""
    value = _copied(value)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(value) or [()]))
        new = _copied(draw(odd_values() if odd is None else odd))  # else it could come to hold itself
        if not place:
            value = new if draw(st.integers(0, 9)) == 0 else value
            continue
        parent = value
        for step in place[:-1]:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "wrap"])):
            case "remove":
                del parent[place[-1]]
            case "double" if isinstance(parent, list):
                parent.insert(place[-1], parent[place[-1]])
            case "double" if isinstance(new, str):
                parent[str(new)] = parent[place[-1]]
            case "wrap":
                parent[place[-1]] = [parent[place[-1]]]
            case _:
                parent[place[-1]] = new
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _places(value: Any, above: tuple = ()) -> list[tuple]:
    """The paths of all values inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in ((*above, key), *_places(one, (*above, key)))][:2000]


def json_bytes(value: Any) -> bytes:
    """The value as JSON; lone surrogates are escaped, `Raw` text stands as it is."""
    raw: dict[str, str] = {}

    def marked(one: Any) -> Any:
        if isinstance(one, Raw):
            mark = f"raw-{len(raw)}-{random.Random(len(raw)).random()}"
            raw[f'"{mark}"'] = one
            return mark
        if isinstance(one, dict):
            return {str(key): marked(inner) for key, inner in one.items()}
        return [marked(inner) for inner in one] if isinstance(one, list) else one

    text = json.dumps(marked(value))
    for mark, replacement in raw.items():
        text = text.replace(mark, replacement)
    return text.encode()


_EDITS = ("cut", "flip", "flip", "number", "number", "insert", "remove", "repeat", "swap", "fill")


@st.composite
def damaged(draw: st.DrawFn, content: bytes, edits: int = 5) -> bytes:
    """The bytes of a file with up to so many pieces changed, lost, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, edits))):
        # The first bytes of most files say how the others are to be read.
        end = draw(st.sampled_from([64, 512, len(data)]))
        at = draw(st.integers(0, max(0, min(end, len(data)) - 1)))
        size = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        match draw(st.sampled_from(_EDITS)):
            case "cut":
                del data[at:]
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                number = draw(st.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
                data[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(["little", "big"])))
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "remove":
                del data[at : at + size]
            case "repeat":
                data[at:at] = data[at : at + size] * draw(st.sampled_from([1, 2, 50]))
            case "swap":
                other = draw(st.integers(0, max(0, len(data) - 1)))
                data[at : at + size], data[other : other + size] = (
                    data[other : other + size],
                    data[at : at + size],
                )
            case "fill":
                data[at : at + size] = bytes([draw(st.integers(0, 255))]) * size
    return bytes(data)


@st.composite
def misspelled(draw: st.DrawFn, text: str, edits: int = 4) -> bytes:
    """A text in some encoding with up to so many words, numbers or marks replaced, lost or doubled."""
    words = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(draw(st.integers(1, edits))):
        at = draw(st.integers(0, max(0, len(words) - 1)))
        new = str(
            draw(st.sampled_from([*NAMES, *NUMBERS, "1" * 5000, "\n", "\t", "#", ":", ",", "]", "<", "&lt;"]))
        )
        match draw(st.sampled_from(["replace", "replace", "insert", "remove", "repeat"])):
            case "insert":
                words.insert(at, new)
            case "remove":
                del words[at : at + 1]
            case "repeat":
                words[at:at] = words[at : at + 10] * draw(st.sampled_from([1, 100]))
            case _:
                words[at : at + 1] = [new]
    encoding = draw(st.sampled_from([*["utf-8"] * 3, "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]))
    return "".join(words).encode(encoding, "replace" if encoding != "utf-8" else "surrogatepass")
