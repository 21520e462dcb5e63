"""A sweep gives one model for each budget, from one calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune.cli import commands as cli
from onnxprune.errors import OnnxpruneError
from onnxprune.measure import calibrate
from onnxprune.run import activations

ROOT = Path(__file__).parents[2]
LENET = ROOT / "models" / "digits_lenet300.onnx"
CALIB = ROOT / "calibration" / "digits"


def test_a_sweep_calibrates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args, **settings):
        calls.append(1)
        return calibrate.calibrate(*args, **settings)

    monkeypatch.setattr(activations, "calibrate", counted)
    curve = onnxprune.sweep(LENET, CALIB, [0.3, 0.6], recover="bias", cache=False)
    assert len(calls) == 1
    assert [p.requested for p in curve.points] == [1.0, 0.6, 0.3]
    for point in curve.points[1:]:
        assert 0.95 * point.requested < point.macs <= point.requested
        assert point.accuracy is not None
    assert curve.points[0].macs == curve.points[0].params == 1.0


def test_a_ratio_out_of_reach_ends_the_sweep_with_a_warning() -> None:
    curve = onnxprune.sweep(LENET, CALIB, [0.5, 1e-5], recover="none", metric="magnitude")
    assert [p.requested for p in curve.points] == [1.0, 0.5]
    assert any("macs 1e-05 cannot be reached" in w for w in curve.warnings)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5])
def test_ratios_are_fractions(ratio: float) -> None:
    with pytest.raises(OnnxpruneError, match="between 0 and 1"):
        onnxprune.sweep(LENET, CALIB, [ratio])


def test_the_command_writes_and_prints(tmp_path: Path) -> None:
    out = tmp_path / "curve.json"
    arguments = ["sweep", LENET, "--calib", CALIB, "--macs", "0.5", "-o", out]
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    curve = json.loads(out.read_text())
    assert [p["requested"] for p in curve["points"]] == [1.0, 0.5]
    again = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert again.exit_code == 1
    assert "exists already" in again.output


def test_a_plot_needs_matplotlib_or_is_drawn(tmp_path: Path) -> None:
    curve = onnxprune.sweep(LENET, CALIB, [0.5], recover="none", metric="magnitude")
    target = tmp_path / "curve.svg"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(OnnxpruneError, match=r"onnxprune\[plot\]"):
            curve.plot(target)
    else:
        curve.plot(target)
        assert target.read_text().lstrip().startswith("<?xml")
