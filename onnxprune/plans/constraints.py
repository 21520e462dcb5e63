"""Constraints: what a setting may be, and the field that says so beside its default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnxprune.errors import OnnxpruneError


class Constraint(Protocol):
    """Says which values a setting may have."""

    def check(self, name: str, value: Any) -> None:
        """Make sure that a value is allowed.

        Raises:
            OnnxpruneError: naming the setting, what was expected and what it got.
        """

    def schema(self) -> dict[str, Any]:
        """Return the keywords of JSON schema that say the same."""


@dataclass(frozen=True)
class Between:
    """A number from 0 to 1, with these or without.

    Attributes:
        closed: whether 0 and 1 are allowed.
    """

    closed: bool = False

    def check(self, name: str, value: float) -> None:
        """Make sure that a value is in the range."""
        if not (0.0 <= value <= 1.0 if self.closed else 0.0 < value < 1.0):
            what = " is a fraction and" if self.closed else ""
            raise OnnxpruneError(f"{name}{what} must lie between 0 and 1; got {value:g}")

    def schema(self) -> dict[str, Any]:
        """Return the range."""
        if self.closed:
            return {"minimum": 0, "maximum": 1}
        return {"exclusiveMinimum": 0, "exclusiveMaximum": 1}


@dataclass(frozen=True)
class AtLeast:
    """A whole number.

    Attributes:
        least: the smallest.
        most: the largest; None for any.
    """

    least: int
    most: int | None = None

    def check(self, name: str, value: int) -> None:
        """Make sure that a value is in the range."""
        if value < self.least:
            raise OnnxpruneError(f"{name} must be at least {self.least}; got {value}")
        if self.most is not None and value > self.most:
            raise OnnxpruneError(f"{name} must be at most {self.most}; got {value}")

    def schema(self) -> dict[str, Any]:
        """Return the range."""
        return {"minimum": self.least} | ({"maximum": self.most} if self.most else {})


@dataclass(frozen=True)
class OneOf:
    """A name.

    Attributes:
        names: returns those that there are, which may become more.
    """

    names: Callable[[], Iterable[str]]

    def check(self, name: str, value: str) -> None:
        """Make sure that there is such a name."""
        if value not in (known := list(self.names())):
            raise OnnxpruneError(f"{name} must be one of {', '.join(known)}; got '{value}'")

    def schema(self) -> dict[str, Any]:
        """Return the names."""
        return {"enum": list(self.names())}


@dataclass(frozen=True)
class EachAtLeast:
    """Whole numbers by name.

    Attributes:
        least: the smallest.
    """

    least: int

    def check(self, name: str, value: dict[str, int]) -> None:
        """Make sure that every value is large enough."""
        for key, size in value.items():
            if size < self.least:
                raise OnnxpruneError(f"{name}: '{key}' must be at least {self.least}; got {size}")

    def schema(self) -> dict[str, Any]:
        """Return what each value has to be."""
        return {"additionalProperties": {"type": "integer", "minimum": self.least}}


@dataclass(frozen=True)
class Spec:
    """All that is said of a setting besides its name, type and default.

    Attributes:
        help: a sentence for the command line and the documentation.
        verbs: those that take it.
        constraint: what its value may be; None for anything of its type.
        flag: its option, where that is not ``--`` and its name.
        metavar: what stands for its value in help.
        default: the default in words, where it depends on others.
    """

    help: str
    verbs: tuple[str, ...]
    constraint: Constraint | None = None
    flag: str = ""
    metavar: str | None = None
    default: str = ""


def setting(
    default: Any,
    text: str,
    constraint: Constraint | None = None,
    *,
    verbs: str = "prune plan",
    flag: str = "",
    metavar: str | None = None,
    shown: str = "",
) -> Any:
    """Return a field of a dataclass that is a setting.

    Args:
        default: its value if the user gives none; a type for a new empty one of it.
        text: see :attr:`Spec.help`.
        constraint: see :class:`Spec`.
        verbs: those that take it, with blanks between them.
        flag: see :class:`Spec`, like ``metavar``.
        metavar: see above.
        shown: see :attr:`Spec.default`.
    """
    spec = Spec(text, tuple(verbs.split()), constraint, flag, metavar, shown)
    made = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return field(**made, metadata={"spec": spec})
