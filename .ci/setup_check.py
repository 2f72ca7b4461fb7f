"""After installation: see that OpenCV loads; take its headless build if the system lacks libGL or glib.

Uses the standard library alone. `make setup` runs it: python .ci/setup_check.py --constraints FILE
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FULL, HEADLESS = "opencv-python", "opencv-python-headless"


def import_problem() -> str | None:
    """Why `import cv2` fails in a fresh interpreter (one line), or None if it works."""
    done = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]


def missing_library(problem: str) -> str | None:
    """The shared library, such as libGL.so.1, that a loader message misses; None if it says otherwise."""
    found = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", problem)
    return found.group(1) if found else None


def pip(*arguments: str) -> None:
    """Run this interpreter's pip. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def mend_opencv(
    constraints: Path | None,
    *,
    problem: Callable[[], str | None] = import_problem,
    run_pip: Callable[..., None] = pip,
) -> str:
    """Make sure that `import cv2` works; returns what was found or done.

    Only a missing system library is mended, with opencv-python-headless: the same module without windows.
    Raises RuntimeError if cv2 fails to import for any other reason, or still does.
    """
    first = problem()
    if first is None:
        return "OpenCV: ok"
    library = missing_library(first)
    if library is None:
        raise RuntimeError(f"OpenCV does not import: {first}")
    # The two packages own the same files, so the first must go before the second comes.
    run_pip("uninstall", "--yes", FULL, HEADLESS)
    run_pip("install", *(["--constraint", str(constraints)] if constraints else []), HEADLESS)
    if left := problem():
        raise RuntimeError(f"OpenCV does not import even without windows: {left}")
    return f"OpenCV: this system has no {library}, so {HEADLESS} was installed in place of {FULL}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--constraints", type=Path, help="file of exact versions for pip")
    try:
        print(mend_opencv(parser.parse_args(arguments).constraints))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
