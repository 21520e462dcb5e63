"""One small function per operator, saying which of its output's channels are related, and how.

It looks at what :class:`~onnxprune.clean.facts.Facts` knows of the inputs and puts what
follows for the outputs. To add an operator: one function here, and a case in
``tests/test_relations.py``, which compares everything that is said with what the model computes.
"""

from onnxprune.clean.transfers import elementwise, layers, maps
from onnxprune.clean.transfers.registry import TRANSFERS
from onnxprune.linear.matrix_form import by_channel, is_padded, matrix_form
from onnxprune.structure.structure import PRODUCTS

__all__ = [
    "PRODUCTS",
    "TRANSFERS",
    "by_channel",
    "elementwise",
    "is_padded",
    "layers",
    "maps",
    "matrix_form",
]
