"""Settings that must be made before numpy is imported, and what all tests do without."""

import os

import pytest

# The matrices in tests are tiny: more threads only wait for each other on busy machines.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of tests must not depend on how long anything takes; see ``test_speed.py``."""
    monkeypatch.setattr("onnxprune.search.check_speed", lambda _, __: None)
