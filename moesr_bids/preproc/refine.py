"""The surface of the brain, from tissue classes in a band around the brain of the atlas.

The classes are found by expectation maximisation with spatial priors (Ashburner & Friston 1997,
doi:10.1006/nimg.1997.0290). A histogram describes everything but brain, since no Gaussian fits skull, fat, muscle and
air together. No contrast is assumed: the atlas says where a class is, and the image how bright it is there.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.foreground import largest_component
from moesr_bids.preproc.images import BoolArray, FloatArray

HISTOGRAM_BINS = 96
WHITE, GREY, CSF, OUTSIDE = range(4)


@attrs.frozen
class RefineSettings:
    """Settings of the refinement; lengths are in mm.

    Attributes
    ----------
    prior_blur : float
        Standard deviation by which the tissue maps of the atlas are blurred: as much as they may be wrong.
    outward, inward : float
        Largest distance by which the surface may move out of and into the brain of the atlas.
    opening : float
        Radius of bridges that are cut (dura, optic nerves, veins).
    closing : float
        Radius of sulci that are filled.
    final_blur : float
        Standard deviation of the smoothing of the surface.
    margin : float
        Distance by which the mask reaches beyond the tissue, into the thin layer of CSF at the surface.
    iterations : int
        Number of steps of expectation maximisation.

    """

    prior_blur: float = 3.0
    outward: float = 5.0
    inward: float = 8.0
    opening: float = 3.0
    closing: float = 6.0
    final_blur: float = 1.6
    margin: float = 1.5
    iterations: int = 6


def tissue_posteriors(
    data: FloatArray, tissues: FloatArray, inside: BoolArray, zoom: float, settings: RefineSettings
) -> FloatArray:
    """Return the probability of white matter, grey matter, CSF and outside at each voxel of `inside`.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Intensity, 0 to about 1.
    tissues : ndarray, shape (3, i, j, k)
        Atlas shares of white matter, grey matter and CSF.
    inside : ndarray of bool
        Voxels to classify.
    zoom : float
        Voxel size, mm.
    settings : RefineSettings

    Returns
    -------
    ndarray of float32, shape (4, number of voxels)

    """
    priors = np.stack([tissue[inside] for tissue in blurred(tissues, zoom, settings)])
    return classify(data[inside], priors, settings.iterations)


def blurred(tissues: FloatArray, zoom: float, settings: RefineSettings) -> FloatArray:
    """Return the shares of the atlas, shape (3, i, j, k), blurred by `prior_blur`."""
    sigma = settings.prior_blur / zoom
    return np.stack([ndimage.gaussian_filter(tissue, sigma) for tissue in tissues])


def classify(data: FloatArray, tissues: FloatArray, iterations: int) -> FloatArray:
    """Return the probability of white matter, grey matter, CSF and outside of some voxels.

    Parameters
    ----------
    data : ndarray, shape (voxels,)
        Intensity.
    tissues : ndarray, shape (3, voxels)
        Prior probability of white matter, grey matter and CSF; the rest up to 1 is that of anything else.
    iterations : int
        Number of steps of expectation maximisation.

    Returns
    -------
    ndarray of float32, shape (4, voxels)

    """
    values = data.astype(np.float64)
    priors = np.concatenate([tissues, np.maximum(1 - tissues.sum(axis=0, keepdims=True), 0)]) + 1e-3
    priors /= priors.sum(axis=0)
    top = max(float(np.percentile(values, 99.8)), 1e-6)
    bins = np.clip((values / top * HISTOGRAM_BINS).astype(int), 0, HISTOGRAM_BINS - 1)
    posterior = priors**2 / (priors**2).sum(axis=0)
    for _ in range(iterations):
        likelihood = np.empty_like(posterior)
        for tissue in (WHITE, GREY, CSF):
            likelihood[tissue] = _gaussian(values, posterior[tissue], top)
        counts = np.bincount(bins, weights=posterior[OUTSIDE], minlength=HISTOGRAM_BINS)
        density = ndimage.gaussian_filter1d(counts, 1.5) + 1e-6 * counts.sum()
        likelihood[OUTSIDE] = (density / density.sum() * HISTOGRAM_BINS / top)[bins]
        posterior = priors * likelihood + 1e-12
        posterior /= posterior.sum(axis=0)
    return posterior.astype(np.float32)


def _gaussian(values: NDArray[np.float64], weights: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    total = max(float(weights.sum()), 1e-6)
    mean = float((weights * values).sum()) / total
    variance = float((weights * (values - mean) ** 2).sum()) / total + (0.02 * top) ** 2
    density: NDArray[np.float64] = np.exp(-((values - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return density


def refine_surface(
    data: FloatArray,
    tissues: FloatArray,
    zoom: float,
    allowed: BoolArray,
    settings: RefineSettings | None = None,
) -> FloatArray:
    """Move the atlas' brain surface to that of the image.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Bias-corrected intensity, 0 to about 1, isotropic voxels.
    tissues : ndarray, shape (3, i, j, k)
        White matter, grey matter and CSF of the atlas, warped onto the image.
    zoom : float
        Voxel size, mm.
    allowed : ndarray of bool
        Where brain can be (the foreground).
    settings : RefineSettings, optional

    Returns
    -------
    ndarray of float32
        Soft mask from 0 to 1, with the surface at 0.5; below 0.5 outside of `allowed`.

    """
    settings = settings or RefineSettings()
    prior = tissues.sum(axis=0) >= 0.5
    outer = _distance(~prior, zoom) <= settings.outward
    core = _distance(prior, zoom) > settings.inward
    band = (_distance(~prior, zoom) <= settings.outward + 6) & allowed
    posterior = np.zeros(data.shape, dtype=np.float32)
    classes = tissue_posteriors(data, tissues, band, zoom, settings)
    posterior[band] = classes[WHITE] + classes[GREY]
    tissue = (posterior > 0.5) & outer & allowed
    opened = _open(tissue | core, settings.opening, zoom)
    connected = largest_component(opened | core)
    # The opening also took voxels off the surface of the kept part: they come back, the bridges do not.
    kept = (_distance(~connected, zoom) <= zoom * 1.01) & (tissue | core)
    filled = ndimage.binary_fill_holes(_close(kept | connected, settings.closing, zoom)) & outer & allowed
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), settings.final_blur / zoom) >= 0.5
    # Clipped signed distance to the surface: it can be interpolated to other grids without steps.
    signed = np.where(smooth, _distance(smooth, zoom) - zoom / 2, zoom / 2 - _distance(~smooth, zoom)) + settings.margin
    soft = ndimage.gaussian_filter(np.clip(0.5 + signed / (4 * zoom), 0, 1), 0.7)
    return np.asarray(np.where(allowed, soft, np.minimum(soft, 0.49)), dtype=np.float32)


def _distance(mask: BoolArray, zoom: float) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(mask)) * zoom


def _open(mask: BoolArray, radius: float, zoom: float) -> BoolArray:
    eroded = _distance(mask, zoom) > radius
    return np.asarray(_distance(~eroded, zoom) <= radius)


def _close(mask: BoolArray, radius: float, zoom: float) -> BoolArray:
    pad = int(np.ceil(radius / zoom)) + 1
    padded = np.pad(mask, pad)
    dilated = _distance(~padded, zoom) <= radius
    closed = _distance(dilated, zoom) > radius
    return np.asarray(closed[pad:-pad, pad:-pad, pad:-pad])
