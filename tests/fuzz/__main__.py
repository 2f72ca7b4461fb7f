"""`make fuzz`: the tests of this folder and all kills again and again, with new examples, for an hour."""

import argparse
import os
import subprocess
import sys
import time

WHAT = ["tests/fuzz", *(f"tests/{part}/test_kill.py" for part in ("data", "inference", "training"))]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--minutes", type=float, default=60)
parser.add_argument("--times", type=int, default=20, help="Examples of a round, in rounds of make test-slow.")
parser.add_argument("pytest", nargs="*", default=WHAT, help="What pytest is to run.")
given = parser.parse_args()

began, number = time.monotonic(), 0
while (minutes := (time.monotonic() - began) / 60) < given.minutes:
    number += 1
    seed = time.time_ns() % 2**32
    print(f"round {number}, after {minutes:.0f} of {given.minutes:.0f} minutes, seed {seed}", flush=True)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-n",
        "2",
        "-m",
        "",
        f"--hypothesis-seed={seed}",
        *given.pytest,
    ]
    if code := subprocess.run(words, env={**os.environ, "SSDLIB_FUZZ": str(given.times)}).returncode:
        sys.exit(code)
print(f"{number} rounds of {given.times} times the examples of make test-slow: no promise was broken")
