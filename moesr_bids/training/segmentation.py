"""White matter and cortex of a scan that has no FreeSurfer segmentation, for the gate of the mixture of experts."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..preproc.bias import correct_bias
from ..preproc.brainmask import extract_brain
from ..preproc.images import like
from ..preproc.tissues import TISSUES, tissue_probabilities

# FreeSurfer numbers (FreeSurferColorLUT.txt).
_WHITE, _CORTEX, _VENTRICLE, _CSF = 2, 3, 4, 24
# Ellipsoid around basal ganglia and thalamus, MNI mm: grey matter in it is not cortex.
_DEEP_CENTRE, _DEEP_RADII = (0.0, -8.0, 6.0), (34.0, 38.0, 22.0)
_SULCUS_MM = 15.0  # below the surface of the brain: deeper CSF is that of ventricles
_SURE = 0.6
"""Least probability of a class; voxels below it get no label."""


def segment(image: nib.Nifti1Image, *, work_dir: Path, threads: int = 1, seed: int = 1) -> nib.Nifti1Image:
    """Label white matter (2), cortex (3), CSF of the sulci (24) and of the ventricles (4) of a structural image.

    The classes are those of :func:`moesr_bids.preproc.tissues.tissue_probabilities` on the image without its bias
    field. Voxels below a probability of 0.6 get no label. Deep grey matter gets none either, except where it looks
    like white matter.

    Parameters
    ----------
    image
        T1w, T2w or FLAIR, 3-D; whole head or skull-stripped.
    work_dir
        Folder for temporary files.
    threads
        CPU threads of brain mask and bias field.
    seed
        Seed of the brain mask.

    Returns
    -------
    labels
        uint8 on the image's grid.

    Raises
    ------
    ImageError, BrainMaskError
        If no brain is found in the image.
    """
    brain = extract_brain(image, work_dir=work_dir, threads=threads, seed=seed)
    corrected = correct_bias(image, brain.mask, threads=threads).corrected
    mask = np.asanyarray(brain.mask.dataobj) > 0
    data = np.asanyarray(corrected.dataobj, dtype=np.float32)
    probabilities = tissue_probabilities(data, image.affine, mask, brain.tissues)
    deep = _in_deep_grey(mask, brain.to_template @ image.affine)
    zooms = nib.affines.voxel_sizes(image.affine)
    sulcal = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=zooms)[1:-1, 1:-1, 1:-1][mask] < _SULCUS_MM
    white, grey, csf = (probabilities[TISSUES.index(tissue)] > _SURE for tissue in ("wm", "gm", "csf"))
    labels = np.zeros(mask.shape, dtype=np.uint8)
    labels[mask] = np.select([white, grey & ~deep, csf & sulcal, csf], [_WHITE, _CORTEX, _CSF, _VENTRICLE], default=0)
    return like(labels, image, np.uint8)


def _in_deep_grey(mask: NDArray[np.bool_], to_template: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which voxels of a mask lie in the ellipsoid around the deep grey matter."""
    where = to_template[:3, :3] @ np.stack(np.nonzero(mask)) + to_template[:3, 3:]
    centre, radii = (np.array(values)[:, None] for values in (_DEEP_CENTRE, _DEEP_RADII))
    inside: NDArray[np.bool_] = (((where - centre) / radii) ** 2).sum(axis=0) < 1
    return inside
