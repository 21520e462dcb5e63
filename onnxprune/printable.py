"""Printable: names of other people as a terminal, or a text file, may show them.

Names of tensors, nodes, files and labels come from other people. Characters in them that steer a
terminal, or change how it shows what is around them, are written as escapes: a name can neither
colour nor move, hide nor forge a line.
"""

from __future__ import annotations

import unicodedata
from typing import IO, TYPE_CHECKING, Any, Literal

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


def console(file: IO[str], *, styled: bool = True) -> Console:
    """Return a console of rich's that shows names as they may be shown.

    Strings are cells and single lines; a ``Text`` and the title of a table may hold several.

    Args:
        file: where it writes: a terminal with its own width, else :data:`WIDTH` columns.
        styled: whether a terminal gets bold and italic letters; other files get none, unless
            the environment asks for them (``FORCE_COLOR``).
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

    colours: Literal["auto"] | None = "auto" if styled else None
    out = Plain(file=file, markup=False, highlight=False, color_system=colours)
    if not out.is_terminal:
        out.width = WIDTH
    return out


def told_apart(a: float, b: float, digits: int = 4) -> tuple[str, str]:
    """Return two numbers with so many decimals, or more where they would look the same."""
    while a != b and f"{a:.{digits}f}" == f"{b:.{digits}f}" and digits < MOST_DECIMALS:
        digits += 1
    return f"{a:.{digits}f}", f"{b:.{digits}f}"


MOST_DECIMALS = 17
"""Decimals that tell any two floats between 0.1 and 1 apart."""
