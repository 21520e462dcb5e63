"""Every exception that onnxprune raises on purpose.

::

    OnnxpruneError          one line for the user, exit code 1
    ├─ ModelError           the model cannot be read, run or pruned
    │  └─ RunError          it was loaded, but does not run on these inputs
    ├─ CalibrationError     the samples or labels cannot be used
    ├─ PlanError            a plan is damaged, or does not fit the model
    ├─ BudgetError          what was asked for cannot be reached; says what can
    ├─ OutputError          the result cannot be written
    └─ QualityError         a quality gate is not met, exit code 3
    InternalError           a broken promise of ours: please report it

Messages say what, where (node and tensor), got and expected, and what to do.
"""

from __future__ import annotations

LONGEST = 300
"""Characters of a word in a message; files may hold names of any length."""


def shortened(text: object, most: int = LONGEST) -> str:
    """Return a text that may be of any length, for a message."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."


class OnnxpruneError(Exception):
    """A problem that the user can act on; its message is a single line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(map(shortened, message.split())))


class RequestError(OnnxpruneError):
    """Settings exclude each other, or do not say what to do; the message names them."""


class ModelError(OnnxpruneError):
    """The model cannot be read, run or pruned."""


class RunError(ModelError):
    """The model does not run on the inputs that it was given."""


class CalibrationError(OnnxpruneError):
    """The calibration or evaluation samples cannot be used."""


class PlanError(OnnxpruneError):
    """A plan is damaged, or does not fit the model; the message names the place."""


class BudgetError(OnnxpruneError):
    """The requested sparsity cannot be reached; the message names the best achievable."""


class OutputError(OnnxpruneError):
    """The result cannot be written, or would overwrite something."""


class QualityError(OnnxpruneError):
    """The pruned model misses a quality gate that the user set."""

    exit_code = 3


class InternalError(Exception):
    """A postcondition of onnxprune does not hold; nothing was written."""

    exit_code = 1
