"""Plans as JSON: written for people to edit, and checked when they come back.

``plan.schema.json`` beside this module describes the form. A group lists the channels that
stay, which keeps coupled channels coupled whatever is edited; single weights are packed bits.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from onnxprune.arrays import Bool
from onnxprune.errors import OnnxpruneError, PlanError, shortened
from onnxprune.files import check_target, write_files
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Request
from onnxprune.structure.removals import Removal, apart
from onnxprune.structure.structure import Structure

FORMAT, VERSION = "onnxprune-plan", 1

MOST_UNITS = 1 << 24
"""Units of a group beyond which a plan is taken to be damaged."""

MOST_AXES, MOST_DIGITS, MOST_BYTES = 32, 18, 2**30
"""Of a tensor, of a whole number and of a file, beyond which a plan is taken to be damaged."""

_NEEDED = {"format", "version", "model_sha256", "request", "groups", "zeros"}
_KEYS = _NEEDED | {"removals"}

_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "str": (str,),
    "Mode": (str,),
    "int | None": (int, NoneType),
    "float | None": (float, int, NoneType),
    "tuple[str, ...]": (list,),
    "Mapping[str, int]": (dict,),
    "Mapping[str, float]": (dict,),
}
"""What JSON may hold for the type of a setting."""


def to_json(plan: PruningPlan) -> str:
    """Return a plan as JSON text, a group or a tensor to a line."""
    settings = plan.request.to_dict() if plan.request else {}
    request = {name: value for name, value in settings.items() if value is not None}
    groups = [
        {
            "name": name,
            "nodes": list(plan.nodes.get(name, ())),
            "units": len(keep),
            "keep": np.flatnonzero(keep).tolist(),
        }
        for name, keep in plan.keep.items()
    ]
    zeros = [
        f"{json.dumps(name)}: {json.dumps({'shape': list(mask.shape), 'keep': _packed(mask)})}"
        for name, mask in plan.masks.items()
    ]
    parts = {
        "format": json.dumps(FORMAT),
        "version": json.dumps(VERSION),
        "model_sha256": json.dumps(plan.model_sha256),
        "request": json.dumps(request, indent=4)[:-1].rstrip() + "\n  }",
        "removals": _block("[", [json.dumps(name) for name in plan.removals], "]"),
        "groups": _block("[", [json.dumps(g) for g in groups], "]"),
        "zeros": _block("{", zeros, "}"),
    }
    return "{\n" + ",\n".join(f'  "{k}": {v}' for k, v in parts.items()) + "\n}\n"


def save_plan(plan: PruningPlan, path: str | Path, *, force: bool = False) -> None:
    """Write a plan as JSON, completely or not at all.

    Args:
        plan: what :func:`onnxprune.plan` returned.
        path: where to write.
        force: replace an existing file.

    Raises:
        OutputError: if it cannot be written.
    """
    check_target(Path(path), (), force=force)
    write_files({Path(path): [to_json(plan).encode()]})


def load_plan(path: str | Path) -> PruningPlan:
    """Read a plan, edited or not; whether it fits a model is checked when it is applied.

    Raises:
        PlanError: if it is not a plan; says where and what was expected.
    """
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise PlanError(f"{path}: is larger than any plan; is it one?")
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: cannot be read as a plan: {reason}") from None
    try:
        values = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_real,
        )
        return _plan(values)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PlanError(
            f"{path}: is not valid JSON: {error}; expected a plan made by 'onnxprune plan'"
        ) from None
    except OnnxpruneError as error:
        raise PlanError(f"{path}: {error}") from None


def check_model(plan: PruningPlan, sha256: str) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        PlanError: with both hashes.
    """
    if plan.model_sha256 != sha256:
        raise PlanError(
            f"the plan was made for another model: it expects sha256 {plan.model_sha256[:64]}, "
            f"got {sha256}; make a plan for this one"
        )


def check_removals(plan: PruningPlan, known: Sequence[Removal]) -> None:
    """Refuse a plan without parts that the model does not have, or that depend on each other.

    Raises:
        PlanError: naming the part.
    """
    parts = {r.name: r for r in known}
    for k, name in enumerate(plan.removals):
        if name not in parts:
            raise PlanError(
                f"removals '{name}': the model has no such part; it has {_some(list(parts))}"
            )
        for other in plan.removals[:k]:
            if not apart(parts[name], parts[other]):
                raise PlanError(f"removals '{name}' and '{other}' cannot both leave; keep one")


def check_structure(plan: PruningPlan, structure: Structure) -> None:
    """Refuse a plan that does not fit a model, or would leave nothing of a layer.

    Raises:
        PlanError: naming the group or tensor.
    """
    groups = {g.name: g for g in structure.groups}
    for name, keep in plan.keep.items():
        if name not in groups:
            raise PlanError(
                f"group '{name}': the model has no such group with these settings; it has "
                f"{_some(list(groups))}"
            )
        if len(keep) != len(groups[name].units):
            raise PlanError(
                f"group '{name}': units is {len(keep)}, the model has {len(groups[name].units)}; "
                "leave units as it was"
            )
    shapes = {w.tensor: w.shape for w in structure.weights if w.tensor not in structure.excluded}
    for name, mask in plan.masks.items():
        if name not in shapes:
            raise PlanError(
                f"zeros '{name}': is no weight that may be zeroed; expected one of "
                f"{_some(list(shapes))}"
            )
        if mask.shape != tuple(shapes[name]):
            raise PlanError(
                f"zeros '{name}': shape is {list(mask.shape)}, the model's tensor has "
                f"{list(shapes[name])}; leave shape as it was"
            )
    kept = plan.kept_labels(structure)
    for weight in structure.weights:
        for axis, labels in weight.axes.items():
            if len(labels) and not kept[labels].any():
                raise PlanError(
                    f"tensor '{weight.tensor}': nothing would be left of axis {axis} once all "
                    "groups are applied; keep more of the groups that meet there"
                )
    if not all(kept[labels].any() for labels in structure.axes if len(labels)):
        raise PlanError("nothing would be left of an axis; keep more of each group")


def _plan(values: Any) -> PruningPlan:
    top = _mapping(values, "the file")
    if top.get("format") != FORMAT:
        raise PlanError(f"format is {_short(top.get('format'))}, expected '{FORMAT}'")
    version = top.get("version")
    if version != VERSION or isinstance(version, bool):
        raise PlanError(f"version is {_short(version)}, this program reads {VERSION}")
    _known(top, _KEYS, _NEEDED, "the file")
    if not isinstance(top["model_sha256"], str):
        raise PlanError(f"model_sha256 is {_short(top['model_sha256'])}, expected a string")
    if not isinstance(top["groups"], list):
        raise PlanError(f"groups is {_short(top['groups'])}, expected a list")
    keep: dict[str, Bool] = {}
    nodes: dict[str, tuple[str, ...]] = {}
    for k, value in enumerate(top["groups"]):
        where = f"groups[{k}]"
        group = _mapping(value, where)
        _known(group, {"name", "nodes", "units", "keep"}, {"name", "units", "keep"}, where)
        name = group["name"]
        if not isinstance(name, str) or name in keep:
            raise PlanError(f"{where}: name is {_short(name)}, expected a string of its own")
        keep[name] = _kept(group, f"group '{name}'")
        nodes[name] = _strings(group.get("nodes", []), f"group '{name}': nodes")
    zeros = _mapping(top["zeros"], "zeros")
    masks = {name: _unpacked(value, f"zeros '{name}'") for name, value in zeros.items()}
    return PruningPlan(
        top["model_sha256"],
        keep,
        masks,
        _strings(top.get("removals", []), "removals"),
        _request(top["request"]),
        nodes,
    )


def _kept(group: Mapping[str, Any], where: str) -> Bool:
    units, keep = group["units"], group["keep"]
    if not _whole(units) or not 1 <= units <= MOST_UNITS:
        raise PlanError(f"{where}: units is {_short(units)}, expected a number of at least 1")
    if not isinstance(keep, list):
        raise PlanError(f"{where}: keep is {_short(keep)}, expected a list of indices")
    result = np.zeros(units, dtype=np.bool_)
    for index in keep:
        if not _whole(index) or not 0 <= index < units:
            raise PlanError(
                f"{where}: keep holds {_short(index)}, expected whole numbers from 0 to {units - 1}"
            )
        if result[index]:
            raise PlanError(f"{where}: keep holds {index} twice; name each index once")
        result[index] = True
    if not result.any():
        raise PlanError(
            f"{where}: keep is empty, which would empty a layer; keep at least one of {units}"
        )
    return result


def _packed(mask: Bool) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _unpacked(value: Any, where: str) -> Bool:
    entry = _mapping(value, where)
    _known(entry, {"shape", "keep"}, {"shape", "keep"}, where)
    shape, keep = entry["shape"], entry["keep"]
    if not isinstance(shape, list) or not all(_whole(n) and n >= 0 for n in shape):
        raise PlanError(f"{where}: shape is {_short(shape)}, expected a list of sizes")
    try:
        bits = base64.b64decode(keep, validate=True) if isinstance(keep, str) else None
    except (binascii.Error, ValueError):
        bits = None
    if bits is None:
        raise PlanError(f"{where}: keep is {_short(keep)}, expected bits in base64")
    if len(shape) > MOST_AXES:
        raise PlanError(f"{where}: shape has {len(shape)} axes, expected {MOST_AXES} at most")
    size = math.prod(shape)
    if len(bits) != -(-size // 8):
        raise PlanError(
            f"{where}: keep has {len(bits)} bytes, expected {-(-size // 8)} for shape "
            f"{_short(shape)}"
        )
    mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=size).astype(np.bool_)
    if not mask.any():
        raise PlanError(f"{where}: keeps nothing, which would empty a layer; keep some weights")
    return mask.reshape(shape)


def _request(value: Any) -> Request:
    given = dict(_mapping(value, "request"))
    kinds = {f.name: _KINDS[str(f.type)] for f in fields(Request)}
    _known(given, set(kinds), set(), "request")
    if given.get("align") == "auto":
        given["align"] = None
    for name, setting in given.items():
        if not isinstance(setting, kinds[name]) or (
            isinstance(setting, bool) and bool not in kinds[name]
        ):
            raise PlanError(
                f"request: {name} is {_short(setting)}, expected "
                f"{' or '.join('null' if t is NoneType else t.__name__ for t in kinds[name])}"
            )
    sizes = given.get("dims", {})
    if not all(_whole(size) for size in sizes.values()):
        raise PlanError(f"request: dims is {_short(sizes)}, expected whole numbers by name")
    others = given.get("other", {})
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in others.values()):
        raise PlanError(f"request: other is {_short(others)}, expected numbers by name")
    if "exclude" in given:
        given["exclude"] = _strings(given["exclude"], "request: exclude")
    return Request(**given)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where} is {_short(value)}, expected an object")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise PlanError(f"{where} is {_short(value)}, expected a list of strings")
    return tuple(value)


def _known(entry: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    unknown, missing = sorted(set(entry) - known), sorted(needed - set(entry))
    if unknown or missing:
        what = f"unknown key '{unknown[0]}'" if unknown else f"key '{missing[0]}' is missing"
        raise PlanError(f"{where}: {what}; expected {', '.join(sorted(known))}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise PlanError(f"key '{name}' occurs twice in one object; name it once")
        result[name] = value
    return result


def _integer(text: str) -> int:
    """Read a whole number, of any that a machine counts with."""
    if len(text) > MOST_DIGITS:
        raise PlanError(f"{shortened(text, 30)} is too large a number ({len(text)} digits)")
    return int(text)


def _real(text: str) -> float:
    """Read a number; JSON has no infinities, nor what is none."""
    value = float(text)
    if not math.isfinite(value):
        raise PlanError(f"{shortened(text, 30)} is not a finite number")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _block(begin: str, lines: list[str], end: str) -> str:
    if not lines:
        return begin + end
    return begin + "\n    " + ",\n    ".join(lines) + f"\n  {end}"


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:most])
    return f"{shown or 'none'}{', ...' if len(names) > most else ''}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
