"""Formats: how a result becomes text. A format is one file here and one entry in FORMATS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxprune.report.plain import Plain, to_json

Format = Callable[[Plain], str]
"""Turns the result of any verb into the text of a file, line end included."""


def _to_text(result: Plain) -> str:
    from onnxprune.report.text import to_text  # rich takes a moment, and JSON does not need it

    return to_text(result)


FORMATS: dict[str, Format] = {"json": to_json, "text": _to_text}
"""By name, which is also the ending of a file that is written in it."""


def rendered(result: Plain, path: Path) -> str:
    """Return the text of a file with a result: in the format of its ending, else JSON.

    Args:
        result: what a verb returned.
        path: where it is to be written, of which only the ending counts.
    """
    return FORMATS.get(path.suffix.removeprefix("."), to_json)(result)
