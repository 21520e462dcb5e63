"""Settings: the table of all of them, and how keywords become a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypedDict

from onnxprune.plans.choices import Mode
from onnxprune.plans.constraints import Spec
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request, specs

SETTINGS: Mapping[str, Spec] = {**specs(Request), **specs(Reading)}
"""What is said of each setting, by name, in the order in which help shows them."""

ASKED = frozenset(f.name for f in fields(Request))
"""Those of them that a request holds; the others are about reading samples."""


class Settings(TypedDict, total=False):
    """The keywords of the verbs; :class:`Request` and :class:`Reading` say what they mean."""

    sparsity: float | None
    params: float | None
    macs: float | None
    latency: float | None
    size: int | None
    layers: int | None
    max_drop: float | None
    min_accuracy: float | None
    mode: Mode
    metric: str | None
    recover: str | None
    allocation: str
    align: int | None
    exclude: Sequence[str]
    allow_inexact: bool
    random_inputs: bool
    dims: Mapping[str, int] | None
    output: str | None
    provider: str
    latency_batch: int | None
    seed: int | None
    threads: int | None
    batch_size: int | None
    other: Mapping[str, float]
    lossless: bool
    empirical: bool
    eval_data: str | Path | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    cache: bool


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the metric and the recovery that the mode can do with or without samples."""
    result = dict(settings)
    if result.get("random_inputs") and result.get("mode") != "depth":
        usual = {"metric": "magnitude", "recover": "none"}
    else:
        usual = {"metric": "trial"} if result.get("mode") == "depth" else {}
    return usual | result


def taken(
    verb: str, settings: Mapping[str, Any], request: Request | None = None
) -> tuple[Request, Reading]:
    """Return the settings of a verb as values.

    Args:
        verb: that was called.
        settings: its keywords; None is the same as leaving one out.
        request: what they change; None for one of its own.

    Raises:
        TypeError: if the verb does not take one of them.
        OnnxpruneError: if a value is out of range, or settings exclude each other.
    """
    known = [name for name, spec in SETTINGS.items() if verb in spec.verbs]
    for name in settings:
        if name not in known:
            raise TypeError(f"{verb}() takes no setting '{name}'; it takes {', '.join(known)}")
    given = {name: value for name, value in settings.items() if value is not None}
    reading = Reading(**{name: value for name, value in given.items() if name not in ASKED})
    asked = {name: value for name, value in given.items() if name in ASKED}
    for name, plain in (("exclude", tuple), ("dims", dict), ("other", dict)):
        if name in asked:
            asked[name] = plain(asked[name])
    if request is None:
        return Request(**with_defaults(asked)), reading
    return replace(request, **asked), reading
