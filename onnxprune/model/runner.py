"""Runner: with which threads and on which provider models are run, and who hears of progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxprune.log import Progress, silent
from onnxprune.model.session import PROVIDER, Session
from onnxprune.model.storage import Held


@dataclass(frozen=True)
class Runner:
    """Makes sessions. It goes down from the verbs as one value; nobody else names what it holds.

    Attributes:
        threads: intra-operator threads of onnxruntime; 0 lets it choose.
        provider: the execution provider that latency is measured on.
        progress: see :data:`~onnxprune.log.Progress`.
    """

    threads: int = 0
    provider: str = PROVIDER
    progress: Progress = silent

    def session(
        self, model: onnx.ModelProto, *, optimize: bool = True, held: Held | None = None
    ) -> Session:
        """Return a session on the CPU provider whose results do not depend on the moment.

        Args:
            model: the model to run.
            optimize: whether onnxruntime may rewrite the graph.
            held: initializers that the model only declares.

        Raises:
            ModelError: if onnxruntime cannot load the model.
        """
        return Session(model, threads=self.threads, optimize=optimize, held=held)

    def timed(
        self,
        model: onnx.ModelProto | Path,
        *,
        held: Held | None = None,
        profile: Path | None = None,
    ) -> Session:
        """Return a session to be timed: on the provider, with onnxruntime's own settings.

        Args:
            model: the model to run, or its file.
            held: initializers that the model only declares.
            profile: a folder for the profile of its nodes; None for no profile.

        Raises:
            ModelError: if onnxruntime cannot load the model or the provider.
        """
        return Session(
            model,
            threads=self.threads,
            held=held,
            provider=self.provider,
            timed=True,
            profile=profile,
        )


PLAIN = Runner()
"""A runner that leaves the threads to onnxruntime and tells nobody of progress."""
