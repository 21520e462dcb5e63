"""Progress: bars on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxprune.printable import console

if TYPE_CHECKING:
    from onnxprune.log import Progress

PROGRESS_AFTER_S = 1.0


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr for stages that take longer than a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda _, __: lambda ___: None
        return
    import time

    from rich.progress import Progress as Bar

    with Bar(console=console(sys.stderr), transient=True) as bar:

        def start(stage: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(stage, total=total, visible=False)
            began = time.monotonic()

            def advance(done: int) -> None:
                bar.update(
                    task,
                    advance=done,
                    visible=time.monotonic() - began > PROGRESS_AFTER_S,
                )

            return advance

        yield start
