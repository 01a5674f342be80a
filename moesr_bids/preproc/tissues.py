"""Tissue classes of an image on its own grid, from its intensities and the segmentation as prior.

The classes are found by expectation maximisation with spatial priors (Ashburner & Friston 1997,
doi:10.1006/nimg.1997.0290). A histogram describes everything that is no tissue of the brain. No contrast is assumed:
the segmentation says where a class is, and the image how bright it is there.
"""

from __future__ import annotations

import attrs
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.images import BoolArray, FloatArray

TISSUES = ("wm", "gm", "csf")
"""Order of the classes."""
WHITE, GREY, CSF = range(1, 4)
"""Their values in a map of labels."""
_OUTSIDE = 3
_HISTOGRAM_BINS = 96
_PRIOR_BLUR_MM = 1.0  # standard deviation: as much as the surfaces of the segmentation may be wrong
_ITERATIONS = 6
_SAMPLE = 400_000  # voxels that a model is fitted to
_VESSELS = 0.1  # share of a brain mask that is none of the tissues
TRUST = 0.35
"""Power of the priors beside the intensities: the network is surer than it is right (chosen on one training head)."""
_LEAST_STD = 0.02  # of the brightest intensity


@attrs.frozen(eq=False)
class TissueModel:
    """How bright white matter, grey matter and CSF are in an image, and everything else.

    Attributes
    ----------
    means, variances : ndarray, shape (3,)
        Of the tissues, in the order of `TISSUES`.
    density : ndarray
        Histogram of everything else between 0 and `top`, integral 1.
    top : float
        Nearly the brightest intensity.

    """

    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    density: NDArray[np.float64]
    top: float

    @classmethod
    def fit(cls, values: NDArray[np.floating], priors: NDArray[np.floating]) -> TissueModel:
        """Fit by expectation maximisation.

        Parameters
        ----------
        values : ndarray, shape (voxels,)
            Intensities.
        priors : ndarray, shape (4, voxels)
            Prior probability of each tissue and of anything else, see `complete_priors`.

        """
        known, complete = (np.asarray(part, dtype=np.float64) for part in (values, priors))
        top = max(float(np.percentile(known, 99.8)), 1e-6)
        model = cls._of(known, complete**2 / (complete**2).sum(axis=0), top)
        for _ in range(_ITERATIONS - 1):
            model = cls._of(known, np.asarray(model.posterior(known, complete), dtype=np.float64), top)
        return model

    @classmethod
    def _of(cls, values: NDArray[np.float64], posterior: NDArray[np.float64], top: float) -> TissueModel:
        totals = np.maximum(posterior[:3].sum(axis=1), 1e-6)
        means = posterior[:3] @ values / totals
        variances = posterior[:3] @ values**2 / totals - means**2 + (_LEAST_STD * top) ** 2
        counts = np.bincount(_bins(values, top), weights=posterior[_OUTSIDE], minlength=_HISTOGRAM_BINS)
        density = ndimage.gaussian_filter1d(counts, 1.5) + 1e-6 * max(float(counts.sum()), 1e-6)
        return cls(means, variances, density / density.sum() * _HISTOGRAM_BINS / top, top)

    def likelihood(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the likelihood of each tissue and of anything else, (4, ...), of intensities of any shape."""
        found = np.empty((4, *values.shape), dtype=np.result_type(values, np.float32))
        for tissue, (mean, variance) in enumerate(zip(self.means, self.variances, strict=True)):
            found[tissue] = np.exp((values - mean) ** 2 * (-0.5 / variance)) / np.sqrt(2 * np.pi * variance)
        found[_OUTSIDE] = self.density[_bins(values, self.top)]
        return found

    def posterior(self, values: NDArray[np.floating], priors: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the probability of each tissue and of anything else, (4, voxels), from complete priors."""
        found = priors * self.likelihood(values) + 1e-12
        return found / found.sum(axis=0)


def complete_priors(priors: NDArray[np.floating], outside: float = 0.0) -> NDArray[np.floating]:
    """Return priors with that of anything else, (4, voxels), none of them 0; ``outside`` is added to it."""
    rest = np.maximum(1 - priors.sum(axis=0, keepdims=True), 0)
    complete = np.concatenate([(1 - outside) * priors, (1 - outside) * rest + outside]) + 1e-3
    return complete / complete.sum(axis=0)


def _bins(values: NDArray[np.floating], top: float) -> NDArray[np.integer]:
    return np.clip(values * (_HISTOGRAM_BINS / top), 0, _HISTOGRAM_BINS - 1).astype(np.int16)


class TissuePrior:
    """Prior probability of white matter, grey matter and CSF at any place.

    Parameters
    ----------
    shares : ndarray, shape (i, j, k, 3)
        By the segmentation.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.

    """

    def __init__(self, shares: FloatArray, affine: NDArray[np.float64]) -> None:
        sigma = _PRIOR_BLUR_MM / voxel_sizes(affine).mean()
        self._shares = [ndimage.gaussian_filter(share, sigma) for share in np.moveaxis(shares, -1, 0)]
        self._to_voxels = np.linalg.inv(affine)

    def at(self, places: NDArray[np.integer], affine: NDArray[np.float64]) -> FloatArray:
        """Return the priors, (3, places), at voxels of a grid, (3, places)."""
        to_prior = self._to_voxels @ affine
        where = to_prior[:3, :3] @ places + to_prior[:3, 3:]
        return np.stack([ndimage.map_coordinates(share, where, order=1, mode="nearest") for share in self._shares])


def fit_tissues(data: FloatArray, affine: NDArray[np.float64], mask: BoolArray, prior: TissuePrior) -> TissueModel:
    """Fit the intensities of the tissues in the mask of an image; of a large one to a regular part of its voxels."""
    places = np.stack(np.nonzero(mask))
    places = places[:, :: max(1, places.shape[1] // _SAMPLE)]
    return TissueModel.fit(data[tuple(places)], complete_priors(prior.at(places, affine), _VESSELS))


def tissue_probabilities(
    data: FloatArray, affine: NDArray[np.float64], mask: BoolArray, prior: Nifti1Image
) -> FloatArray:
    """Return the probability of white matter, grey matter and CSF in each voxel of a mask.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Intensity without bias field.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    mask : ndarray of bool, shape (i, j, k)
        Brain.
    prior : Nifti1Image
        Shares of white matter, grey matter and CSF by the segmentation, shape (i, j, k, 3), on any grid.

    Returns
    -------
    ndarray of float32, shape (3, voxels in the mask)
        In the order of `TISSUES`. Vessels and other tissue are in none of them, so they sum to at most 1.

    """
    found = TissuePrior(np.asanyarray(prior.dataobj, dtype=np.float32), prior.affine)
    model = fit_tissues(data, affine, mask, found)
    priors = complete_priors(found.at(np.stack(np.nonzero(mask)), affine)) ** TRUST
    return np.asarray(model.posterior(data[mask], priors)[:3], dtype=np.float32)


def tissue_labels(probabilities: FloatArray, mask: BoolArray) -> NDArray[np.uint8]:
    """Return the most probable class of each voxel: 1 white matter, 2 grey matter, 3 CSF, 0 none or other."""
    labels = np.zeros(mask.shape, dtype=np.uint8)
    likely = np.argmax(probabilities, axis=0) + 1
    labels[mask] = np.where(probabilities.sum(axis=0) >= 0.5, likely, 0)
    return labels
