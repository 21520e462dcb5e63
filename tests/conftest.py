"""Settings that must be made before numpy is imported, and what all tests do without."""

from __future__ import annotations

import os
import tempfile

import pytest

# The matrices in tests are tiny: more threads only wait for each other on busy machines.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# For fixtures that serve several tests; never the user's own.
_SHARED = tempfile.TemporaryDirectory(prefix="onnxprune-cache-")
os.environ["XDG_CACHE_HOME"] = _SHARED.name


@pytest.fixture(autouse=True)
def cache_home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> os.PathLike[str]:
    """Start every test without anything remembered."""
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of tests must not depend on how long anything takes; see ``test_speed.py``."""
    monkeypatch.setattr("onnxprune.search.strategies.check_speed", lambda _, __: None)
