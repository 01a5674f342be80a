"""White matter and cortex of a scan that has no FreeSurfer segmentation, for the gate of the mixture of experts."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from ..preproc.bias import correct_bias
from ..preproc.images import like
from ..preproc.tissues import TISSUES, tissue_probabilities
from ..segmentation.brain import find_brain
from ..segmentation.inference import label
from ..segmentation.structures import STRUCTURES
from ..segmentation.weights import packaged_segmenter

# FreeSurfer numbers (FreeSurferColorLUT.txt).
_WHITE, _CORTEX, _VENTRICLE, _CSF = 2, 3, 4, 24
_DEEP = tuple(s.index for s in STRUCTURES if s.tissue in ("deep grey matter", "brainstem"))
_VENTRICLES = tuple(s.index for s in STRUCTURES if s.tissue.endswith(("ventricle", "ventricles")))
_SURE = 0.6
"""Least probability of a class; voxels below it get no label."""


def segment(image: nib.Nifti1Image, *, threads: int = 1) -> nib.Nifti1Image:
    """Label white matter (2), cortex (3), CSF of the sulci (24) and of the ventricles (4) of a structural image.

    The network says where structures are. The classes are those of
    :func:`moesr_bids.preproc.tissues.tissue_probabilities` on the image without its bias field. Voxels below a
    probability of 0.6 get no label. Deep grey matter and the brain stem get none either, except where they look like
    white matter.

    Parameters
    ----------
    image
        T1w, T2w or FLAIR, 3-D; whole head or skull-stripped.
    threads
        CPU threads of the bias field.

    Returns
    -------
    labels
        uint8 on the image's grid.

    Raises
    ------
    ImageError
        If no brain is found in the image.
    """
    brain = find_brain(image)
    corrected = correct_bias(image, brain.mask, threads=threads).corrected
    mask = np.asanyarray(brain.mask.dataobj) > 0
    data = np.asanyarray(corrected.dataobj, dtype=np.float32)
    probabilities = tissue_probabilities(data, image.affine, mask, brain.tissues)
    structures = label(corrected, packaged_segmenter()[0], mask)[mask]
    deep, ventricle = np.isin(structures, _DEEP), np.isin(structures, _VENTRICLES)
    white, grey, csf = (probabilities[TISSUES.index(tissue)] > _SURE for tissue in ("wm", "gm", "csf"))
    labels = np.zeros(mask.shape, dtype=np.uint8)
    labels[mask] = np.select(
        [white, grey & ~deep, csf & ventricle, csf], [_WHITE, _CORTEX, _VENTRICLE, _CSF], default=0
    )
    return like(labels, image, np.uint8)
