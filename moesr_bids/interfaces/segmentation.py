"""Segmentation of the super-resolved image, and the volumes of its structures, as a Nipype interface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File
from nipype.interfaces.base.support import Bunch

from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec
from moesr_bids.interfaces.processes import in_own_process
from moesr_bids.preproc.images import like, voxel_ml
from moesr_bids.resources import measured


class _SegmentInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="super-resolved image")
    mask_file = File(exists=True, mandatory=True, desc="its brain mask")
    scan_file = File(exists=True, mandatory=True, desc="bias-corrected scan")
    scan_mask_file = File(exists=True, mandatory=True, desc="its brain mask")


class _SegmentOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="labels on the grid of the image, uint8")


class Segment(RecordedInterface):
    """Label the structures of a super-resolved brain, and measure their volumes.

    The standard deviation of a volume is that of two measurements, on the scan and on the super-resolved image.
    """

    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        inputs = self.inputs
        labels, after, before, peak_memory_gb = in_own_process(
            _segment,
            inputs.in_file,
            inputs.mask_file,
            inputs.scan_file,
            inputs.scan_mask_file,
            what="the segmentation of the output",
        )
        out_file = Path(runtime.cwd) / "dseg.nii.gz"
        like(labels, nib.load(inputs.in_file), np.uint8).to_filename(out_file)
        self._results["out_file"] = str(out_file)
        volumes = {
            name: {
                "VolumeML": round(volume, 2),
                "InputVolumeML": round(before[name], 2),
                "StandardDeviationML": round(abs(volume - before[name]) / math.sqrt(2), 2),
            }
            for name, volume in after.items()
        }
        return {"Volumes": volumes, "PeakMemoryGB": peak_memory_gb}


def _segment(path: str, mask: str, scan: str, scan_mask: str) -> tuple[Any, dict[str, float], dict[str, float], float]:
    """Return labels and volumes (mL) of an image, volumes of its scan, and the peak memory (GiB); one thread."""
    import torch

    torch.set_num_threads(1)
    with measured() as used:
        labels, after = _labels(path, mask)
        _, before = _labels(scan, scan_mask)
    return labels, after, before, used.peak_memory_gb


def _labels(path: str, mask: str) -> tuple[Any, dict[str, float]]:
    from moesr_bids.segmentation.inference import label
    from moesr_bids.segmentation.labels import volumes_ml
    from moesr_bids.segmentation.weights import packaged_segmenter

    image = nib.load(path)
    inside = np.asanyarray(nib.load(mask).dataobj) > 0
    labels = label(image, packaged_segmenter()[0], inside)
    return labels, dict(volumes_ml(labels, voxel_ml(image.affine)))
