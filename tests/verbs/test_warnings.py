"""What a study warns of is heard from every verb, in Python and on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import DIGITS, digits, done

import onnxprune

LENET = Path(__file__).parents[2] / "models" / "digits_lenet300.onnx"
WRONG = 50.0
"""A mean that makes every image the same to the model: it is then right no more than by chance."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("few")
    digits(target, 12, DIGITS)
    return target


def python(verb: str, data: Path) -> tuple[str, ...]:
    settings: dict[str, Any] = {"mean": [WRONG], "std": [1.0]}
    if verb == "plan":
        return onnxprune.plan(LENET, data, macs=0.9, cache=False, **settings).warnings
    if verb == "sweep":
        return onnxprune.sweep(LENET, data, [0.9], cache=False, **settings).warnings
    return onnxprune.inspect(LENET, data, **settings).warnings


@pytest.mark.parametrize("verb", ["plan", "inspect", "sweep"])
def test_a_model_at_chance_level_is_said(verb: str, few: Path, tmp_path: Path) -> None:
    said = [w for w in python(verb, few) if "no better than chance" in w]
    assert len(said) == 1
    more: dict[str, list[object]] = {
        "plan": ["--macs", 0.9, "--no-cache", "-o", tmp_path / "p.json"],
        "sweep": ["--macs", 0.9, "--no-cache"],
    }
    given = [LENET, "--calib", few, "--mean", WRONG, "--std", 1, *more.get(verb, [])]
    result = done(verb, *given)
    assert result.stderr.splitlines().count(f"onnxprune: warning: {said[0]}") == 1
