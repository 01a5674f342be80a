"""The embedded template as a target for brain extraction: tissue maps and a head-like image around the brain.

The template has no skull. A layer of CSF, a skull and a scalp are drawn around its mask, at fixed distances from the
brain. Otherwise the outline of a whole head could be taken for the outline of the brain. Mutual information needs no
true intensities: it is enough that each tissue has one of its own.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import attrs
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.images import BoolArray, FloatArray, resample_isotropic
from moesr_bids.preproc.template import load_template
from moesr_bids.sr.grid import bounding_box

# Outer edges of the drawn layers, mm from the brain (typical adult: CSF and dura 3, bone 6, scalp 6 mm thick).
CSF_MM, SKULL_MM, SCALP_MM, RIM_MM = 3.0, 9.0, 15.0, 19.0
CSF_VALUE, SKULL_VALUE, SCALP_VALUE, BRAIN_OFFSET = 0.25, 0.0, 1.6, 0.25
# Margin of the grid around the template's brain.
MARGIN_MM = 24.0
# Typical distance from the brain to the surface of the scalp, and the depth at which depth maps reach 1, mm.
SCALP_SURFACE_MM = 13.0
DEPTH_MM = 30.0


@attrs.frozen(eq=False)
class Atlas:
    """The template on a coarse grid, with a margin around the brain; all arrays have the same shape (i, j, k).

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Voxel to MNI world, RAS mm.
    brain : ndarray of float32
        T1w brain, 0 outside the mask.
    head : ndarray of float32
        The brain inside drawn layers of CSF, skull and scalp.
    mask : ndarray of float32
        Share of each voxel that is brain, 0 to 1.
    tissues : ndarray of float32, shape (3, i, j, k)
        Share of white matter, grey matter and CSF; they sum to `mask`.
    brain_depth, head_depth : ndarray of float32
        Depth of a voxel under the surface of the brain and of the scalp, from 0 to 1 at `DEPTH_MM` and more.
    brain_region, head_region : ndarray of bool
        Region in which images are compared: for a brain, and for a whole head.

    """

    affine: NDArray[np.float64]
    brain: FloatArray
    head: FloatArray
    mask: FloatArray
    tissues: FloatArray
    brain_depth: FloatArray
    head_depth: FloatArray
    brain_region: BoolArray
    head_region: BoolArray


@lru_cache(maxsize=2)
def load_atlas(zoom: float = 3.0) -> Atlas:
    """Return the atlas with voxels of `zoom` mm. It is shared: do not change its arrays."""
    template = load_template()
    if template.mask is None:
        raise RuntimeError("the embedded template has no mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

        maps = [load_mni152_wm_template(resolution=1), load_mni152_gm_template(resolution=1)]
    whole = np.asarray(template.mask.dataobj) > 0
    # The time of an alignment grows with the grid, so the grid ends a little outside the scalp.
    box, pad = bounding_box(whole), int(np.ceil(MARGIN_MM))
    affine = template.image.affine.copy()
    affine[:3, 3] = apply_affine(affine, [part.start - pad for part in box])

    def coarse(values: NDArray[np.generic]) -> tuple[FloatArray, NDArray[np.float64]]:
        return resample_isotropic(np.pad(np.asarray(values[box], dtype=np.float32), pad), affine, zoom)

    mask, coarse_affine = coarse(whole)
    brain, _ = coarse(np.asarray(template.image.dataobj) * whole)
    white, grey = (np.clip(coarse(np.asarray(tissue.dataobj))[0], 0, 1) for tissue in maps)
    white, grey = np.minimum(white, mask), np.minimum(grey, mask)
    excess = np.maximum(white + grey, 1e-6) / np.maximum(mask, 1e-6)
    white, grey = white / np.maximum(excess, 1), grey / np.maximum(excess, 1)
    inside = mask >= 0.5
    distance = ndimage.distance_transform_edt(~inside) * zoom
    head = np.where(inside, BRAIN_OFFSET + brain, SKULL_VALUE).astype(np.float32)
    head[(distance > 0) & (distance <= CSF_MM)] = CSF_VALUE
    head[(distance > SKULL_MM) & (distance <= SCALP_MM)] = SCALP_VALUE
    calvarium = _calvarium(mask.shape, coarse_affine)
    return Atlas(
        affine=coarse_affine,
        brain=brain,
        head=head,
        mask=mask,
        tissues=np.stack([white, grey, np.maximum(mask - white - grey, 0)]),
        brain_depth=depth_map(inside, zoom),
        head_depth=depth_map((distance <= SCALP_SURFACE_MM) | ~calvarium, zoom),
        brain_region=distance <= 3 * zoom,
        head_region=(distance <= CSF_MM) | ((distance <= RIM_MM) & calvarium),
    )


def depth_map(region: BoolArray, zoom: float) -> FloatArray:
    """Return how deep each voxel lies under the surface of a region, from 0 outside to 1 at `DEPTH_MM`.

    A region that reaches the edge of the field of view counts as if it continued beyond.
    """
    pad = int(np.ceil(DEPTH_MM / zoom))
    depth = ndimage.distance_transform_edt(np.pad(region, pad, mode="edge"))[pad:-pad, pad:-pad, pad:-pad] * zoom
    return np.asarray(np.minimum(depth / DEPTH_MM, 1), dtype=np.float32)


def _calvarium(shape: tuple[int, ...], affine: NDArray[np.float64]) -> BoolArray:
    """Return the region of the skull's vault: above face, skull base and neck, where the drawn layers are wrong."""
    indices = np.indices(shape, dtype=np.float32).reshape(3, -1)
    _, y, z = affine[:3, :3] @ indices + affine[:3, 3:]
    above: BoolArray = z > np.where(y > 0, 5 + 0.2 * y, -25)
    return above.reshape(shape)
