"""What an image will cost: grids, memory and time, from its header alone."""

from __future__ import annotations

import math

import attrs
import nibabel as nib
import numpy as np

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.gradients import is_coefficients, plan_gradunwarp
from moesr_bids.config import Settings
from moesr_bids.sr.cost import estimate_cost
from moesr_bids.sr.grid import Grid

# Declared when the header cannot be read: the step that checks it will fail and say why.
UNKNOWN_SHAPE = (256, 256, 256)
# More voxels along an axis than any head has at the finest resolution: a header with impossible voxel sizes.
MAX_TARGET_VOXELS = 2000
BYTES_PER_GB = 1024**3
# Measured on whole heads: mask, bias field and registration work on grids of 2 mm and coarser, plus whole-grid copies.
PREPROC_BASE_GB = 1.2
PREPROC_BYTES_PER_VOXEL = 60
PREPROC_SECONDS = 90.0
FIELD_BYTES_PER_POINT = 250  # of a displacement field's lattice, beside what preprocessing takes
QUALITY_BASE_GB, QUALITY_BYTES_PER_VOXEL = 1.0, 42
PUBLISH_BASE_GB, PUBLISH_BYTES_PER_VOXEL = 0.5, 16


@attrs.frozen(kw_only=True)
class Estimate:
    """Estimated cost of an image.

    Attributes
    ----------
    input_shape, target_shape : tuple of int
        Voxels per axis.
    input_zooms : tuple of float
        Voxel sizes of the input in mm.
    field_points : int
        Lattice points of the displacement field that corrects gradient nonlinearity; 0 without such a file.
    sr_memory_gb : float
        Peak memory of the super-resolution process, in GiB.
    seconds : float
        Wall time on an idle machine.
    readable : bool
        False when the header could not be read and the shapes are placeholders.

    """

    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    input_zooms: tuple[float, ...]
    field_points: int
    sr_memory_gb: float
    seconds: float
    readable: bool

    @property
    def memory_gb(self) -> float:
        """Largest memory of any step, in GiB."""
        return max(self.sr_memory_gb, self.gradunwarp_memory_gb)

    @property
    def preproc_memory_gb(self) -> float:
        """Peak memory of a preprocessing step, in GiB."""
        return PREPROC_BASE_GB + self._largest_gb(PREPROC_BYTES_PER_VOXEL)

    @property
    def gradunwarp_memory_gb(self) -> float:
        """Peak memory of the correction of gradient nonlinearity, in GiB."""
        return self.preproc_memory_gb + FIELD_BYTES_PER_POINT * self.field_points / BYTES_PER_GB

    @property
    def quality_memory_gb(self) -> float:
        """Peak memory of the image quality metrics, in GiB."""
        return QUALITY_BASE_GB + self._largest_gb(QUALITY_BYTES_PER_VOXEL)

    @property
    def publish_memory_gb(self) -> float:
        """Peak memory of publication, in GiB; an output space is taken to be no larger than input or target."""
        return PUBLISH_BASE_GB + self._largest_gb(PUBLISH_BYTES_PER_VOXEL)

    def _largest_gb(self, bytes_per_voxel: float) -> float:
        return bytes_per_voxel * max(math.prod(self.input_shape), math.prod(self.target_shape)) / BYTES_PER_GB


def estimate(image: RawImage, settings: Settings) -> Estimate:
    """Estimate grids, memory and time for an image."""
    try:
        header = nib.load(image.path)
        grid, readable = Grid(header.shape[:3], header.affine), True
        target = grid.isotropic(settings.sr.resolution)
    except Exception:  # Whatever is wrong, the header check reports it with its reason.
        grid, readable = Grid(UNKNOWN_SHAPE, np.eye(4)), False
        target = grid.isotropic(settings.sr.resolution)
    if max(target.shape) > MAX_TARGET_VOXELS:
        grid, readable = Grid(UNKNOWN_SHAPE, np.eye(4)), False
        target = grid.isotropic(settings.sr.resolution)
    sampling = settings.sr.sampling
    # What the nodes of a cluster have is not known here.
    limit = math.inf if settings.use_plugin else settings.mem_gb
    memory_gb, seconds = estimate_cost(
        grid.shape, target.shape, settings.sr.model, settings.omp_nthreads, sampling, limit
    )
    return Estimate(
        input_shape=tuple(map(int, grid.shape)),
        target_shape=tuple(map(int, target.shape)),
        input_zooms=tuple(round(float(zoom), 3) for zoom in grid.zooms),
        field_points=_field_points(image, settings),
        sr_memory_gb=memory_gb,
        seconds=seconds + PREPROC_SECONDS,
        readable=readable,
    )


def _field_points(image: RawImage, settings: Settings) -> int:
    """Count the lattice points of the displacement field that an image is corrected with."""
    file = plan_gradunwarp(image, settings).file
    if file is None or is_coefficients(file):
        return 0
    try:
        return math.prod(nib.load(file).shape[:3])
    except Exception:  # Whatever is wrong, the step that reads it reports it.
        return 0
