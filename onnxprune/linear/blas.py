"""Blas: how many threads the linear algebra under numpy and scipy uses."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any


def one_thread() -> AbstractContextManager[Any]:
    """Keep products and factors to one thread for a while.

    Small ones are faster that way, and threads of our own do not get in the way of its.
    """
    return _controller().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


@cache
def _controller() -> Any:
    import scipy.linalg.lapack  # noqa: F401  has a BLAS of its own, which must be there by now
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
