"""Masks on another grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from nipype.interfaces.base import BaseInterfaceInputSpec, File
from nipype.interfaces.base.support import Bunch

from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec


class _ResampleMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="binary mask")
    reference_file = File(exists=True, mandatory=True, desc="image on the grid wanted")


class _ResampleMaskOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="mask on the grid of the reference, uint8")


class ResampleMask(RecordedInterface):
    """Resample a mask linearly and cut it at one half; nearest neighbours would move its surface more."""

    input_spec = _ResampleMaskInputSpec
    output_spec = _ResampleMaskOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        source = nib.load(self.inputs.in_file)
        reference = nib.load(self.inputs.reference_file)
        mask = nib.Nifti1Image(np.asanyarray(source.dataobj, dtype=np.float32), source.affine)
        # Beyond the outermost voxel centres the edge value counts: a mask that touches the border must not shrink.
        resampled = resample_from_to(mask, (reference.shape, reference.affine), order=1, mode="nearest")
        header = reference.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        out_file = Path(runtime.cwd) / "mask.nii.gz"
        data = (np.asanyarray(resampled.dataobj) > 0.5).astype(np.uint8)
        nib.Nifti1Image(data, reference.affine, header).to_filename(out_file)
        self._results["out_file"] = str(out_file)
        return {"VoxelsInMask": int(data.sum())}
