"""Equation: what an Einsum says, with a letter for every axis."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output.

    An ellipsis becomes letters that the equation does not have, aligned at its last axis. Where the
    output is not given, it has the ellipsis and the letters that occur once, in order.

    Args:
        equation: for example ``...ij,jk->...ik``.
        ranks: the number of axes of each operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [n - len(t.replace(".", "")) for t, n in zip(terms, ranks, strict=True)]
    spread = "".join(c for c in string.ascii_letters if c not in equation)[: max(hidden)]
    if not arrow:
        counted = Counter(c for c in left if c.isalpha())
        right = "..." * ("." in left) + "".join(sorted(c for c in counted if counted[c] == 1))
    named = [
        t.replace("...", spread[len(spread) - n :]) for t, n in zip(terms, hidden, strict=True)
    ]
    return named, right.replace("...", spread)
