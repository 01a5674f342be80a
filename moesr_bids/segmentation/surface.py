"""The surface of the brain in the intensities of an image, from the network's classes.

The network's grid is coarse, and its surface about a millimetre off. The intensities around it know better. Tissue is
classified by expectation maximisation with the network's classes as prior (`moesr_bids.preproc.tissues`), bridges to
other tissue are cut, and sulci are filled.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_opening

from ..preproc.tissues import TissueModel, complete_priors
from .components import largest_component

_WHITE, _GREY = 0, 1
_SHADING_MM = 20.0  # full width of the smoothing of the bias field, as two standard deviations
_TURNS = 2
_LARGEST_SHADING = 1.0  # natural logarithm, of a voxel


@attrs.frozen
class SurfaceSettings:
    """Settings of the search for the surface; lengths are in mm.

    Attributes
    ----------
    prior_blur : float
        Standard deviation by which the network's tissues are blurred: as much as they may be wrong.
    outward, inward : float
        Largest distance by which the surface may move out of and into the network's brain.
    opening : float
        Radius of bridges that are cut (dura, optic nerves, veins).
    closing : float
        Radius of sulci that are filled.
    final_blur : float
        Standard deviation of the smoothing of the surface.
    margin : float
        Distance by which the mask reaches beyond the tissue, into the thin layer of CSF at the surface.

    """

    prior_blur: float = 3.0
    outward: float = 5.0
    inward: float = 8.0
    opening: float = 3.0
    closing: float = 6.0
    final_blur: float = 1.6
    margin: float = 1.5


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
    sigma = _SHADING_MM / 2 / zoom
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
    settings: SurfaceSettings | None = None,
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
    settings : SurfaceSettings, optional

    Returns
    -------
    ndarray of float32
        Soft mask from 0 to 1, with the surface at 0.5; below 0.5 outside of `allowed`.

    """
    settings = settings or SurfaceSettings()
    prior = tissues.sum(axis=0) >= 0.5
    outside, inside = _distance(~prior, zoom), _distance(prior, zoom)
    outer, core = outside <= settings.outward, inside > settings.inward
    band = (outside <= settings.outward + 6) & allowed
    priors = np.stack([ndimage.gaussian_filter(tissue, settings.prior_blur / zoom)[band] for tissue in tissues])
    values = data[band].astype(np.float64)
    complete = complete_priors(priors)
    classes = TissueModel.fit(values, complete).posterior(values, complete)
    posterior = np.zeros(data.shape, dtype=np.float32)
    posterior[band] = classes[_WHITE] + classes[_GREY]
    tissue = (posterior > 0.5) & outer & allowed
    opened = isotropic_opening(tissue | core, settings.opening, spacing=zoom)
    connected = largest_component(opened | core)
    # The opening also took voxels off the surface of the kept part: they come back, the bridges do not.
    kept = (_distance(~connected, zoom) <= zoom * 1.01) & (tissue | core)
    pad = int(np.ceil(settings.closing / zoom)) + 1
    closed = isotropic_closing(np.pad(kept | connected, pad), settings.closing, spacing=zoom)
    filled = ndimage.binary_fill_holes(closed[pad:-pad, pad:-pad, pad:-pad]) & outer & allowed
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), settings.final_blur / zoom) >= 0.5
    # Clipped signed distance to the surface: it can be interpolated to other grids without steps.
    signed = np.where(smooth, _distance(smooth, zoom) - zoom / 2, zoom / 2 - _distance(~smooth, zoom)) + settings.margin
    soft = ndimage.gaussian_filter(np.clip(0.5 + signed / (4 * zoom), 0, 1), 0.7)
    return np.asarray(np.where(allowed, soft, np.minimum(soft, 0.49)), dtype=np.float32)


def without_rim(mask: NDArray[np.bool_], signal: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove the empty background of a skull-stripped image from the rim of its mask; holes and sulci stay filled."""
    padded = np.pad(signal, 4)
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=3))
    return np.asarray(mask & filled[4:-4, 4:-4, 4:-4])


def _distance(mask: NDArray[np.bool_], zoom: float) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(mask)) * zoom
