"""The command line, a thin client of :mod:`onnxprune.verbs`.

Data goes to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 a problem in one
line, 2 usage, 3 a quality gate not met.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import options
from onnxprune.cli.progress import progress_bar
from onnxprune.cli.terminal import accept_any_text, say, show, show_json, warn
from onnxprune.errors import InternalError, OnnxpruneError, QualityError
from onnxprune.files import (
    check_apart,
    check_target,
    data_target,
    default_target,
    plan_target,
    write_files,
)
from onnxprune.printable import printable
from onnxprune.version import __version__

if TYPE_CHECKING:
    from onnxprune.report.result import PruneResult


class _Commands(click.Group):
    """A group in which a bare MODEL means ``prune MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["prune", *args]
        accept_any_text()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Translate our errors into one line and an exit code, in one place."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            message = printable(error.format_message())
            if message == error.format_message():
                raise
            raise click.UsageError(message, error.ctx) from None
        except OnnxpruneError as error:
            say(f"onnxprune: error: {error}", err=True)
            ctx.exit(error.exit_code)
        except InternalError as error:
            say(f"onnxprune: internal error: {error}", err=True)
            ctx.exit(error.exit_code)


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


@main.command()
@options.model
@options.calib
@options.settings_of("prune")
@options.writing
def prune(
    model: Path,
    data: Path | None,
    **settings: Any,
) -> None:
    """Prune MODEL and write the result, once it is proven right."""
    target = _Target.taken(model, settings)
    options.check_goal("prune", data, settings)
    target.check([data, settings["eval_data"]])

    from onnxprune.verbs import prune as verb

    with progress_bar(target.quiet or target.as_json) as progress:
        result = verb.prune(model, data, progress=progress, **settings)
    _write(result, target)


@main.command()
@options.model
@options.calib
@options.settings_of("plan")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="PLAN",
    help="Where to write the plan [MODEL's stem + .plan.json].",
)
@click.option("--force", is_flag=True, help="Overwrite an existing PLAN.")
@options.as_json
@options.quiet
def plan(
    model: Path,
    data: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Decide what 'prune' would remove from MODEL, and write that as JSON.

    Edit the channels that stay, if you like, and carry it out with 'onnxprune apply'.
    """
    options.check_goal("plan", data, settings)
    out = out or plan_target(model)
    check_target(out, _sources(model, [data, settings["eval_data"]]), force=force)

    from onnxprune.plans.plan_file import save_plan
    from onnxprune.verbs import plan as verb

    with progress_bar(quiet or as_json) as progress:
        result = verb.plan(model, data, progress=progress, **settings)
    warn(result.warnings)
    save_plan(result, out, force=force)
    if as_json:
        show_json(out.read_text(encoding="utf-8"))
    elif not quiet:
        say(result.summary())
        say(f"wrote {out}")


@main.command()
@options.model
@click.argument("plan", type=click.Path(path_type=Path))
@options.calib
@options.settings_of("apply", planned=True)
@options.writing
def apply(
    model: Path,
    plan: Path,
    data: Path | None,
    **settings: Any,
) -> None:
    """Carry out PLAN, as 'onnxprune plan' made it or as you edited it, on MODEL.

    The result is proven, recovered, reported and held against the quality gates as with
    'prune'; a plan for another model is refused.
    """
    target = _Target.taken(model, settings)
    target.check([plan, data, settings["eval_data"]])

    from onnxprune.verbs import apply as verb

    with progress_bar(target.quiet or target.as_json) as progress:
        result = verb.apply(model, plan, data, progress=progress, **settings)
    _write(result, target)


@main.command()
@options.model
@options.data(
    "Samples, as for prune: also show how often the rectifiers are on, their entropy, and what "
    "cutting each group does to the outputs."
)
@options.settings_of("inspect")
@options.as_json
def inspect(model: Path, data: Path | None, as_json: bool, **settings: Any) -> None:
    """Show what can be pruned from MODEL and what cannot, and why. Needs no data."""
    from onnxprune.verbs import inspect as verb

    with progress_bar(as_json) as progress:
        result = verb.inspect(model, data, progress=progress, **settings)
    warn(result.warnings)
    if as_json:
        show_json(result.to_json())
    else:
        show(result)


@main.command()
@options.model
@options.data("Labelled samples, as for prune.", required=True)
@options.settings_of("evaluate")
@options.as_json
@options.quiet
def evaluate(model: Path, data: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Measure MODEL's top-1 accuracy on labelled samples."""
    from onnxprune.report.plain import to_json
    from onnxprune.verbs import evaluate as verb

    with progress_bar(quiet or as_json) as progress:
        result = verb.evaluate(model, data, progress=progress, **settings)
    warn(result.warnings)
    if as_json:
        show_json(to_json(result))
    else:
        show(result)


@main.command()
@options.model
@options.calib
@click.option(
    "--macs",
    "ratios",
    callback=options.numbers,
    default="0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2",
    show_default=True,
    metavar="R,R,...",
    help="Operations that remain, as fractions of MODEL's.",
)
@options.settings_of("sweep")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="Write the curve here.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="PNG|SVG",
    help="Draw it here (needs matplotlib: pip install 'onnxprune[plot]').",
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@options.as_json
@options.quiet
def sweep(
    model: Path,
    data: Path | None,
    out: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Measure what accuracy is left at many budgets of operations, from one calibration."""
    if data is None:
        raise click.UsageError("give --calib DATA")
    for target in (out, plot):
        if target is not None:
            check_target(target, _sources(model, [data, settings["eval_data"]]), force=force)

    from onnxprune.verbs import sweep as verb

    with progress_bar(quiet or as_json) as progress:
        curve = verb.sweep(model, data, progress=progress, **settings)
    if out is not None:
        from onnxprune.report.formats import rendered

        write_files({out: [rendered(curve, out).encode()]})
    if plot is not None:
        curve.plot(plot)
    warn(curve.warnings)
    if as_json:
        show_json(curve.to_json())
    elif not quiet:
        show(curve)


@main.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Samples per run, unless the models fix it.",
)
@options.setting("threads")
@options.setting("provider")
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
@options.setting("dims")
@options.setting("seed")
@options.as_json
@options.quiet
def bench(models: tuple[Path, ...], as_json: bool, quiet: bool, **settings: Any) -> None:
    """Measure MODELS in turns: latency, memory, size. Give the original first."""
    from onnxprune.verbs import bench as verb

    with progress_bar(quiet or as_json) as progress:
        result = verb.bench(models, progress=progress, **settings)
    warn(result.warnings)
    if as_json:
        show_json(result.to_json())
    elif not quiet:
        show(result)


def _sources(model: Path, others: Iterable[Any]) -> list[Path]:
    return [model, *(p for p in others if isinstance(p, Path))]


@dataclass(frozen=True)
class _Target:
    """Where a pruned model and its report go, and what is shown of them."""

    model: Path
    out: Path
    report: Path | None
    force: bool
    as_json: bool
    quiet: bool

    @classmethod
    def taken(cls, model: Path, settings: dict[str, Any]) -> _Target:
        """Take out of the options those of writing; what is left are settings."""
        out, report = settings.pop("out"), settings.pop("report_path")
        flags = [settings.pop(name) for name in ("force", "as_json", "quiet")]
        return cls(model, out or default_target(model), report, *flags)

    def check(self, read: Sequence[Path | None]) -> None:
        """Refuse to write over what is read, or over other files without --force."""
        sources = _sources(self.model, read)
        for target in (self.out, data_target(self.out)):
            check_target(target, sources, force=self.force)
        if self.report:
            force = self.force or self.report.suffix == ".json"
            check_target(self.report, sources, force=force)
            for target in (self.out, data_target(self.out)):
                check_apart(self.report, target)


def _write(result: PruneResult, target: _Target) -> None:
    """Write a pruned model and its report, and show the report."""
    from onnxprune.report.formats import rendered
    from onnxprune.report.result import save

    out = target.out
    if target.report:
        check_target(target.report, result.sources, force=True)
    good = target.force or not result.missed
    report = save(result, out, force=target.force) if good else result.report
    if target.report:
        write_files({target.report: [rendered(report, target.report).encode()]})
    warn(report.warnings)
    if target.as_json:
        show_json(report.to_json())
    elif not target.quiet:
        show(report)
    if not good:
        raise QualityError(f"{out} was not written: {result.missed}")
    if not (target.quiet or target.as_json):
        say(f"wrote {out}{f' and {data_target(out).name}' if result.external else ''}")
