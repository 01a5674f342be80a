"""The joining command as a Nipype interface: it runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from nipype.interfaces.base import BaseInterfaceInputSpec, DynamicTraitedSpec, File, Str, isdefined, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.bids.joining import FIRST_APART
from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make, read_object, unstructured
from moesr_bids.errors import ImageError
from moesr_bids.interfaces.base import RecordedInterface
from moesr_bids.interfaces.sr import run_moesr
from moesr_bids.sr.options import SROptions


class _JoinScansInputSpec(BaseInterfaceInputSpec):
    preproc_files = traits.List(File(exists=True), mandatory=True, desc="bias-corrected scans, own grids")
    mask_files = traits.List(File(exists=True), mandatory=True, desc="their brain masks")
    metadata_files = traits.List(File(exists=True), mandatory=True, desc="their merged sidecars as JSON")
    sr_files = traits.List(File(exists=True), mandatory=True, desc="what the model made of each alone")
    sr_records = traits.List(traits.Dict, mandatory=True, desc="and recorded")
    uncertainty_files = traits.List(File(exists=True), desc="standard deviations, of models that know them")
    sources = traits.List(Str, mandatory=True, desc="paths of the scans below the raw data set")
    options = traits.Instance(SROptions, (), usedefault=True, desc="what a user may choose, threads and memory aside")
    uncertainty = traits.Bool(False, usedefault=True, desc="write the standard deviation of the error")
    omp_nthreads = traits.Int(1, usedefault=True, nohash=True, desc="threads")
    memory_gb = traits.Float(nohash=True, desc="memory in GiB that it shall fit into; by default what is free")


class _JoinScansOutputSpec(DynamicTraitedSpec):
    """A trait for each residual is added: a strict specification would lose it on the way from a worker."""

    record = traits.Dict(desc="facts about the run")
    out_file = File(exists=True, desc="joined image")
    seen_file = File(exists=True, desc="how many scans saw each voxel")
    uncertainty_file = File(desc="standard deviation of the error, of models that know it")
    residual_files = traits.List(File(exists=True), desc="scan minus A(output) in units of the noise, for each scan")


class JoinScans(RecordedInterface):
    """Run ``moesr join`` on scans that were super-resolved alone; ``residual_<n>`` is the residual of the n-th."""

    input_spec = _JoinScansInputSpec
    output_spec = _JoinScansOutputSpec

    def _outputs(self) -> Any:
        outputs = super()._outputs()
        for number in range(1, len(self.inputs.sources or ()) + 1):
            outputs.add_trait(f"residual_{number}", File(exists=True))
        return outputs

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        cwd, inputs = Path(runtime.cwd), self.inputs
        options = attrs.evolve(
            inputs.options,
            threads=inputs.omp_nthreads,
            memory_gb=inputs.memory_gb if isdefined(inputs.memory_gb) else None,
        )
        records = [cwd / f"alone-{number}.json" for number in range(1, len(inputs.sr_records) + 1)]
        for path, record in zip(records, inputs.sr_records, strict=True):
            path.write_text(json.dumps(record), encoding="utf-8")
        out_file, seen_file, record_file = cwd / "joined.nii.gz", cwd / "seen.nii.gz", cwd / "record.json"
        told = {
            "--masks": inputs.mask_files,
            "--metadata": inputs.metadata_files,
            "--estimates": inputs.sr_files,
            "--estimate-records": records,
            "--seen": [seen_file],
            "--residuals": [cwd],
            "--record": [record_file],
        }
        if inputs.uncertainty:
            told["--estimate-uncertainties"] = inputs.uncertainty_files
            told["--uncertainty"] = [cwd / "uncertainty.nii.gz"]
            self._results["uncertainty_file"] = str(cwd / "uncertainty.nii.gz")
        arguments = ["join", *inputs.preproc_files, str(out_file), *options.to_argv()]
        arguments += [str(part) for flag, files in told.items() for part in (flag, *files)]
        run_moesr(arguments, cwd, inputs.sources[0])
        if read_object(record_file)["Joined"]["Reference"] != 0:
            raise ImageError(f"{inputs.sources[0]}: {FIRST_APART}")
        residuals = [str(cwd / f"residual-{number}.nii.gz") for number in range(1, len(records) + 1)]
        self._results.update(out_file=str(out_file), seen_file=str(seen_file), residual_files=residuals)
        self._results |= {f"residual_{number}": path for number, path in enumerate(residuals, 1)}
        return unstructured(make(SRRecord, self._named(read_object(record_file))))

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """Name the scans as the data set does, not by files of the work folder."""
        joined = record["Joined"]
        names = dict(zip(self.inputs.preproc_files, self.inputs.sources, strict=True))
        scans = [{**scan, "Source": source} for scan, source in zip(joined["Scans"], self.inputs.sources, strict=True)]
        warnings = record["Warnings"]
        for path, source in names.items():
            warnings = [warning.replace(path, source) for warning in warnings]
        return {**record, "Warnings": warnings, "Joined": {**joined, "Scans": scans}}
