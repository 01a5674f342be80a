"""A brain of three tissues, and a head around it, from the template that nilearn packages."""

from __future__ import annotations

import warnings

import attrs
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from moesr_bids.preproc.images import resample_isotropic
from moesr_bids.preproc.template import load_template

_MARGIN = 24  # mm around the brain
# Outer edges of CSF and dura, skull and scalp, mm from the brain.
_CSF, _SKULL, _SCALP = 3.0, 9.0, 15.0


@attrs.frozen(eq=False)
class Tissues:
    """Brain mask, and shares of white matter, grey matter and CSF, (3, i, j, k), with the affine to MNI world."""

    mask: np.ndarray
    shares: np.ndarray
    affine: np.ndarray
    zoom: float

    def brain(self, intensities: tuple[float, float, float]) -> np.ndarray:
        """Return a brain with an intensity for each tissue, 0 around it."""
        return np.where(self.mask, np.tensordot(intensities, self.shares, 1), 0.0).astype(np.float32)

    def head(self, intensities: tuple[float, float, float], scalp: float, csf: float = 0.4) -> np.ndarray:
        """Return the brain inside CSF, a dark skull and a bright scalp."""
        distance = ndimage.distance_transform_edt(~self.mask) * self.zoom
        around = np.select([distance <= _CSF, distance <= _SKULL, distance <= _SCALP], [csf, 0.0, scalp], 0.0)
        return np.where(self.mask, self.brain(intensities), around).astype(np.float32)


def template_tissues(zoom: float) -> Tissues:
    """Return the tissues of the template with voxels of ``zoom`` mm, and a margin around the brain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

        maps = [load(resolution=1).get_fdata() for load in (load_mni152_wm_template, load_mni152_gm_template)]
    template = load_template()
    assert template.mask is not None
    mask = np.asarray(template.mask.dataobj) > 0
    white, grey = (np.clip(np.where(mask, part, 0), 0, 1) for part in maps)
    grey = np.minimum(grey, 1 - white)
    shares = [white, grey, np.where(mask, 1 - white - grey, 0)]
    affine = template.image.affine.copy()
    affine[:3, 3] = apply_affine(affine, [-_MARGIN] * 3)
    coarse = [resample_isotropic(np.pad(part, _MARGIN).astype(np.float32), affine, zoom) for part in (mask, *shares)]
    return Tissues(coarse[0][0] >= 0.5, np.stack([part for part, _ in coarse[1:]]), coarse[0][1], zoom)
