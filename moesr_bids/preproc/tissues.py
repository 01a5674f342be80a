"""Tissue classes of an image on its own grid, from its intensities and the atlas deformed to it."""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.images import BoolArray, FloatArray
from moesr_bids.preproc.refine import RefineSettings, blurred, classify

TISSUES = ("wm", "gm", "csf")
"""Order of the classes."""
WHITE, GREY, CSF = range(1, 4)
"""Their values in a map of labels."""


def tissue_probabilities(
    data: FloatArray, affine: NDArray[np.float64], mask: BoolArray, atlas: Nifti1Image
) -> FloatArray:
    """Return the probability of white matter, grey matter and CSF in each voxel of a mask.

    Found by expectation maximisation on the image's own intensities, with the atlas as prior (see
    `moesr_bids.preproc.refine`).

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Intensity without bias field.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    mask : ndarray of bool, shape (i, j, k)
        Brain.
    atlas : Nifti1Image
        Shares of white matter, grey matter and CSF deformed to the image, shape (i, j, k, 3), on any grid.

    Returns
    -------
    ndarray of float32, shape (3, voxels in the mask)
        In the order of `TISSUES`. Vessels and other tissue are in none of them, so they sum to at most 1.

    """
    settings = RefineSettings()
    shares = np.moveaxis(np.asanyarray(atlas.dataobj, dtype=np.float32), -1, 0)
    shares = blurred(shares, float(voxel_sizes(atlas.affine).mean()), settings)
    to_atlas = np.linalg.inv(atlas.affine) @ affine
    where = to_atlas[:3, :3] @ np.stack(np.nonzero(mask)) + to_atlas[:3, 3:]
    priors = np.stack([ndimage.map_coordinates(share, where, order=1, mode="nearest") for share in shares])
    return classify(data[mask], priors, settings.iterations)[:3]


def tissue_labels(probabilities: FloatArray, mask: BoolArray) -> NDArray[np.uint8]:
    """Return the most probable class of each voxel: 1 white matter, 2 grey matter, 3 CSF, 0 none or other."""
    labels = np.zeros(mask.shape, dtype=np.uint8)
    likely = np.argmax(probabilities, axis=0) + 1
    labels[mask] = np.where(probabilities.sum(axis=0) >= 0.5, likely, 0)
    return labels
