"""What an image will cost: grids, memory and time, from its header alone."""

from __future__ import annotations

import math

import attrs
import nibabel as nib
import numpy as np

from moesr_bids.bids.collect import RawImage
from moesr_bids.config import Settings
from moesr_bids.sr.cost import estimate_cost
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.sampling import Sampling

# Declared when the header cannot be read: the step that checks it will fail and say why.
UNKNOWN_SHAPE = (256, 256, 256)
# More voxels along an axis than any head has at the finest resolution: a header with impossible voxel sizes.
MAX_TARGET_VOXELS = 2000
BYTES_PER_GB = 1024**3
# Measured on whole heads: mask, bias field and registration work on grids of 2 mm and coarser, plus whole-grid copies.
PREPROC_BASE_GB = 1.2
PREPROC_BYTES_PER_VOXEL = 60
PREPROC_SECONDS = 90.0


@attrs.frozen(kw_only=True)
class Estimate:
    """Estimated cost of an image.

    Attributes
    ----------
    input_shape, target_shape : tuple of int
        Voxels per axis.
    input_zooms : tuple of float
        Voxel sizes of the input in mm.
    sr_memory_gb, preproc_memory_gb : float
        Peak memory of the super-resolution process and of a preprocessing step, in GiB.
    seconds : float
        Wall time on an idle machine.
    readable : bool
        False when the header could not be read and the shapes are placeholders.

    """

    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    input_zooms: tuple[float, ...]
    sr_memory_gb: float
    preproc_memory_gb: float
    seconds: float
    readable: bool

    @property
    def memory_gb(self) -> float:
        """Largest memory of any step, in GiB."""
        return max(self.sr_memory_gb, self.preproc_memory_gb)


def estimate(image: RawImage, settings: Settings) -> Estimate:
    """Estimate grids, memory and time for an image."""
    try:
        header = nib.load(image.path)
        grid, readable = Grid(header.shape[:3], header.affine), True
        target = grid.isotropic(settings.resolution)
    except Exception:  # Whatever is wrong, the header check reports it with its reason.
        grid, readable = Grid(UNKNOWN_SHAPE, np.eye(4)), False
        target = grid.isotropic(settings.resolution)
    if max(target.shape) > MAX_TARGET_VOXELS:
        grid, readable = Grid(UNKNOWN_SHAPE, np.eye(4)), False
        target = grid.isotropic(settings.resolution)
    sampling = Sampling(samples=settings.samples, estimate=settings.estimate)
    # What the nodes of a cluster have is not known here.
    limit = math.inf if settings.use_plugin else settings.mem_gb
    memory_gb, seconds = estimate_cost(grid.shape, target.shape, settings.model, settings.omp_nthreads, sampling, limit)
    voxels = max(math.prod(grid.shape), math.prod(target.shape))
    return Estimate(
        input_shape=tuple(map(int, grid.shape)),
        target_shape=tuple(map(int, target.shape)),
        input_zooms=tuple(round(float(zoom), 3) for zoom in grid.zooms),
        sr_memory_gb=memory_gb,
        preproc_memory_gb=PREPROC_BASE_GB + PREPROC_BYTES_PER_VOXEL * voxels / BYTES_PER_GB,
        seconds=seconds + PREPROC_SECONDS,
        readable=readable,
    )
