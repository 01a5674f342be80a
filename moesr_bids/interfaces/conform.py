"""Header check as a Nipype interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids import __version__
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec


class _ConformInputSpec(BaseInterfaceInputSpec):
    # Without exists=True: a dangling link must reach the check that explains it.
    in_file = Str(mandatory=True, desc="raw image")
    version = Str(__version__, usedefault=True, desc="version of the package: with a new one all steps run again")
    metadata = traits.Dict(desc="merged sidecars of the raw image")
    warnings = traits.List(Str, desc="warnings about the sidecars")


class _ConformOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="float32 image on the grid of the input")
    metadata_file = File(exists=True, desc="merged sidecars as one JSON file")


class Conform(RecordedInterface):
    """Check the header and the data of a raw image; see `moesr_bids.preproc.header`."""

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.header import conform

        path = Path(self.inputs.in_file)
        conformed = conform(path)
        out_file = Path(runtime.cwd) / f"{path.name.split('.', 1)[0]}_conform.nii.gz"
        conformed.image.to_filename(out_file)
        metadata_file = Path(runtime.cwd) / "metadata.json"
        metadata_file.write_text(json.dumps(self.inputs.metadata or {}), encoding="utf-8")
        self._results.update(out_file=str(out_file), metadata_file=str(metadata_file))
        return {"Warnings": [*(self.inputs.warnings or []), *conformed.warnings]}
