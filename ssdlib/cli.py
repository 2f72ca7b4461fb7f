"""The command line: one thin function a verb. What takes long to import is imported where it is used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssdlib.common.tables import Table
from ssdlib.common.terminal import say
from ssdlib.evaluation.tables import analysis_text, results_text

if TYPE_CHECKING:
    from ssdlib.data.source import DataSource
    from ssdlib.inference.job import Summary

UNREADABLE_IMAGES = 3
"""Exit code of `detect` when all else went well."""

app = typer.Typer(
    help="SSD300 finds and counts blood cells: run the course, train, judge and use a detector.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Get, check and draw data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Profile = Annotated[str, typer.Option(help="smoke, quick or full.")]
Data = Annotated[
    str,
    typer.Option(
        help="auto, bccd, txl-pbc, smears, or a folder of yours (Pascal VOC, COCO or YOLO layout); several "
        "with commas between: bccd,txl-pbc,my_cells/"
    ),
]
Run = Annotated[str, typer.Option("--run", help="Name under runs/, or a path. Default: time, profile, data.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting: recipe.epochs=3. May be repeated.")
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        help="Run all values of a setting: seed=0,1,2 or lr=1e-3,3e-3 or recipe=original,scratch. Repeated: "
        "every combination.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Go on in a run made with other settings, with these.")]
WEIGHTS_HELP = (
    "A checkpoint; a run's name or folder (its best one); newest (the newest run's best one); or "
    "shipped: the weights that come with the project, of several microscopes; or bccd: those of BCCD's "
    "official figures."
)
Weights = Annotated[str, typer.Option(help=WEIGHTS_HELP)]
Device = Annotated[
    str, typer.Option(help="auto (a CUDA GPU where there is one, else the CPU), cpu, cuda, cuda:N or mps.")
]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
Engine = Annotated[
    str,
    typer.Option(
        help="torch; onnx or onnx-int8 (ONNX Runtime on the CPU, its file made if it is not there)."
    ),
]


def _no_image(path: Path | None) -> Path | None:
    """The path. Raises an error of usage for the name of an image, which would be overwritten."""
    if path is not None:
        from ssdlib.data.images import IMAGE_SUFFIXES

        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise typer.BadParameter(f"{path} has the name of an image: name a file such as results.json")
    return path


Json = Annotated[Path | None, typer.Option("--json", help="Write the results here.", callback=_no_image)]
FoldEpochs = Annotated[int | None, typer.Option(help="Of each network; default: the recipe's.", min=1)]
FoldInit = Annotated[
    str, typer.Option(help="scratch; shipped or a checkpoint, where it has not seen these labels.")
]
Fractions = Annotated[
    bool,
    typer.Option(
        "--fractions", help="Boxes of VOC and CSV labels with fractions of a pixel, not whole ones."
    ),
]
Split = Annotated[str, typer.Option(help="train, val, test or trainval.")]
Batch = Annotated[int, typer.Option(help="Images at once.", min=1, max=10_000)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.command(epilog="Example: python -m ssdlib run --profile quick --data auto --run first")
def run(
    profile: Profile = "quick",
    data: Data = "auto",
    run: Run = "",
    from_stage: Annotated[str | None, typer.Option("--from", help="First stage, such as 04.")] = None,
    to_stage: Annotated[str | None, typer.Option("--to", help="Last stage.")] = None,
    only: Annotated[str | None, typer.Option(help="One stage alone, such as 05.")] = None,
    settings: Settings = None,
    sweep: Sweep = None,
    force: Force = False,
    language: Annotated[
        str, typer.Option(help="Of the notebooks' prose, the figures and the report: en or ru.")
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Run the notebooks with papermill into a run folder and write its report.

    With --sweep: once for every combination of the values, each in a folder of its own, and a page that
    compares them. The same command with the same --run goes on where it stopped, however that was; a run that
    had come to its end is run anew.
    """
    from ssdlib.common.language import use_language
    from ssdlib.common.signals import StopSignals
    from ssdlib.runs.lookup import run_folder
    from ssdlib.runs.pipeline import find_stages, run_chain, select_stages

    if language:
        use_language(language)
    stages = select_stages(find_stages(), from_stage=from_stage, to_stage=to_stage, only=only)
    folder, overrides = run_folder(run, profile=profile, data=data), _overrides(settings)
    options = {"stages": stages, "force": force, "progress": not quiet}
    with StopSignals(patience=1.0, interrupt=True):
        if sweep:
            folder = folder if run else folder.with_name(f"{folder.name}-sweep")
            _sweep(folder, sweep, profile, data, overrides, **options)
            return
        say(f"run folder: {folder}", file=sys.stderr)
        go_on = not (from_stage or only or force)
        done = run_chain(profile, data, folder, overrides=overrides, go_on=go_on, **options)
    say(results_text(done.metrics()))
    say(f"report: {done.path / 'report.html'}")


def _sweep(
    folder: Path,
    axes: Sequence[str],
    profile: str,
    data: str,
    overrides: dict[str, Any] | None,
    **options: Any,
) -> None:
    """Run a sweep and say how it went. Ends with 1 if some combination did not finish."""
    from ssdlib.common.errors import shell
    from ssdlib.runs.sweep import plan_sweep, run_sweep

    planned = plan_sweep(folder, axes, profile=profile, data=data, overrides=overrides)
    say(f"sweep of {len(planned.combinations)} runs in {folder}", file=sys.stderr)
    comparison = run_sweep(planned, **options)
    say(comparison.to_text())
    say(f"comparison: {folder / 'comparison.html'}")
    asked = {combination.name for combination in planned.combinations}
    failed = [run for run in comparison.runs if run.name in asked and run.state != "done"]
    if failed:
        again = f"The same command with {shell('--run', folder)} tries them again"
        say(f"{len(failed)} of {len(asked)} runs failed. {again}:", file=sys.stderr)
        say("\n".join(f"  {run.name}: {run.error}" for run in failed), file=sys.stderr)
        raise typer.Exit(1)


@app.command(
    epilog="Example: python -m ssdlib train --profile quick --data bccd --run first --set recipe.epochs=30"
)
def train(
    profile: Profile = "quick",
    data: Data = "auto",
    run: Run = "",
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from: shipped, a weights file, a run's name, or scratch; heads are remade for the "
            "data's classes. Default: what the profile says."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped; begin where it has not.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again, in place of the run that is there.")
    ] = False,
    settings: Settings = None,
    force: Force = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that prepare batches. Default: by cores and shared memory.", min=0),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train without the notebooks. A run that is there is never overwritten unasked.

    A run keeps its settings: for more epochs begin another from its weights (--init). Several GPUs:
    accelerate launch --multi_gpu --num_processes 2 -m ssdlib train --run NAME ..."""
    from ssdlib.common.distributed import launched_as, leave
    from ssdlib.common.errors import CheckpointError, ConfigError
    from ssdlib.runs.folder import RunFolder
    from ssdlib.runs.lookup import run_folder
    from ssdlib.runs.overrides import kept_start
    from ssdlib.training.checkpoints import refuse_overwriting

    rank, processes = launched_as()
    if not run and processes > 1:
        raise ConfigError("with several processes give the run a name: --run NAME")
    if resume and restart:
        raise ConfigError("--resume goes on with a run, --restart begins it anew: give one of them")
    folder, main = run_folder(run, profile=profile, data=data), rank == 0
    if not (resume or restart):
        refuse_overwriting(folder / "checkpoints")
    overrides = _overrides(settings)
    if init is not None:
        try:
            start = _init(init, profile, data, quiet=not main)
        except CheckpointError:
            start = kept_start(init, folder) if resume else None
            if start is None:
                raise
        overrides = {**start, **(overrides or {})}
    opened = RunFolder.open(
        folder,
        profile=profile,
        data=data,
        overrides=overrides,
        force=force or restart,
        save=False,
        progress=main,
    )
    history = opened.train(
        resume=resume or (False if restart else None),
        device=device,
        workers="auto" if workers is None else workers,
    )
    leave()
    if not main:
        return
    if history.best is not None:
        say(f"best epoch: {history.best.epoch}, val mAP@0.5 {history.best.map_50:.3f}")
    say(f"weights: {opened.best_checkpoint}")


@app.command(epilog="Example: python -m ssdlib evaluate --data bccd --split test --json results.json")
def evaluate(
    weights: Weights = "shipped",
    data: Data = "auto",
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(help="Only the split's first images.", min=1)] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score threshold for precision and recall. Default: what the weights count best with.",
            min=0,
            max=1,
        ),
    ] = None,
    analysis: Annotated[
        bool,
        typer.Option(
            "--analysis", help="Also errors by kind, counts and calibration; thresholds are chosen on val."
        ),
    ] = False,
    lab: Annotated[bool, typer.Option("--lab", hidden=True)] = False,
    json_file: Json = None,
    engine: Engine = "torch",
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Batch = 8,
    quiet: Quiet = False,
) -> None:
    """Evaluate a detector: mAP three ways, precision and recall by class; 95 % intervals over the images."""
    from ssdlib.evaluation.evaluate import evaluate_split
    from ssdlib.inference.engines import open_predictor

    analysis = analysis or lab  # the option's former name
    path = _weights(weights)
    source = _source(data, quiet)
    predictor = open_predictor(engine, path, device=device, precision=precision, batch_size=batch)
    report = evaluate_split(
        predictor,
        source,
        split,
        limit=limit,
        score_threshold=predictor.config.thresholds if threshold is None else threshold,
        analysis=analysis,
        progress=not quiet,
    )
    report |= {"weights": str(path), "engine": engine}
    sources = {f"{split} of {name}": section for name, section in report.get("sources", {}).items()}
    say(results_text({**sources, split: report, "data": report["data"]}))
    if analysis:
        say(analysis_text(report["analysis"], split))
    _write_json(json_file, report)


@app.command(epilog="Example: python -m ssdlib compare first shipped --data bccd --split val")
def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help=WEIGHTS_HELP, show_default=False)],
    b: Annotated[
        str, typer.Argument(metavar="RUN_B", help="The other one, named alike.", show_default=False)
    ],
    data: Data = "auto",
    split: Split = "val",
    samples: Annotated[int, typer.Option(help="Bootstrap resamples of the images.", min=1)] = 1000,
    json_file: Json = None,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Say whether one detector is better than another: both on the same images, by a paired bootstrap."""
    from ssdlib.evaluation.compare import compare_split
    from ssdlib.inference.predictor import Predictor
    from ssdlib.runs.lookup import find_weights

    paths = [find_weights(a), find_weights(b)]
    source = _source(data, quiet)
    predictors = [Predictor.from_checkpoint(path, device=device, precision=precision) for path in paths]
    result = compare_split(*predictors, source, split, samples=samples, progress=not quiet)
    if source.notice:
        say(source.notice)
    say(f"A: {paths[0]}\nB: {paths[1]}")
    say(f"{split}, {result.images} images, 95 % intervals from {samples} paired bootstrap resamples\n")
    say(f"{result.table().to_text()}\n\nmAP@0.5: {result.verdict}")
    described = {"a": str(paths[0]), "b": str(paths[1]), "split": split, "data": source.describe()}
    _write_json(json_file, {**described, **result.to_dict()})


@app.command(epilog="Example: python -m ssdlib export --weights shipped --out model.onnx --int8 --with-nms")
def export(
    out: Annotated[Path, typer.Option(help="File to write, such as model.onnx.")],
    weights: Weights = "shipped",
    with_nms: Annotated[
        bool,
        typer.Option("--with-nms", help="With decoding and NMS inside: boxes, scores and labels come out."),
    ] = False,
    score: Annotated[float, typer.Option(help="Lowest score, with --with-nms.", min=0, max=1)] = 0.01,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize weights and activations to 8 bits.")] = False,
    data: Annotated[str, typer.Option(help="Data for the calibration of int8: as for train.")] = "auto",
    calibrate_on: Annotated[str, typer.Option(help="Split of that data; its labels are not used.")] = "train",
    images: Annotated[int, typer.Option(help="Number of images to calibrate on.", min=1)] = 48,
    method: Annotated[str, typer.Option(help="Calibration: minmax, percentile or entropy.")] = "minmax",
    quiet: Quiet = False,
) -> None:
    """Write the network as an ONNX file: any batch of (N, 3, 300, 300) uint8 RGB in."""
    from ssdlib.inference.onnx.engine import export_file

    calibration = {"calibrate_on": (data, calibrate_on), "count": images, "method": method} if int8 else {}
    settings = {"score_threshold": score} if with_nms else None
    export_file(_weights(weights), out, **calibration, nms=settings, progress=not quiet)
    say(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")


@app.command(
    epilog="Example: python -m ssdlib detect my_fields/ 'more/*.tif' --out found/ --format pictures,csv,voc"
)
def detect(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders of them, patterns in quotes, Parquet lists of paths; - reads paths "
            "from standard input, one a line.",
            show_default=False,
        ),
    ],
    weights: Weights = "shipped",
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Score from which a detection counts: 0.4, or by class: WBC=0.4,RBC=0.6. Default: what the "
            "weights count best with."
        ),
    ] = None,
    border: Annotated[
        str,
        typer.Option(
            help="Cells cut by the image's border: all are counted, or, two-sides, those at the left and the "
            "upper side."
        ),
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; called again it goes on where it stopped.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="What to write there, of pictures,csv,json,report,coco,voc,geojson (QuPath),imagej (ROIs). "
            "Default: the first four.",
            show_default=False,
        ),
    ] = None,
    fractions: Fractions = False,
    decimal_comma: Annotated[
        bool,
        typer.Option("--decimal-comma", help="CSV files with decimal commas, and semicolons between cells."),
    ] = False,
    json_file: Json = None,
    tile: Annotated[
        str, typer.Option(help="Cut large fields: auto, off, or a tile's width in pixels.")
    ] = "auto",
    um_per_pixel: Annotated[
        float | None,
        typer.Option(help="Scale of the images. Default: by their files' tags, else by their red cells."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Which images are one slide: a regular expression whose one group finds the slide's name in "
            "the path, such as '(S\\d+)_'. Default: those in one folder."
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Detect in all images again.")] = False,
    engine: Engine = "torch",
    cluster: Annotated[
        str | None,
        typer.Option(
            "--engine-cluster",
            help="ray: on all cores, GPUs and machines of a Ray cluster; writes Parquet tables to --out.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Workers of the cluster. Default: one a GPU, or else a core.", min=1),
    ] = None,
    part_images: Annotated[int, typer.Option(help="Images in one task of the cluster.", min=1)] = 64,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Batch = 8,
    quiet: Quiet = False,
) -> None:
    """Find and count the cells in images of yours. Unreadable images are named; the others are done.

    Ends with 3 if some, or a folder, could not be read.
    """
    from ssdlib.common.errors import ConfigError
    from ssdlib.common.files import sha256_of
    from ssdlib.inference.engines import config_of, open_predictor
    from ssdlib.inference.fields import PROBE_SCORE
    from ssdlib.inference.inputs import PassedOver, find_images, listed_paths
    from ssdlib.inference.job import DetectJob, parse_thresholds, run_detection
    from ssdlib.inference.slides import parse_group
    from ssdlib.inference.tiling import Tiling

    chosen = _detect_formats(formats, out, json_file, cluster, workers)
    for option, given, needed in (
        ("--fractions", fractions, "voc"),
        ("--decimal-comma", decimal_comma, "csv"),
    ):
        if given and needed not in chosen:
            raise ConfigError(
                f"{option} is for {needed}, which is not written: name it in --format, with --out"
            )
    slides = None if group is None else parse_group(group)
    path = _weights(weights)
    config = config_of(path)
    thresholds = parse_thresholds(threshold, config)
    tiling = Tiling(int(tile) if tile.isdecimal() and len(tile) < 10 else tile, um_per_pixel, config.use)
    lists = [given for given in images if given == "-" or given.lower().endswith(".parquet")]
    named, passed = [given for given in images if given not in lists], PassedOver()
    tasks = find_images(named, out, listed=listed_paths(lists), passed_over=passed)
    if str(passed):
        say(f"note: passed over {passed}", file=sys.stderr)
    identity = {"weights": sha256_of(path), "engine": engine, "precision": precision, "batch": batch}
    job = DetectJob(
        tasks,
        thresholds,
        tiling,
        border,
        out,
        chosen,
        json_file,
        identity,
        appearance=config.use.appearance,
        group=slides,
        weights=path.name,
        fractions=fractions,
        decimal_comma=decimal_comma,
    )
    settings = {
        "device": device,
        "precision": precision,
        "batch_size": batch,
        "score_threshold": min(PROBE_SCORE, *thresholds.values()),
    }
    if cluster:
        from ssdlib.tools.cluster.cluster import run_archive
        from ssdlib.tools.cluster.worker import ArchiveJob

        archive = ArchiveJob(job, engine, path, part_images, settings, workers)
        summary = run_archive(archive, restart=restart, progress=not quiet)
    else:
        predictor = open_predictor(engine, path, **settings)
        summary = run_detection(predictor, job, restart=restart, progress=not quiet)
    _say_detected(summary, (json_file, out), passed.unreadable)


def _detect_formats(
    formats: str | None, out: Path | None, json_file: Path | None, cluster: str | None, workers: int | None
) -> tuple[str, ...]:
    """What `detect` writes to `out`. Raises ConfigError for options that do not go together."""
    from ssdlib.common.errors import ConfigError
    from ssdlib.inference.results import DEFAULT_FORMATS, parse_formats

    if cluster is None and workers is not None:
        raise ConfigError("--workers is for a cluster: give --engine-cluster ray, too")
    if cluster is not None and (cluster != "ray" or out is None or formats or json_file):
        raise ConfigError(
            "--engine-cluster takes ray, needs --out, and writes Parquet tables alone: leave out --format "
            "and --json"
        )
    chosen = parse_formats(formats) if formats is not None else DEFAULT_FORMATS
    if formats is not None and out is None:
        raise ConfigError("--format says what to write into a folder: name one with --out")
    return () if out is None or cluster is not None else chosen


def _say_detected(summary: Summary, written: Iterable[Path | None], closed_folders: int) -> None:
    """Print what `detect` found. Ends with UNREADABLE_IMAGES if some images or folders could not be read."""
    say(counts_text(summary))
    for path in filter(None, written):
        say(f"written: {path}")
    if summary.resumed:
        say(f"{summary.resumed:,} images had been done before", file=sys.stderr)
    for note, images in summary.notes.items():
        say(f"note: {images:,} of {summary.images:,} images: {note}", file=sys.stderr)
    if summary.scale_note:
        say(f"note: {summary.scale_note}", file=sys.stderr)
    if summary.unreadable:
        say(failures_text(summary), file=sys.stderr)
    if summary.unreadable or closed_folders:
        raise typer.Exit(UNREADABLE_IMAGES)


@app.command("app", epilog="Example: python -m ssdlib app --host 0.0.0.0 --port 8080")
def app_page(
    weights: Weights = "shipped",
    engine: Engine = "torch",
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0: everyone in the network, without a password."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Default: the first free one from 7860.", min=1, max=65535)
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Make a public link through Gradio's servers: anyone who has it can use the page."
        ),
    ] = False,
    browser: Annotated[bool, typer.Option("--open", help="Also open a browser.")] = False,
    max_megabytes: Annotated[float, typer.Option(help="Largest upload, in MB.", min=0.1)] = 20,
    max_megapixels: Annotated[
        float, typer.Option(help="Largest image, in megapixels.", min=0.1, max=170)
    ] = 60,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Show a page in the browser: drop images in, see and count the cells. Ctrl-C ends it."""
    import signal

    from ssdlib.inference.engines import open_predictor
    from ssdlib.tools.app.launch import require_gradio, serve, who_can_open
    from ssdlib.tools.app.session import LEAST_SCORE
    from ssdlib.tools.app.uploads import Limits

    require_gradio()
    limits = Limits(file_bytes=round(max_megabytes * 1e6), pixels=round(max_megapixels * 1e6))
    predictor = open_predictor(
        engine, _weights(weights), device=device, precision=precision, score_threshold=LEAST_SCORE
    )
    # So that a service manager's stop cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def ready(address: str) -> None:
        say(address if quiet else f"the page is open at {address}", flush=True)
        if warning := who_can_open(host, share):
            say(warning, file=sys.stderr)
        if not quiet:
            say("Ctrl-C ends it.", file=sys.stderr)

    serve(predictor, host=host, port=port, share=share, browser=browser, limits=limits, ready=ready)


@data_app.command("fetch", epilog="Example: python -m ssdlib data fetch txl-pbc")
def data_fetch(
    name: Annotated[str, typer.Argument(help="bccd or txl-pbc.")] = "bccd", quiet: Quiet = False
) -> None:
    """Find a published data set, or download its pinned commit into data/, every file checked."""
    from ssdlib.common.errors import ConfigError

    titles = {"bccd": "BCCD", "txl-pbc": "TXL-PBC"}
    if name not in titles:
        raise ConfigError(f"{name} cannot be fetched; choose one of: {', '.join(titles)}")
    source = _source(name, quiet)
    say(f"{titles[name]}: {source.folder}\nfingerprint: {source.fingerprint}")


@data_app.command("check", epilog="Example: python -m ssdlib data check --data my_cells/ --json audit.json")
def data_check(
    data: Data = "auto",
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Audit a data set: what is in it, what is wrong, what to do about it. Ends with 1 if it has errors."""
    from ssdlib.data.audit import audit

    source = _source(data, quiet)
    result = audit(source, progress=not quiet)
    if source.notice:
        say(source.notice)
    for part in source.parts.values() or [source]:
        say(f"{part.kind}: {part.folder}")
    say(result.to_text())
    say(f"{len(result.findings)} findings, {len(result.errors)} of them errors")
    if result.findings:
        say(
            "errors stop training until fixed; warnings distort what is learned or measured; infos do neither"
        )
    _write_json(json_file, result.to_dict())
    if result.errors:
        raise typer.Exit(1)


@data_app.command("suspects", hidden=True)
@data_app.command(
    "label-errors",
    epilog="Example: python -m ssdlib data label-errors --data my_cells/ --out runs/label-errors",
)
def data_label_errors(
    out: Annotated[Path, typer.Option(help="Folder to write; called again it goes on there.")],
    data: Data = "auto",
    split: Annotated[str, typer.Option(help="all (every labeled image), train, val or test.")] = "all",
    folds: Annotated[int, typer.Option(help="Networks trained, each without one fold.", min=2)] = 5,
    epochs: FoldEpochs = None,
    init: FoldInit = "scratch",
    predictions: Annotated[
        Path | None,
        typer.Option(help="Folder of `detect --json` files to use; their detector must not know the labels."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Lowest score of unlabeled objects; default 0.5.", min=0, max=1)
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(help="A decisions.json: write the corrected copy of the data to --out instead."),
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Find missing and doubtful labels with networks that never saw them; the data are never changed.

    Writes a CSV, a page of crops, annotations with the proposed boxes, and decisions.json to be filled in a
    notebook (ssdlib.tools.label_errors.review.ReviewWidget) and given to --apply.
    """
    from ssdlib.tools.label_errors.correct import apply_decisions
    from ssdlib.tools.label_errors.folds import FoldSettings
    from ssdlib.tools.label_errors.rank import CUTS, count_table
    from ssdlib.tools.label_errors.search import DECISIONS_FILE, PAGE_FILE, search

    source = _source(data, quiet)
    if apply is not None:
        changes = apply_decisions(source, apply, out)
        say(", ".join(f"{action}: {count}" for action, count in changes.items()))
        say(f"corrected copy: {out}")
        return
    about = {"split": split, "folds": folds, "epochs": epochs, "init": init, "device": device}
    asked = FoldSettings(**about, overrides=_overrides(settings) or {}, progress=not quiet)
    cuts = CUTS if min_score is None else {**CUTS, "unlabeled": min_score}
    found = search(source, out, asked, predictions=predictions, cuts=cuts)
    if source.notice:
        say(source.notice)
    say(count_table(found).to_text())
    say(f"look: {out / PAGE_FILE}\ndecide: {out / DECISIONS_FILE}")


@data_app.command(
    "complete", epilog="Example: python -m ssdlib data complete --data my_cells/ --out runs/complete"
)
def data_complete(
    out: Annotated[Path, typer.Option(help="Folder to write; called again it goes on there.")],
    data: Data = "auto",
    split: Annotated[str, typer.Option(help="Images to complete: train, val, test or all.")] = "train",
    folds: Annotated[int, typer.Option(help="Networks of a round, each without one fold.", min=2)] = 5,
    epochs: FoldEpochs = None,
    init: FoldInit = "scratch",
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `detect --json` files for the first round; their detector must not know "
            "the labels."
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="At most; default: 1 with --predictions, else 3, fewer if little is added.", min=1),
    ] = None,
    precision: Annotated[
        float, typer.Option(help="Of what is added to a class, estimated, at least.", min=0.5, max=1)
    ] = 0.95,
    min_score: Annotated[
        float | None,
        typer.Option(help="Add all finds with this score, whatever the estimate says.", min=0, max=1),
    ] = None,
    review: Annotated[
        bool,
        typer.Option("--review", help="Add nothing: write the first round's finds for you to decide on."),
    ] = False,
    apply: Annotated[
        Path | None, typer.Option(help="A decisions.json of --review: write the completed copy to --out.")
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Add missing labels to a copy of the data, found by networks that never saw the images' labels.

    The copy is in --out, in the folder data, in the layout of the data; added.csv in it lists what was
    added. With --review a page of crops and decisions.json are written instead, to be filled in a notebook
    (ssdlib.tools.label_errors.review.ReviewWidget) and given to --apply.
    """
    from ssdlib.tools.label_errors import complete as work
    from ssdlib.tools.label_errors.folds import FoldSettings

    source = _source(data, quiet)
    if apply is not None:
        say(f"added: {len(work.apply_finds(source, apply, out))}\ncompleted copy: {out}")
        return
    about = {"split": split, "folds": folds, "epochs": epochs, "init": init, "device": device}
    asked = FoldSettings(**about, overrides=_overrides(settings) or {}, progress=not quiet)
    rounds = rounds or (work.ROUNDS if predictions is None else 1)
    result = work.complete(
        source,
        out,
        asked,
        predictions=predictions,
        precision=precision,
        min_score=min_score,
        rounds=rounds,
        review=review,
    )
    if source.notice:
        say(source.notice)
    say(work.completion_table(result).to_text())
    if review:
        say(f"look: {out / work.PAGE_FILE}\ndecide: {out / work.DECISIONS_FILE}")
    else:
        say(f"completed copy: {out / work.COPY}")


@data_app.command(
    "smears", epilog="Example: python -m ssdlib data smears my_smears --train 20 --val 5 --test 5"
)
def data_smears(
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    train: Annotated[int, typer.Option(min=0)] = 205,
    val: Annotated[int, typer.Option(min=0)] = 87,
    test: Annotated[int, typer.Option(min=0)] = 72,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    fourth_class: Annotated[
        bool, typer.Option("--fourth-class", help="Also draw echinocytes (burr cells) among the red cells.")
    ] = False,
    hard: Annotated[
        bool,
        typer.Option(
            "--hard",
            help="Pale, dark, blurred and crowded fields with debris; some labels are missing (Complete/ has "
            "all).",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Draw synthetic blood smears with labels, in BCCD's layout."""
    from ssdlib.data.smears import write_dataset

    options = {"seed": seed, "fourth_class": fourth_class, "hard": hard, "progress": not quiet}
    written = write_dataset(folder, train=train, val=val, test=test, **options)
    say(f"{train + val + test} smears: {written}")


@data_app.command(
    "convert", epilog="Example: python -m ssdlib data convert my_yolo/ --to yolo --data my_cells/"
)
def data_convert(
    out: Annotated[Path, typer.Argument(help="New folder to write.")],
    to: Annotated[str, typer.Option(help="voc, coco, yolo or csv (a table for each split).")],
    data: Data = "auto",
    fractions: Fractions = False,
    quiet: Quiet = False,
) -> None:
    """Copy a data set into another tool's layout, pictures upright; the original is not touched."""
    from ssdlib.data.writers import write_layout

    source = _source(data, quiet)
    say(f"{to}: {write_layout(source, out, to, fractions=fractions)}")


@app.command(
    "model-card", hidden=True, epilog="Example: python -m ssdlib model-card --ship runs/NAME --smears"
)
def model_card(
    weights: Weights = "shipped",
    data: Data = "bccd",
    smears: Annotated[bool, typer.Option("--smears", help="Also measure on the drawn smears' val.")] = False,
    ship: Annotated[
        str, typer.Option(help="First put these weights, in fp16, in place of the shipped ones.")
    ] = "",
    place: Annotated[str, typer.Option(help="With --ship: blood or bccd.")] = "blood",
    count_on: Annotated[
        str,
        typer.Option(
            help="With --ship: data:split, completely labeled and not trained on, by whose counts thresholds "
            "and NMS are chosen; how the images of its train look is noted, too."
        ),
    ] = "",
    notes: Annotated[
        Path | None, typer.Option(help="Markdown: command, hardware and time of the training.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    quiet: Quiet = False,
) -> None:
    """Measure weights on val and test and write their model card beside them."""
    from functools import partial

    from ssdlib.detector.model_file import read_metadata, shipped_path
    from ssdlib.runs.lookup import find_weights
    from ssdlib.runs.model_card import choose_use, read_notes, ship_weights, write_card

    training = read_notes(notes)
    sources = [(_source(one, quiet), one, ("val", "test")) for one in data.split(",")]
    if smears:
        sources.append((_source("smears", quiet), "smears", ("val",)))
    options = {"training": training, "device": device, "precision": precision, "progress": not quiet}
    if ship:
        choose = None
        if count_on:
            known, split = count_on.rsplit(":", 1)
            counted, seen = _source(known, quiet).dataset(split), _source(known, quiet).dataset("train")
            recipe = read_metadata(find_weights(ship)).get("recipe") or {}
            stain = (recipe.get("augment") or {}).get("stain", 0.0)
            choose = partial(choose_use, data=counted, seen=seen, stain=stain, device=device)
        path = ship_weights(find_weights(ship), shipped_path(place), training, choose)
        if path == shipped_path():
            from ssdlib.inference.onnx.engine import renew_shipped_int8

            say(f"written: {renew_shipped_int8()}")
    else:
        path = find_weights(weights)
    say(f"written: {write_card(path, sources, **options)}")


def counts_text(summary: Summary) -> str:
    """A table of the cells of each class, image by image (of many images, the first) and in all."""
    if not summary.images:
        return "no image could be read"
    whole = len(summary.rows) == summary.images
    shown = summary.rows if whole else summary.rows[: len(summary.rows) // 2]
    body = [[image, *map(str, counts)] for image, counts in shown]
    if not whole:
        body.append([f"... {summary.images - len(shown):,} more", *[""] * len(summary.class_names)])
    total = [f"all {summary.images:,}", *(f"{count:,}" for count in summary.counts)]
    return Table(["image", *summary.class_names], [*body, total], total=True).to_text()


def failures_text(summary: Summary) -> str:
    """The images that could not be read, with the reasons; of many images, the first."""
    unsaid = summary.unreadable - len(summary.failures)
    more = [f"... {unsaid:,} more: see the table of images"] * bool(unsaid)
    images = summary.images + summary.unreadable
    head = f"{summary.unreadable:,} of {images:,} images could not be read:"
    return "\n  ".join([head, *summary.failures, *more])


def _source(data: str, quiet: bool) -> DataSource:
    """The data that `--data` names."""
    from ssdlib.data.source import resolve

    return resolve(data, progress=not quiet)


def _write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write what `--json` asks for, if anything."""
    from ssdlib.common.files import write_json

    if path is not None:
        write_json(path, values)
        say(f"written: {path}")


def _init(init: str, profile: str, data: str, *, quiet: bool) -> dict[str, Any]:
    """The settings that --init stands for; what becomes of the heads is said on stderr."""
    from ssdlib.runs.overrides import start_settings

    class_names = _source(data, quiet).class_names
    settings, message = start_settings(init, profile, class_names)
    if not quiet:
        say(message, file=sys.stderr)
    return settings


def _overrides(settings: Sequence[str] | None) -> dict[str, Any] | None:
    from ssdlib.runs.overrides import parse_override

    return dict(map(parse_override, settings)) if settings else None


def _weights(asked: str) -> Path:
    """The weights file that was asked for; its path is also said on stderr."""
    from ssdlib.runs.lookup import find_weights

    path = find_weights(asked)
    say(f"weights: {path}{' (shipped)' if asked == 'shipped' else ''}", file=sys.stderr)
    return path
