"""Terminal: the one way to stdout and stderr; see :mod:`onnxprune.printable` for names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from onnxprune.printable import console, printable

if TYPE_CHECKING:
    from collections.abc import Iterable


def say(text: str, *, err: bool = False) -> None:
    """Write one line, to stdout or stderr."""
    print(printable(text), file=sys.stderr if err else sys.stdout)


def warn(warnings: Iterable[str]) -> None:
    """Write warnings to stderr, a line each."""
    for text in warnings:
        say(f"onnxprune: warning: {text}", err=True)


def show_json(text: str) -> None:
    """Write JSON to stdout; it holds nothing but ASCII, of which it leaves one control bare."""
    print(text.rstrip("\n").replace("\x7f", "\\u007f"))


def show(result: Any) -> None:
    """Write a result as tables and lines to stdout.

    Args:
        result: one that :func:`onnxprune.report.text.shown` knows.
    """
    from onnxprune.report.text import shown

    console(sys.stdout).print(shown(result))


def accept_any_text() -> None:
    """Let the streams write an escape for what their encoding does not know."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
