"""Plain: results as values that JSON can hold, which is what every format can be made of."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol


class Plain(Protocol):
    """What can be turned into plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""


class Result(ABC):
    """What a verb found out; :mod:`onnxprune.report.formats` turns it into text."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the public JSON."""

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text, with a line end."""
        return to_json(self)


def plain(value: Any) -> Any:
    """Return a value made of what JSON knows; NaN and infinities become None.

    What has a ``to_dict`` becomes that, another dataclass a mapping of all its fields.
    """
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def to_json(result: Plain) -> str:
    """Return a result as JSON text, with a line end."""
    return json.dumps(plain(result.to_dict()), indent=2, allow_nan=False) + "\n"
