"""Write the notebooks in another language: English code and outputs, prose from notebooks/LANGUAGE.

    python .ci/translate_notebooks.py ru build/notebooks-ru

Prose whose English has changed since it was translated is shown in English, marked, and listed here. The exit
code is 1 if there are more than five such cells.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssdlib.runs.translation import MOST_STALE, build

ROOT = Path(__file__).resolve().parent.parent


def main(language: str, out: str) -> int:
    folder, count = ROOT / "notebooks", 0
    for notebook in sorted(folder.glob("**/[0-9][0-9]_*.ipynb")):
        place = notebook.relative_to(folder)
        result = build(notebook, folder, language, Path(out).resolve() / place)
        for heading in result.stale:
            print(f"not translated: {place}: {heading}", file=sys.stderr)
        for key in result.unused:
            print(f"of no cell any more: {language}/{place.name[:2]}.md, {key}", file=sys.stderr)
        count += len(result.stale)
    print(f"written: {out}")
    return int(count > MOST_STALE)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
