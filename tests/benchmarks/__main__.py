"""`python -m tests.benchmarks`: run the suites, print tables and bars, write JSON."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ssdlib.common.files import write_json
from ssdlib.common.runtime import choose_device, environment
from tests.benchmarks import engines, suites, waste
from tests.benchmarks.suites import NAIVE, OURS, TORCHVISION, Bench
from tests.benchmarks.timing import Timings

SUITES = {
    "training": suites.training,
    "detection": suites.detection,
    "nms": suites.suppression,
    "loading": suites.loading,
}
WASTE = "waste"
"""Also a suite to ask for, but no race: see `tests.benchmarks.waste`."""
ENGINES = "engines"
"""Likewise: `tests.benchmarks.engines`, which needs the extra `onnx`."""

BARS = (
    ("training", NAIVE, 2.8),
    ("training", TORCHVISION, 2.3),
    ("detection", TORCHVISION, 2.0),
    ("nms", NAIVE, 50.0),
)
"""(suite, the other one, how many times as long as ours it must take)."""


def judge(results: dict[str, Timings]) -> list[dict[str, Any]]:
    """Each bar beside what was measured; bars of suites that did not run are left out."""
    bars = []
    for suite, other, wanted in BARS:
        if suite in results:
            measured = results[suite].ratio(other, OURS)
            name = f"{suite}: ours against {other}"
            bars.append({"name": name, "wanted": wanted, "measured": measured, "passed": measured >= wanted})
    return bars


def matrix_share(bench: Bench, training: Timings, size: int = 4096) -> dict[str, Any]:
    """How much of the machine's matrix rate training reaches, from the fastest rounds of each.

    The backward pass does the forward's work twice: once for the inputs, once for the weights.
    """
    rates, precision, timings = suites.matrix_rate(bench, size)
    rate = rates[precision]
    flops = suites.forward_flops()
    return {
        "precision": precision,
        "matrix_gflops_per_second": rate / 1e9,
        "fp32_matrix_gflops_per_second": rates["fp32"] / 1e9,
        "forward_gflop_per_image": flops / 1e9,
        "training_gflops_per_second": 3 * flops / training.best(OURS) / 1e9,
        "share_of_matrix_rate": 3 * flops / training.best(OURS) / rate,
        "seconds": timings.seconds[next(iter(timings.seconds))],
    }


def report(results: dict[str, Timings], matrix: dict[str, Any] | None) -> str:
    """The tables, the share and the bars, for people."""
    parts = [timings.table() for timings in results.values()]
    if "loading" in results:
        loading = results["loading"]
        rates = ", ".join(f"{name} {1 / loading.median(name):.0f}" for name in loading.seconds)
        parts.append(f"data loader, images a second: {rates}")
    if matrix:
        parts.append(
            f"training reaches {matrix['training_gflops_per_second']:.0f} GFLOP/s (fastest round), "
            f"{matrix['share_of_matrix_rate']:.0%} of the {matrix['matrix_gflops_per_second']:.0f} GFLOP/s "
            f"of a large {matrix['precision']} matrix product "
            f"(fp32: {matrix['fp32_matrix_gflops_per_second']:.0f}); an image's forward pass is "
            f"{matrix['forward_gflop_per_image']:.1f} GFLOP, training three times that"
        )
    bars = [
        f"  {'PASS' if bar['passed'] else 'miss'}  {bar['name']:35} "
        f"{bar['measured']:7.2f}x  (bar {bar['wanted']}x)"
        for bar in judge(results)
    ]
    return "\n\n".join([*parts, "\n".join(["bars", *bars])] if bars else parts)


def main(
    json: Annotated[
        Path | None, typer.Option(help="Where to write all numbers. [default: bench/results-<date>.json]")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Three rounds instead of seven.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this suite ({', '.join([*SUITES, WASTE, ENGINES])}); may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 8,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; 0 is what --quick says.")] = 0,
    progress: Annotated[bool, typer.Option(help="Progress bars on stderr.")] = True,
) -> None:
    """Time ours against a naive SSD300 and torchvision's, in one process, taking turns.

    Example: python -m tests.benchmarks --quick --only nms
    """
    suites_known = [*SUITES, WASTE, ENGINES]
    unknown = sorted(set(only or ()) - set(suites_known))
    if unknown:
        raise typer.BadParameter(
            f"there is no suite {', '.join(unknown)}; choose from {', '.join(suites_known)}",
            param_hint="--only",
        )
    now = datetime.now(UTC)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="ssdlib-bench-") as folder:
        bench = Bench.prepare(
            Path(folder), choose_device(device), batch, rounds or (3 if quick else 7), progress
        )
        results = {name: suite(bench) for name, suite in SUITES.items() if not only or name in only}
        matrix = matrix_share(bench, results["training"]) if "training" in results else None
        wasted = waste.measure(bench) if not only or WASTE in only else None
        by_engine = engines.measure(bench) if not only or ENGINES in only else None
    parts = [report(results, matrix)] if results else []
    parts += [waste.report(wasted, bench.device)] if wasted else []
    parts += [engines.report(by_engine)] if by_engine else []
    print("\n\n".join(parts))
    path = json or Path("bench") / f"results-{now:%Y-%m-%d}.json"
    write_json(
        path,
        {
            "date": now.isoformat(timespec="seconds"),
            "environment": environment(),
            "device": str(bench.device),
            "batch": batch,
            "rounds": bench.rounds,
            "suites": {name: timings.to_dict() for name, timings in results.items()},
            "matrix": matrix,
            "waste": wasted,
            "engines": by_engine,
            "bars": [
                *judge(results),
                *(waste.judge(wasted, bench.device) if wasted else []),
                *(by_engine["bars"] if by_engine else []),
            ],
        },
    )
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    typer.run(main)
