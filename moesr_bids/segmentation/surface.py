"""The surface of the brain in the intensities of an image, from the network's classes.

The network's grid is coarse, and its surface about a millimetre off. The intensities around it know better. Tissue is
classified by expectation maximisation with the network's classes as prior (`moesr_bids.preproc.tissues`), bridges to
other tissue are cut, and sulci are filled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_opening

from ..preproc.tissues import TissueModel, complete_priors
from .components import largest_component

_WHITE, _GREY = 0, 1
# Lengths are in mm, those of a blur standard deviations.
_SHADING_BLUR = 10.0
_PRIOR_BLUR = 3.0  # as much as the network's tissues may be wrong
_OUTWARD, _INWARD = 5.0, 8.0  # largest move of the surface out of and into the network's brain
_OPENING = 3.0  # radius of bridges that are cut (dura, optic nerves, veins)
_CLOSING = 6.0  # radius of sulci that are filled
_SURFACE_BLUR = 1.6
_CSF_RIM = 1.5  # by which the mask reaches beyond the tissue
_TURNS = 2
_LARGEST_SHADING = 1.0  # natural logarithm, of a voxel


def without_shading(data: NDArray[np.float32], tissues: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """Divide an image by a rough estimate of its bias field.

    The field is what differs, on a scale of centimetres, between the image and the mean intensities of its tissues
    (Wells et al. 1996, doi:10.1109/42.511747). N4 makes the final correction later, inside the mask.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Intensities, none negative.
    tissues : ndarray, shape (3, i, j, k)
        Shares of white matter, grey matter and CSF.
    zoom : float
        Voxel size, mm.

    """
    inside = tissues.sum(axis=0)
    sigma = _SHADING_BLUR / zoom
    weight = np.maximum(ndimage.gaussian_filter(inside, sigma), 1e-3)
    least = max(1e-3 * float(data.max()), 1e-9)
    field = np.zeros_like(data)
    for _ in range(_TURNS):
        even = data / np.exp(field)
        means = [float((even * tissue).sum() / max(tissue.sum(), 1e-6)) for tissue in tissues]
        expected = np.tensordot(means, tissues, 1) / np.maximum(inside, 1e-3)
        excess = np.log(np.maximum(data, least)) - np.log(np.maximum(expected, least))
        excess = np.clip(excess, -_LARGEST_SHADING, _LARGEST_SHADING) * inside
        field = ndimage.gaussian_filter(excess.astype(np.float32), sigma) / weight
    return np.asarray(data / np.exp(field), dtype=np.float32)


def brain_surface(
    data: NDArray[np.float32],
    tissues: NDArray[np.float32],
    zoom: float,
    allowed: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Move the network's surface of the brain to that of the image.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Intensities without bias field, isotropic voxels.
    tissues : ndarray, shape (3, i, j, k)
        Shares of white matter, grey matter and CSF by the network.
    zoom : float
        Voxel size, mm.
    allowed : ndarray of bool
        Where brain can be.

    Returns
    -------
    ndarray of float32
        Soft mask from 0 to 1, with the surface at 0.5; below 0.5 outside of `allowed`.

    """
    prior = tissues.sum(axis=0) >= 0.5
    outside, inside = _distance(~prior, zoom), _distance(prior, zoom)
    outer, core = outside <= _OUTWARD, inside > _INWARD
    band = (outside <= _OUTWARD + 6) & allowed
    priors = np.stack([ndimage.gaussian_filter(tissue, _PRIOR_BLUR / zoom)[band] for tissue in tissues])
    values = data[band].astype(np.float64)
    complete = complete_priors(priors)
    classes = TissueModel.fit(values, complete).posterior(values, complete)
    posterior = np.zeros(data.shape, dtype=np.float32)
    posterior[band] = classes[_WHITE] + classes[_GREY]
    tissue = (posterior > 0.5) & outer & allowed
    opened = isotropic_opening(tissue | core, _OPENING, spacing=zoom)
    connected = largest_component(opened | core)
    # The opening also took voxels off the surface of the kept part: they come back, the bridges do not.
    kept = (_distance(~connected, zoom) <= zoom * 1.01) & (tissue | core)
    pad = int(np.ceil(_CLOSING / zoom)) + 1
    closed = isotropic_closing(np.pad(kept | connected, pad), _CLOSING, spacing=zoom)
    filled = ndimage.binary_fill_holes(closed[pad:-pad, pad:-pad, pad:-pad]) & outer & allowed
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), _SURFACE_BLUR / zoom) >= 0.5
    # Clipped signed distance to the surface: it can be interpolated to other grids without steps.
    signed = np.where(smooth, _distance(smooth, zoom) - zoom / 2, zoom / 2 - _distance(~smooth, zoom)) + _CSF_RIM
    soft = ndimage.gaussian_filter(np.clip(0.5 + signed / (4 * zoom), 0, 1), 0.7)
    return np.asarray(np.where(allowed, soft, np.minimum(soft, 0.49)), dtype=np.float32)


def without_rim(mask: NDArray[np.bool_], signal: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove the empty background of a skull-stripped image from the rim of its mask; holes and sulci stay filled."""
    padded = np.pad(signal, 4)
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=3))
    return np.asarray(mask & filled[4:-4, 4:-4, 4:-4])


def _distance(mask: NDArray[np.bool_], zoom: float) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(mask)) * zoom
