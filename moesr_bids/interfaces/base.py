"""The base of all interfaces of the package: each records what it did, its time and its memory."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.base import SimpleInterface, TraitedSpec, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.resources import measured, one_blas_thread


class RecordedOutputSpec(TraitedSpec):
    """Outputs of every recorded interface."""

    record = traits.Dict(desc="facts about the run: JSON-serialisable, with Seconds and PeakMemoryGB")


class RecordedInterface(SimpleInterface):
    """An interface whose output ``record`` states what it did.

    Subclasses implement `_run_recorded`, set ``self._results`` and return the facts as a dictionary.
    """

    output_spec = RecordedOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        raise NotImplementedError

    def _run_interface(self, runtime: Bunch) -> Bunch:
        with measured() as used, one_blas_thread():
            facts = self._run_recorded(runtime)
        # A step that ran another process gives the peak of that process itself.
        peak = max(used.peak_memory_gb, facts.get("PeakMemoryGB", 0.0))
        self._results["record"] = {**facts, "Seconds": used.seconds, "PeakMemoryGB": peak}
        return runtime
