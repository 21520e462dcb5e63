"""Terminal: the one way to stdout and stderr.

Names of tensors, nodes, files and labels come from other people. Characters in them that steer a
terminal, or change how it shows what is around them, are written as escapes: a name can neither
colour nor move, hide nor forge a line.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (directions), halves of pairs, line and paragraph ends."""

WIDTH = 160
"""Columns where the output is not a terminal."""


def printable(text: str, keep: str = "") -> str:
    """Return text with escapes, such as that of ``ESC``, for all that steers a terminal.

    Args:
        text: any text.
        keep: characters that stay as they are.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in keep and unicodedata.category(c) in _STEERING
        else c
        for c in text
    )


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


def show(renderable: Any) -> None:
    """Write tables and lines to stdout."""
    out = console()
    if not out.is_terminal:
        out.width = WIDTH
    out.print(renderable)


def console(*, err: bool = False) -> Console:
    """Return a console of rich's that shows names as they may be shown.

    Strings are cells and single lines; a ``Text`` and the title of a table may hold several.
    """
    from rich.console import Console, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, *, style: Any = "", **how: Any) -> Text:
            keep = "\n" if style == "table.title" else ""
            return super().render_str(printable(text, keep), style=style, **how)

        def render(self, renderable: RenderableType, options: Any = None) -> Iterable[Segment]:
            if isinstance(renderable, Text):
                clean = printable(renderable.plain, "\n")
                if clean != renderable.plain:
                    renderable = Text(clean, renderable.style)
            return super().render(renderable, options)

    return Plain(file=sys.stderr if err else sys.stdout, markup=False, highlight=False)


def accept_any_text() -> None:
    """Let the streams write an escape for what their encoding does not know."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
