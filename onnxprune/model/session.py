"""The only module that talks to onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxprune.arrays import Array
from onnxprune.errors import ModelError, RunError
from onnxprune.model.storage import Held, is_heavy, split
from onnxprune.model.values import Value

Feeds = Mapping[str, Array]
"""Inputs of a model by name."""

PROVIDER = "CPUExecutionProvider"


_RAN = "_kernel_time"


@dataclass(frozen=True)
class NodeRun:
    """One run of one node of the optimised graph, as onnxruntime's profiler saw it.

    Attributes:
        name: what onnxruntime calls the node: after the original node or its output, as a rule.
        op_type: its operator, which may be a fused one.
        seconds: what it took.
    """

    name: str
    op_type: str
    seconds: float


class Session:
    """An onnxruntime session with a fixed number of threads.

    Args:
        model: the model to run, which may be larger than a protobuf message, or its file.
        threads: intra-operator threads; 0 lets onnxruntime choose.
        optimize: whether onnxruntime may rewrite the graph; off for single runs, where it
            costs more than it saves, and for comparing bits.
        held: initializers that the model only declares (see :func:`onnxprune.model.storage.split`).
        provider: the execution provider; the CPU takes what it does not know.
        timed: for measuring: runs like a session with default settings.
        profile: a folder for the profile that :meth:`node_runs` reads; None for no profile.

    Raises:
        ModelError: if onnxruntime cannot load the model or the provider.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        *,
        threads: int = 0,
        optimize: bool = True,
        held: Held | None = None,
        provider: str = PROVIDER,
        timed: bool = False,
        profile: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.use_deterministic_compute = not timed
        # Between runs the processors are numpy's, or those of the session whose turn it is.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "run")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        if not held and isinstance(model, onnx.ModelProto) and is_heavy(model):
            model, held = split(model)
        self._held = [_value(tensor) for tensor in (held or {}).values()]
        if held:
            options.add_external_initializers(list(held), self._held)
        try:
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model.SerializeToString(),
                options,
                providers=list(dict.fromkeys([provider, PROVIDER])),
            )
        except Exception as error:  # onnxruntime raises many types, none of them public
            raise ModelError(f"onnxruntime cannot load the model: {_said(error)}") from None
        if provider not in self._session.get_providers():
            raise ModelError(
                f"onnxruntime has provider '{provider}' but cannot start it: are its drivers and "
                "libraries installed?"
            )
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Value]:
        """Run the model once.

        Returns:
            The named outputs (default: all), in order: tensors as arrays, sequences as lists,
            maps as dicts.

        Raises:
            ModelError: if onnxruntime refuses the inputs or fails.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items())
            raise RunError(
                f"onnxruntime cannot run the model on {shapes}: {_said(error)}"
            ) from None
        return [v if v is None or isinstance(v, (list, dict)) else np.asarray(v) for v in values]

    def run_rows(
        self,
        feeds: Feeds,
        rows: int,
        fixed_batch: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> list[Value]:
        """Run the model on ``rows`` samples, padded to a fixed batch by repeating the last.

        Outputs whose axis 0 holds the samples are cut back to the real ones.
        """
        if fixed_batch is None or rows == fixed_batch:
            return self.run(feeds, outputs)
        missing = fixed_batch - rows
        padded = {
            name: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)])
            for name, v in feeds.items()
        }
        return [
            v[: len(v) // fixed_batch * rows] if _rows(v) and _rows(v) % fixed_batch == 0 else v
            for v in self.run(padded, outputs)
        ]

    def node_runs(self) -> list[NodeRun]:
        """End the profile; return what the nodes took, run after run."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        return [
            NodeRun(event["name"].removesuffix(_RAN), event["args"]["op_name"], event["dur"] / 1e6)
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith(_RAN)
        ]


def check_provider(name: str) -> None:
    """Make sure that this onnxruntime has an execution provider.

    Raises:
        ModelError: naming those that it has.
    """
    available = ort.get_available_providers()
    if name not in available:
        raise ModelError(
            f"provider '{name}' is not in this onnxruntime {ort.__version__}: expected one of "
            f"{', '.join(available)}; others come with other onnxruntime packages"
        )


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(ort.__version__)


def optimised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return what onnxruntime's CPU provider makes of a model on this machine.

    Raises:
        ModelError: if it cannot say, for want of a place for temporary files, say.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        target = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(proto.SerializeToString(), options, providers=[PROVIDER])
            return onnx.load(target)
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime cannot optimise the model: {_said(error)}") from None


def quantize_dynamic(proto: onnx.ModelProto, target: Path) -> None:
    """Write a model with int8 weights, whose activations are quantised as they come.

    Raises:
        ModelError: if onnxruntime cannot quantise the model.
    """
    from onnxruntime.quantization import quantize_dynamic as quantize

    # onnxruntime advises on the root logger, and makes a handler for it where there is none.
    root, silence = logging.getLogger(), logging.NullHandler()
    disabled = root.manager.disable
    root.addHandler(silence)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize(proto, str(target))
    except Exception as error:  # as above
        raise ModelError(f"onnxruntime cannot quantise the model: {_said(error)}") from None
    finally:
        logging.disable(disabled)
        root.removeHandler(silence)


def _value(tensor: onnx.TensorProto) -> ort.OrtValue:
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind in "biuf":
        return ort.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(f"u{array.dtype.itemsize}")  # numpy has no type of its own for bfloat16
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, tensor.data_type)


def _rows(value: Value) -> int:
    """Return the size of axis 0, or the length of a sequence; 0 for what has neither."""
    if isinstance(value, list):
        return len(value)
    return len(value) if isinstance(value, np.ndarray) and value.ndim else 0


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if re.search("Nhwc|nchwc|internal.nhwc", text):
        text += "; onnxruntime laid the file out for one machine: use the file it was made from"
    elif "NOT_IMPLEMENTED" in text:
        text += "; its CPU provider lacks that operator for these types: export in float32"
    return text


def samples_of(feeds: Feeds) -> int:
    """Return how many samples inputs (``[samples, ...]``) hold: the longest first axis, or 1."""
    return max((len(v) for v in feeds.values() if v.ndim), default=1)
