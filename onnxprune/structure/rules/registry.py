"""The registry of rules: operator type -> function."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.structure.op import Op

Rule = Callable[[Op], None]
RULES: dict[str, Rule] = {}


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of the default domain."""

    def register(function: Rule) -> Rule:
        for op_type in types:
            if op_type in RULES:
                raise ValueError(f"two rules for {op_type}")
            RULES[op_type] = function
        return function

    return register
