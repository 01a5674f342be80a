"""Correction of gradient nonlinearity as a Nipype interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec


class _GradientUnwarpInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3-D image on the grid that it was acquired on")
    coefficients = File(exists=True, mandatory=True, desc="Siemens .grad file, or an ITK displacement field")
    patient_position = Str("HFS", usedefault=True, desc="DICOM Patient Position")
    action = traits.Enum("full", "through-plane", usedefault=True, desc="what to correct")
    slice_axis = traits.Range(low=0, high=2, value=2, usedefault=True, desc="voxel axis of the slices")
    intensity = traits.Bool(True, usedefault=True, desc="multiply by the determinant of the Jacobian")
    facts = traits.Dict(desc="further facts for the record: why the image is corrected")
    warnings = traits.List(Str, desc="warnings about the sidecar")
    omp_nthreads = traits.Range(low=1, value=1, usedefault=True, nohash=True, desc="ITK threads, set once per process")


class _GradientUnwarpOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="corrected image, float32, same grid")
    field_file = File(exists=True, desc="ITK displacement field that resamples the acquired image to the corrected one")
    inverse_file = File(exists=True, desc="ITK displacement field the other way")
    jacobian_file = File(exists=True, desc="determinant of the Jacobian, same grid")
    log_jacobian_file = File(exists=True, desc="its natural logarithm")


class GradientUnwarp(RecordedInterface):
    """Correct gradient nonlinearity; see `moesr_bids.preproc.gradients`."""

    input_spec = _GradientUnwarpInputSpec
    output_spec = _GradientUnwarpOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        import numpy as np

        from moesr_bids.bids.gradients import is_coefficients
        from moesr_bids.preproc.gradients import (
            INVERSE_TOLERANCE_MM,
            field_around,
            load_field,
            read_coefficients,
            slice_normal,
            unwarp,
        )
        from moesr_bids.preproc.images import like

        inputs, folder = self.inputs, Path(runtime.cwd)
        image, source = nib.load(inputs.in_file), Path(inputs.coefficients)
        if is_coefficients(source):
            field = field_around(image, read_coefficients(source), inputs.patient_position)
        else:
            field = load_field(source, inputs.patient_position)
        if inputs.action == "through-plane":
            field = field.along(slice_normal(image.affine, inputs.slice_axis))
        result = unwarp(image, field, folder, intensity=inputs.intensity, threads=inputs.omp_nthreads)
        inverse, left_mm = field.inverse(image)
        logarithm = like(np.log(np.asanyarray(result.jacobian.dataobj)), image, np.float32)
        for name, content in (
            ("out_file", result.image),
            ("field_file", field.to_image()),
            ("inverse_file", inverse.to_image()),
            ("jacobian_file", result.jacobian),
            ("log_jacobian_file", logarithm),
        ):
            path = folder / f"{name.removesuffix('_file')}.nii.gz"
            content.to_filename(path)
            self._results[name] = str(path)
        warnings = list(inputs.warnings or [])
        if result.folded_voxels:
            warnings.append(
                f"the gradient field folds in {result.folded_voxels} voxels of the field of view, outside of where the "
                "coefficients hold; what is shown there is not anatomy"
            )
        if left_mm >= INVERSE_TOLERANCE_MM:
            warnings.append(
                f"the displacement field of {source.name} has no inverse in the field of view ({left_mm:.2g} mm were "
                "left): the transform back to the acquired space is only approximate there"
            )
        return {
            **dict(inputs.facts or {}),
            "LargestDisplacementMM": result.largest_mm,
            "IntensityCorrected": bool(inputs.intensity),
            "Warnings": warnings,
        }
