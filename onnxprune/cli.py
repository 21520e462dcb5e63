"""The command line, a thin client of :mod:`onnxprune.pipeline`.

Data goes to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 a problem in one
line, 2 usage, 3 a quality gate not met.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune import __version__
from onnxprune.errors import InternalError, OnnxpruneError, QualityError
from onnxprune.targets import check_apart, check_target, data_target, default_target, write_files

if TYPE_CHECKING:
    from onnxprune.holdout import Progress

# Repeated here so that --help does not import numpy; a test compares them.
METRICS = ("f-magnitude", "f", "magnitude", "activation", "reconstruction", "random")
MODES = ("auto", "channels", "weights")
RECOVERIES = ("none", "bias", "full")
ALLOCATIONS = ("auto", "global", "lamp", "erk", "uniform")

PROGRESS_AFTER_S = 1.0


class _Commands(click.Group):
    """A group in which a bare MODEL means ``prune MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Translate our errors into one line and an exit code, in one place."""
        try:
            return super().invoke(ctx)
        except OnnxpruneError as error:
            click.echo(f"onnxprune: error: {error}", err=True)
            ctx.exit(error.exit_code)
        except InternalError as error:
            click.echo(f"onnxprune: internal error: {error}", err=True)
            ctx.exit(error.exit_code)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read comma-separated numbers, such as 0.485,0.456,0.406."""
    try:
        return None if value is None else tuple(float(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a comma-separated list of numbers") from None


def _align(_: click.Context, __: click.Parameter, value: str) -> int | None:
    """Read an alignment; None for automatic."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"'{value}' is neither 'auto' nor a whole number of at least 1")
    return int(value)


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}  # fmt: skip


def _size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes, such as 2MB, 1.5MiB or 800000."""
    if value is None:
        return None
    number = value.strip().rstrip("BbKkMmGgIi ")
    unit = value.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise click.BadParameter(f"'{value}' is not a size such as 800000, 500KB, 2MB or 1.5MiB")
    return size


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_model = click.argument("model", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
_exclude = click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="Leave nodes or initializers with matching names as they are. Repeatable.",
)
_inexact = click.option(
    "--allow-inexact",
    is_flag=True,
    help="Let channels leave across which something is normalised (LayerNorm); what remains "
    "is normalised over the kept channels.",
)
_threads = click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    help="onnxruntime threads (0: its own choice).",
)
_provider = click.option(
    "--provider",
    default="CPUExecutionProvider",
    show_default=True,
    metavar="NAME",
    help="onnxruntime's execution provider for measuring latency.",
)
_reading = _options(
    click.option("--mean", callback=_numbers, metavar="R,G,B", help="Image means, on 0..1."),
    click.option("--std", callback=_numbers, metavar="R,G,B", help="Image deviations, on 0..1."),
    click.option(
        "--output",
        default="",
        metavar="NAME",
        help="Output with the class scores [the first].",
    ),
    _threads,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Samples per run.",
    ),
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="onnxprune %(version)s")
def main() -> None:
    r"""Prune an exported ONNX model with nothing but onnxruntime and labelled samples.

    \b
    onnxprune MODEL --calib DATA --sparsity 0.7

    is short for 'onnxprune prune ...': it gathers per-class activations, scores channels by
    F statistic x magnitude, removes the worst, proves the result against the masked original
    and writes MODEL's stem + '.pruned.onnx'. See 'onnxprune prune --help' for the options.
    """


BUDGETS = ("sparsity", "params", "macs", "latency", "size")


def _check_budget(settings: Mapping[str, Any]) -> None:
    """Make sure that there is one budget, and one that the mode can meet."""
    given = [f"--{name}" for name in BUDGETS if settings[name] is not None]
    if len(given) > 1 or not (given or settings["max_drop"] is not None):
        raise click.UsageError(
            f"give exactly one of {', '.join(f'--{name}' for name in BUDGETS)}, or --max-drop "
            f"alone; got {' and '.join(given) or 'none'}"
        )
    if settings["mode"] == "weights" and given != ["--sparsity"]:
        raise click.UsageError(
            f"--mode weights needs --sparsity: zeros make a model no faster and no smaller; got "
            f"{given[0] if given else '--max-drop'}"
        )


@main.command()
@_model
@click.option(
    "--calib",
    "data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Labelled samples: a folder of class folders with images, or an .npz with y.",
)
@click.option(
    "--random-inputs",
    is_flag=True,
    help="Work without samples: with --metric magnitude (or random) and --recover none.",
)
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="S",
    help="Fraction of the weights that leaves, between 0 and 1.",
)
@click.option(
    "--params",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="R",
    help="Instead: parameters of the pruned model, as a fraction of MODEL's.",
)
@click.option(
    "--macs",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="R",
    help="Instead: its operations, as a fraction of MODEL's.",
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="R",
    help="Instead: its latency, likewise, measured on this machine with --threads and --provider.",
)
@click.option("--size", callback=_size, metavar="2MB", help="Instead: its file size, at most.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    metavar="D",
    help="Accuracy that may be lost on held-out samples, as a fraction; alone: the fewest "
    "operations within it.",
)
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    metavar="A",
    help="Accuracy to keep on held-out samples, as a fraction.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="Remove whole channels, zero single weights, or remove what the accuracy allows and "
    "zero the rest of a --sparsity.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Where to write the model [MODEL's stem + .pruned.onnx]; weights go to OUT.data if "
    "MODEL has external data.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="Write the report here.",
)
@click.option(
    "--eval",
    "eval_data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Samples to report accuracy on [a held-out part of --calib].",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    metavar="NAME",
    help=f"How to score: {', '.join(METRICS)} [f-magnitude; without samples magnitude].",
)
@click.option(
    "--recover",
    type=click.Choice(RECOVERIES),
    help="Refit all layers, only move the mean of what is removed into biases, or nothing "
    "[full; without samples none].",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    default="auto",
    show_default=True,
    metavar="NAME",
    help=f"How to spread the budget over the layers: {', '.join(ALLOCATIONS)}.",
)
@click.option(
    "--align",
    callback=_align,
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Prefer channel counts that are multiples of N, which run faster; auto: of 8, or of an "
    "eighth of a narrow group.",
)
@_exclude
@_inexact
@_reading
@_provider
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws."
)
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite an existing OUT, and write a model that misses a quality gate.",
)
@_json
@_quiet
def prune(
    model: Path,
    out: Path | None,
    report_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Prune MODEL and write the result, once it is proven right."""
    if (settings["data"] is None) != settings["random_inputs"]:
        raise click.UsageError("give either --calib DATA or --random-inputs")
    _check_budget(settings)
    out = out or default_target(model)
    sources = [model, *(p for p in (settings["data"], settings["eval_data"]) if p)]
    for target in (out, data_target(out)):
        check_target(target, sources, force=force)
    if report_path:
        check_target(report_path, sources, force=force or report_path.suffix == ".json")
        for target in (out, data_target(out)):
            check_apart(report_path, target)

    from onnxprune import pipeline

    with _progress(quiet or as_json) as progress:
        result = pipeline.prune(model, progress=progress, **settings)
    if report_path:
        check_target(report_path, result.sources, force=True)
    good = force or not result.missed
    report = pipeline.save(result, out, force=force) if good else result.report
    if report_path:
        write_files({report_path: [report.to_json().encode()]})
    _warn(report.warnings)
    if as_json:
        click.echo(report.to_json(), nl=False)
    elif not quiet:
        _print(report.summary())
    if not good:
        raise QualityError(f"{out} was not written: {result.missed}")
    if not (quiet or as_json):
        click.echo(f"wrote {out}{f' and {data_target(out).name}' if result.external else ''}")


@main.command()
@_model
@_exclude
@_inexact
@_threads
@_json
def inspect(model: Path, as_json: bool, **settings: Any) -> None:
    """Show what can be pruned from MODEL and what cannot, and why. Needs no data."""
    from onnxprune import pipeline

    result = pipeline.inspect(model, **settings)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result.summary())


@main.command()
@_model
@click.option(
    "--calib",
    "data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Labelled samples, as for prune.",
)
@_reading
@_json
@_quiet
def evaluate(model: Path, data: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Measure MODEL's top-1 accuracy on labelled samples."""
    from onnxprune import pipeline
    from onnxprune.report import plain

    with _progress(quiet or as_json) as progress:
        result = pipeline.evaluate(model, data, progress=progress, **settings)
    _warn(result.warnings)
    if as_json:
        click.echo(json.dumps(plain(result.to_dict()), indent=2))
    else:
        click.echo(
            f"accuracy {100 * result.value:.2f} ± {100 * result.standard_error:.2f} % "
            f"(loss {result.loss:.4f}, {result.samples} samples)"
        )


@main.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Samples per run, unless the models fix it.",
)
@_threads
@_provider
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Measure latency for at most so long.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run each model N times, time allowing [until the ratios are known within 1 %].",
)
@click.option(
    "--no-int8",
    "int8",
    flag_value=False,
    default=True,
    help="Leave out the first model with dynamically quantised weights.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws."
)
@_json
@_quiet
def bench(models: tuple[Path, ...], as_json: bool, quiet: bool, **settings: Any) -> None:
    """Measure MODELS in turns: latency, memory, size. Give the original first."""
    from onnxprune import benchmark

    with _progress(quiet or as_json) as progress:
        result = benchmark.bench(models, progress=progress, **settings)
    _warn(result.warnings)
    if as_json:
        click.echo(result.to_json(), nl=False)
    elif not quiet:
        _print(result.summary())


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(renderable)


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings:
        click.echo(f"onnxprune: warning: {text}", err=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr for stages that take longer than a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda _, __: lambda ___: None
        return
    import time

    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:

        def start(stage: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(stage, total=total, visible=False)
            began = time.monotonic()

            def advance(done: int) -> None:
                bar.update(
                    task,
                    advance=done,
                    visible=time.monotonic() - began > PROGRESS_AFTER_S,
                )

            return advance

        yield start
