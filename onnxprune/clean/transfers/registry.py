"""The table of transfer functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from onnxprune.clean.facts import Facts

Transfer = Callable[["Facts", gs.Node], None]
TRANSFERS: dict[str, Transfer] = {}


def transfer(*op_types: str) -> Callable[[Transfer], Transfer]:
    """Register a function for operators; refuses a second one."""

    def register(function: Transfer) -> Transfer:
        for op_type in op_types:
            if op_type in TRANSFERS:
                raise ValueError(f"two transfer functions for {op_type}")
            TRANSFERS[op_type] = function
        return function

    return register
