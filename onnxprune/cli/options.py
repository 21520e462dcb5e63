"""Options of the command line, in groups that several verbs share, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from onnxprune.plans.choices import (
    ALLOCATIONS,
    BUDGETS,
    DEPTH_METRICS,
    METRICS,
    MODES,
    MOST_THREADS,
    RECOVERIES,
)


class Registered(click.Choice[str]):
    """A choice among the names of a registry, as it is when a value is read."""

    def __init__(self, registry: Collection[str]) -> None:
        super().__init__(registry)
        self._registry = registry

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a name; others may have been added since the options were made."""
        self.choices = tuple(self._registry)
        return super().convert(value, param, ctx)


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
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


def _dims(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Read sizes by name, such as sequence=128."""
    sizes = {}
    for value in values:
        name, size = value.rpartition("=")[::2]
        if not name or not size.isdecimal() or int(size) < 1:
            raise click.BadParameter(f"'{value}' is not NAME=SIZE, such as sequence=128")
        sizes[name] = int(size)
    return sizes


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


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model = click.argument("model", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
exclude = click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="Leave nodes or initializers with matching names as they are. Repeatable.",
)
inexact = click.option(
    "--allow-inexact",
    is_flag=True,
    help="Let channels leave across which something is normalised (LayerNorm); what remains "
    "is normalised over the kept channels.",
)
threads = click.option(
    "--threads",
    type=click.IntRange(0, MOST_THREADS),
    default=0,
    help="onnxruntime threads (0: its own choice).",
)
provider = click.option(
    "--provider",
    default="CPUExecutionProvider",
    show_default=True,
    metavar="NAME",
    help="onnxruntime's execution provider for measuring latency.",
)
latency_batch = click.option(
    "--latency-batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Samples of a run whose latency is measured; what is slower at 1 or at N is not written.",
)
seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws."
)
dims = click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=_dims,
    metavar="NAME=SIZE",
    help="Size of a dynamic axis of made-up inputs, by its name or as INPUT:AXIS=SIZE. Repeatable.",
)
_scaling = _together(
    click.option("--mean", callback=numbers, metavar="R,G,B", help="Image means, on 0..1."),
    click.option("--std", callback=numbers, metavar="R,G,B", help="Image deviations, on 0..1."),
)
_batches = _together(
    threads,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Samples per run.",
    ),
)
looking = _together(_scaling, _batches)
reading = _together(
    _scaling,
    click.option(
        "--output",
        default="",
        metavar="NAME",
        help="Output with the class scores [the first that can hold some].",
    ),
    _batches,
)
calib = click.option(
    "--calib",
    "data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Labelled samples: a folder of class folders with images, or an .npz with y.",
)
evaluation = click.option(
    "--eval",
    "eval_data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Samples to report accuracy on [a held-out part of --calib].",
)
cache = click.option(
    "--no-cache",
    "cache",
    flag_value=False,
    default=True,
    help="Measure everything anew, and keep nothing for the next run.",
)


def _ratio(name: str, text: str, metavar: str = "R") -> Callable[[Any], Any]:
    kind = click.FloatRange(0, 1, min_open=True, max_open=True)
    return click.option(name, type=kind, metavar=metavar, help=text)


deciding = _together(
    calib,
    click.option(
        "--random-inputs",
        is_flag=True,
        help="Work without samples: with --metric magnitude (or random) and --recover none.",
    ),
    dims,
    _ratio("--sparsity", "Fraction of the weights that leaves, between 0 and 1.", "S"),
    _ratio("--params", "Instead: parameters of the pruned model, as a fraction of MODEL's."),
    _ratio("--macs", "Instead: its operations, as a fraction of MODEL's."),
    _ratio(
        "--latency",
        "Instead: its latency, likewise, measured on this machine with --threads and --provider.",
    ),
    click.option("--size", callback=_size, metavar="2MB", help="Instead: its file size, at most."),
    click.option(
        "--layers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Instead, with --mode depth: how many parts leave; a branch with all its layers is "
        "one.",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 1),
        metavar="D",
        help="Accuracy that may be lost on held-out samples, as a fraction; alone: the fewest "
        "operations within it.",
    ),
    click.option(
        "--min-accuracy",
        type=click.FloatRange(0, 1),
        metavar="A",
        help="Accuracy to keep on held-out samples, as a fraction.",
    ),
    click.option(
        "--mode",
        type=click.Choice(MODES),
        default="auto",
        show_default=True,
        help="Remove whole channels, zero single weights, remove what the accuracy allows and "
        "zero the rest of a --sparsity, or take out whole layers.",
    ),
    evaluation,
    click.option(
        "--metric",
        type=click.Choice(tuple(dict.fromkeys((*METRICS, *DEPTH_METRICS)))),
        metavar="NAME",
        help=f"How to score: {', '.join(METRICS)} [f-magnitude; without samples magnitude]; with "
        f"--mode depth {', '.join(DEPTH_METRICS)} [trial].",
    ),
    click.option(
        "--recover",
        type=Registered(RECOVERIES),
        help="Refit all layers, only move the mean of what is removed into biases, or nothing "
        "[full; without samples none].",
    ),
    click.option(
        "--allocation",
        type=click.Choice(ALLOCATIONS),
        default="auto",
        show_default=True,
        metavar="NAME",
        help=f"How to spread the budget over the layers: {', '.join(ALLOCATIONS)}.",
    ),
    click.option(
        "--align",
        callback=_align,
        default="auto",
        show_default=True,
        metavar="auto|N",
        help="Prefer channel counts that are multiples of N, which run faster; auto: of 8, or of "
        "an eighth of a narrow group.",
    ),
    exclude,
    inexact,
    reading,
    provider,
    latency_batch,
    seed,
    cache,
)
"""What decides a plan: samples, budget and everything that steers."""

cleaning = _together(
    click.option(
        "--lossless",
        is_flag=True,
        help="Instead of a budget: remove only what does not change the outputs. Needs no samples.",
    ),
    click.option(
        "--empirical",
        is_flag=True,
        help="With --lossless: take units that are always on or always off on --calib to be so on "
        "everything. The outputs stay the same on those samples only.",
    ),
)

carrying_out = _together(
    calib,
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 1),
        metavar="D",
        help="Accuracy that may be lost on held-out samples, as a fraction [as planned].",
    ),
    click.option(
        "--min-accuracy",
        type=click.FloatRange(0, 1),
        metavar="A",
        help="Accuracy to keep on held-out samples, as a fraction [as planned].",
    ),
    evaluation,
    click.option(
        "--recover",
        type=Registered(RECOVERIES),
        help="Refit all layers, only move the mean of what is removed into biases, or nothing "
        "[as planned].",
    ),
    _scaling,
    click.option("--output", metavar="NAME", help="Output with the class scores [as planned]."),
    click.option(
        "--threads",
        type=click.IntRange(0, MOST_THREADS),
        help="onnxruntime threads; 0: its own choice [as planned].",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), help="Samples per run [as planned]."),
    click.option(
        "--latency-batch",
        type=click.IntRange(min=1),
        metavar="N",
        help="Samples of a run whose latency is measured [as planned].",
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Of all draws [as planned]."),
    cache,
)
"""What a plan leaves open; settings that are not given are those of the plan's request."""

writing = _together(
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        metavar="OUT",
        help="Where to write the model [MODEL's stem + .pruned.onnx]; weights go to OUT.data if "
        "MODEL has external data.",
    ),
    click.option(
        "--report",
        "report_path",
        type=click.Path(path_type=Path),
        metavar="JSON",
        help="Write the report here.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Overwrite an existing OUT, and write a model that misses a quality gate.",
    ),
    as_json,
    quiet,
)


def check_goal(settings: Mapping[str, Any]) -> None:
    """Make sure that there is one goal that the mode can meet, and samples if it needs them."""
    data, lossless = settings["data"], settings.get("lossless", False)
    if data is not None if settings["random_inputs"] else data is None and not lossless:
        raise click.UsageError("give either --calib DATA or --random-inputs")
    given = [f"--{name}" for name in BUDGETS if settings[name] is not None]
    bounded = settings["max_drop"] is not None
    if lossless and (given or bounded):
        raise click.UsageError(f"--lossless takes no budget: leave out {[*given, '--max-drop'][0]}")
    if not lossless and (len(given) > 1 or not (given or bounded)):
        raise click.UsageError(
            f"give exactly one of {', '.join(f'--{name}' for name in BUDGETS)}, or --max-drop "
            f"alone, or --lossless; got {' and '.join(given) or 'none'}"
        )
    if settings["mode"] == "weights" and given != ["--sparsity"]:
        raise click.UsageError(
            f"--mode weights needs --sparsity: zeros make a model no faster and no smaller; got "
            f"{[*given, '--max-drop' if bounded else '--lossless'][0]}"
        )
    depth = settings["mode"] == "depth"
    if settings["layers"] is not None and not depth:
        raise click.UsageError(f"--layers needs --mode depth; got {settings['mode']}")
    if settings["metric"] not in (None, *(DEPTH_METRICS if depth else METRICS)):
        raise click.UsageError(
            f"--mode {settings['mode']} goes by --metric "
            f"{', '.join(DEPTH_METRICS if depth else METRICS)}; got {settings['metric']}"
        )
    if depth and settings["metric"] in DEPTH_METRICS[1:] and given != ["--sparsity"]:
        got = [*given, "--max-drop" if bounded else "--lossless"][0]
        raise click.UsageError(
            f"--metric {settings['metric']} with --mode depth needs --sparsity; use --metric trial "
            f"with {got}"
        )
    if settings["eval_data"] is not None and data is None:
        raise click.UsageError("--eval needs --calib DATA")
    if settings.get("empirical", False) and not lossless:
        raise click.UsageError("--empirical needs --lossless")
    if settings.get("empirical", False) and data is None:
        raise click.UsageError("--empirical needs --calib DATA: it is about those samples")
