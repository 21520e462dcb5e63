"""Options of the command line: those of the settings, made from their table, and the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

from onnxprune.errors import RequestError
from onnxprune.plans.constraints import AtLeast, Between, OneOf, Spec
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.plans.settings import ASKED, SETTINGS, taken


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read comma-separated numbers, such as 0.485,0.456,0.406."""
    try:
        return None if value is None else tuple(float(v) for v in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a comma-separated list of numbers") from None


def _align(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Read an alignment; None for automatic."""
    if value in (None, "auto"):
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


def _others(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    """Read budgets by name, such as energy=0.5."""
    budgets = {}
    for value in values:
        name, amount = value.rpartition("=")[::2]
        try:
            budgets[name] = float(amount)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"'{value}' is not NAME=VALUE, such as energy=0.5")
    return budgets


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


_READ: Mapping[str, Callable[..., Any]] = {
    "align": _align,
    "dims": _dims,
    "mean": numbers,
    "other": _others,
    "size": _size,
    "std": numbers,
}
"""How settings are read that are written otherwise on the command line."""

_AUTOMATIC = {"align": "auto"}
"""Defaults that are written otherwise."""


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def settings_of(verb: str, *, planned: bool = False) -> Callable[[Any], Any]:
    """Return a decorator that adds the options of all settings that a verb takes.

    Args:
        verb: its name.
        planned: whether settings that are not given are those of a plan.
    """
    return together(
        *(setting(name, planned=planned) for name, spec in SETTINGS.items() if verb in spec.verbs)
    )


def flag_of(name: str) -> str:
    """Return what a setting is called on the command line."""
    return SETTINGS[name].flag or f"--{name.replace('_', '-')}"


def setting(name: str, *, planned: bool = False) -> Callable[[Any], Any]:
    """Return the option of a setting.

    Args:
        name: its name.
        planned: whether it is that of a plan where it is not given.
    """
    spec = SETTINGS[name]
    flag, default = flag_of(name), _default(name)
    if isinstance(default, bool):
        on = not default  # what giving the flag means
        return click.option(flag, name, flag_value=on, default=default, help=spec.help)
    shown = "as planned" if planned and name in ASKED else spec.default
    default = None if planned else _AUTOMATIC.get(name, default)
    return click.option(
        flag,
        name,
        type=_type(name, spec),
        callback=_READ.get(name),
        multiple=isinstance(default, (tuple, dict)),
        default=None if spec.default or isinstance(default, (tuple, dict)) else default,
        show_default=default not in (None, "") and not spec.default,
        metavar=spec.metavar,
        help=f"{spec.help[:-1]} [{shown}]." if shown else spec.help,
    )


_OWNERS = {f.name: f for owner in (Request, Reading) for f in fields(owner)}


def _default(name: str) -> Any:
    owner = _OWNERS[name]
    return owner.default if owner.default_factory is MISSING else owner.default_factory()


def _type(name: str, spec: Spec) -> Any:
    """Return what click reads a setting as."""
    if name in _READ:
        return None
    kind = spec.constraint
    if isinstance(kind, Between):
        return click.FloatRange(0, 1, min_open=not kind.closed, max_open=not kind.closed)
    if isinstance(kind, AtLeast):
        return click.IntRange(kind.least, kind.most)
    if isinstance(kind, OneOf):
        return _Names(kind)
    return click.Path(path_type=Path) if spec.metavar == "DATA" else None


class _Names(click.Choice[str]):
    """Names of which there may become more after the command line was made."""

    def __init__(self, constraint: OneOf) -> None:
        self._constraint = constraint
        super().__init__(list(constraint.names()))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        self.choices = tuple(self._constraint.names())
        return super().convert(value, param, ctx)


model = click.argument("model", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")


def data(text: str, *, required: bool = False) -> Callable[[Any], Any]:
    """Return the option of the samples, with what they are for."""
    return click.option(
        "--calib",
        "data",
        required=required,
        type=click.Path(path_type=Path),
        metavar="DATA",
        help=text,
    )


calib = data("Labelled samples: a folder of class folders with images, or an .npz with y.")

writing = together(
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


def check_goal(verb: str, data: Path | None, settings: Mapping[str, Any]) -> None:
    """Make sure that the options go together, and that there are samples if they need them.

    Raises:
        UsageError: if options exclude each other.
    """
    try:
        request, reading = taken(verb, settings)
    except RequestError as error:
        raise click.UsageError(_with_flags(str(error))) from None
    if data is not None if request.random_inputs else data is None and not request.lossless:
        raise click.UsageError("give either --calib DATA or --random-inputs")
    if reading.eval_data is not None and data is None:
        raise click.UsageError("--eval needs --calib DATA")
    if request.empirical and data is None:
        raise click.UsageError("--empirical needs --calib DATA: it is about those samples")


def _with_flags(message: str) -> str:
    """Write the names of settings as the options that they are here."""
    pattern = rf"(?<![\w-])({'|'.join(map(re.escape, SETTINGS))})(?![\w-])"
    return re.sub(pattern, lambda m: flag_of(m[1]), message)
