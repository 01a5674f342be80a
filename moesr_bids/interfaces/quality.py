"""Image quality metrics of input and output as a Nipype interface."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, traits
from nipype.interfaces.base.support import Bunch
from scipy import ndimage

from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make
from moesr_bids.intensities import without_outliers
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec


class _ImageQualityInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image, own grid")
    mask_file = File(exists=True, mandatory=True, desc="brain mask, own grid")
    bias_file = File(exists=True, mandatory=True, desc="natural logarithm of the bias field, own grid")
    head_file = File(exists=True, mandatory=True, desc="all that is not background, own grid")
    prior_file = File(exists=True, mandatory=True, desc="probability of white matter, grey matter and CSF, 4-D")
    sr_file = File(exists=True, mandatory=True, desc="super-resolved image, target grid")
    sr_mask_file = File(exists=True, mandatory=True, desc="brain mask, target grid")
    sr_record = traits.Dict(mandatory=True, desc="record of super-resolution: the noise of the input")


class _ImageQualityOutputSpec(RecordedOutputSpec):
    tissue_file = File(exists=True, desc="1 white matter, 2 grey matter, 3 CSF of the super-resolved image, uint8")


class ImageQuality(RecordedInterface):
    """Measure input and output by MRIQC's metrics and their spectra, and classify the tissue of the output."""

    input_spec = _ImageQualityInputSpec
    output_spec = _ImageQualityOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.images import resample_to
        from moesr_bids.preproc.quality import image_quality, inu, regions
        from moesr_bids.preproc.tissues import tissue_labels, tissue_probabilities

        prior = nib.load(self.inputs.prior_file)
        data, affine = _intensities(self.inputs.in_file)
        mask = _canonical(self.inputs.mask_file)[0] > 0
        around = regions(data, affine, mask, _canonical(self.inputs.head_file)[0] > 0)
        before = image_quality(data, mask, tissue_probabilities(data, affine, mask, prior), around)
        before |= inu(_canonical(self.inputs.bias_file)[0], mask)
        data, fine_affine = _intensities(self.inputs.sr_file)
        mask = _canonical(self.inputs.sr_mask_file)[0] > 0
        probabilities = tissue_probabilities(data, fine_affine, mask, prior)
        # Air, head and frame are those of the input, since the output has no exact zeros.
        around = resample_to(around.astype(np.float32), affine, data.shape, fine_affine, order=0).astype(np.uint8)
        after = image_quality(data, mask, probabilities, around)
        finest = self._effective_resolution()
        out_file = Path(runtime.cwd) / "tissues.nii.gz"
        nib.Nifti1Image(tissue_labels(probabilities, mask), fine_affine).to_filename(out_file)
        self._results["tissue_file"] = str(out_file)
        return {"Definitions": "MRIQC 24.0", "Input": before, "Output": after, "EffectiveResolutionMM": finest}

    def _effective_resolution(self) -> dict[str, list[float | None]]:
        """Return the finest detail above the noise of the input, along right, anterior and superior, in mm.

        ``Input`` and ``Output`` have three values each; None if no detail is above the noise.
        """
        from moesr_bids.sr.metrics import effective_resolution

        noise = make(SRRecord, self.inputs.sr_record).noise_std
        density = noise**2 * nib.affines.voxel_sizes(_canonical(self.inputs.in_file)[1])
        found = {}
        # The spectrum of the input contains its noise too; that of the output has next to none.
        for side, file, mask_file, share in (
            ("Input", self.inputs.in_file, self.inputs.mask_file, 2.0),
            ("Output", self.inputs.sr_file, self.inputs.sr_mask_file, 1.0),
        ):
            data, affine = _intensities(file)
            zooms = nib.affines.voxel_sizes(affine)
            brain = ndimage.find_objects((_canonical(mask_file)[0] > 0).astype(np.uint8))
            sizes = effective_resolution(data[brain[0]] if brain else data, list(zooms), list(share * density))
            found[side] = [round(size, 3) if math.isfinite(size) else None for size in sizes]
        return found


def _canonical(path: str) -> tuple[Any, Any]:
    """Read an image with its axes nearest to right, anterior, superior, as MRIQC does."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asanyarray(image.dataobj, dtype=np.float32), image.affine


def _intensities(path: str) -> tuple[Any, Any]:
    """Read a scan or an output in the same way, without outliers."""
    data, affine = _canonical(path)
    return without_outliers(data), affine
