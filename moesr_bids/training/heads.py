"""Deformed label maps of heads: anatomies for the contrast-agnostic segmentation.

This module loads and deforms them; :mod:`.head_images` paints them. A map is drawn at half the voxel size of the
network's grid, so that classes have partial volumes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

from ..errors import ImageError
from ..segmentation.labels import from_freesurfer
from ..segmentation.structures import BACKGROUND, BRAIN, CSF, EXTRACEREBRAL, MIRRORED, STRUCTURES
from ..sr.grid import bounding_box
from .synthesis import RIGHT_TO_LEFT
from .volumes import log_uniform

OVERSAMPLING = 2
_MARGIN = 8  # voxels around what is not background in a map
Range = tuple[float, float]


@frozen(eq=False)
class HeadMap:
    """A label map of a head or a brain, in the orientation RAS.

    Parameters
    ----------
    name
        File name without extension.
    labels
        Indices of the map's own labels, left and right as one; each gets an intensity of its own; uint8.
    classes
        Indices of :data:`moesr_bids.segmentation.structures.STRUCTURES`; uint8.
    centre
        Centre of the brain, voxels.
    zoom
        Voxel size, mm.
    image
        Real intensities on the map's grid, scaled to 1 at their 99th percentile, where there is a scan of the person.
    """

    name: str
    labels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    centre: NDArray[np.float64]
    zoom: float
    image: NDArray[np.float32] | None = None

    @property
    def has_head(self) -> bool:
        """Whether the map holds more than a brain."""
        return bool((self.classes == EXTRACEREBRAL).any())


def load_head_map(path: Path, scan: Path | None = None) -> HeadMap:
    """Load a map of FreeSurfer labels, and the scan on its grid if there is one.

    Raises
    ------
    ImageError
        If the map cannot be read, holds other labels or no brain, or has voxels that are not isotropic; if the scan has
        another shape.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        raw = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError) as error:
        raise ImageError(f"{path}: not a readable label map ({error})") from error
    zooms = voxel_sizes(image.affine)
    if raw.ndim != 3 or zooms.max() > 1.02 * zooms.min():
        raise ImageError(f"{path}: a label map with isotropic voxels is needed, not {raw.shape} of {zooms} mm")
    try:
        classes = from_freesurfer(raw, zooms)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error
    brain = np.isin(classes, BRAIN)
    if not brain.any():
        raise ImageError(f"{path}: holds no brain")
    signal = None if scan is None else _signal(scan, raw.shape)
    if signal is not None and not (classes == EXTRACEREBRAL).any():
        classes[_foreground(signal) & (classes == BACKGROUND)] = EXTRACEREBRAL
    box = bounding_box(classes != BACKGROUND, _MARGIN)
    classes = classes[box]
    centre = np.argwhere(brain[box])[::97].mean(axis=0)
    return HeadMap(
        name=path.name.split(".", 1)[0],
        labels=_paintable(raw[box], classes),
        classes=classes,
        centre=centre,
        zoom=float(zooms.mean()),
        image=None if signal is None else signal[box],
    )


def _signal(scan: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    data = np.asanyarray(nib.as_closest_canonical(nib.load(scan)).dataobj, dtype=np.float32)
    if data.shape != shape:
        raise ImageError(f"{scan}: has shape {data.shape}, its label map {shape}")
    return data / max(float(np.percentile(data[data > 0], 99)), 1e-6)


def _foreground(signal: NDArray[np.float32]) -> NDArray[np.bool_]:
    above = ndimage.binary_opening(signal > 0.1, iterations=2)
    found: NDArray[np.bool_] = ndimage.binary_fill_holes(ndimage.binary_closing(above, iterations=3))
    return found


def _paintable(raw: NDArray[np.integer], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return indices of the labels, with left and right as one, and labels for filled CSF and unknown tissue."""
    values = raw.astype(np.int64)
    merged = np.arange(values.max() + 1)
    for number in np.unique(values):
        seen = classes[values == number]
        mode = int(np.bincount(seen).argmax())
        # All parcels of the cortex have one contrast; so have the two sides of every other structure.
        if number >= 1000:
            merged[number] = 3
        elif STRUCTURES[mode].side == "right":
            merged[number] = _LEFT_OF.get(int(number), number)
    values = merged[values]
    filled = (values == 0) & (classes == CSF)
    values[filled] = 24
    unknown = (values == 0) & (classes == EXTRACEREBRAL)
    values[unknown] = 507
    present = np.unique(np.append(values, 0))
    return np.searchsorted(present, values).astype(np.uint8)


# Also lesions and parts of the basal forebrain.
_LEFT_OF: Mapping[int, int] = {**RIGHT_TO_LEFT, 57: 25, 163: 136, 164: 137}


class Head(NamedTuple):
    """A deformed map: ``labels`` and ``classes`` uint8, and ``image`` float32 or None, on the fine grid (n, n, n)."""

    labels: torch.Tensor
    classes: torch.Tensor
    image: torch.Tensor | None


@frozen
class RandomHead:
    """Ranges of the deformation.

    Parameters
    ----------
    size
        Range of the size of heads relative to their map.
    stretch
        Standard deviation of the natural logarithm of the size along each axis.
    tilt
        Standard deviation of the rotation about each axis, degrees.
    turned
        Probability of a further, large rotation.
    turn
        Largest angle of that rotation about each axis, degrees.
    displacement
        Range of the standard deviation of the smooth displacement, mm.
    shift
        Standard deviation of the shift of the brain from the centre of the field of view, mm.
    """

    size: Range = (0.78, 1.18)
    stretch: float = 0.05
    tilt: float = 8.0
    turned: float = 0.25
    turn: float = 50.0
    displacement: Range = (0.5, 4.0)
    shift: float = 14.0

    def draw(self, head: HeadMap, size: int, zoom: float, rng: np.random.Generator, device: torch.device) -> Head:
        """Draw a cube of ``size`` voxels of ``zoom`` mm per side around the brain, on the fine grid."""
        n, fine = size * OVERSAMPLING, zoom / OVERSAMPLING
        limit = self.turn * (rng.random() < self.turned)
        angles = rng.normal(scale=self.tilt, size=3) + rng.uniform(-limit, limit, size=3)
        scale = np.exp(rng.normal(scale=self.stretch, size=3)) * rng.uniform(*self.size)
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        # From millimetres of the field of view to voxels of the map.
        matrix = torch.from_numpy((turn.T / scale[:, None] / head.zoom).astype(np.float32)).to(device)
        line = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * fine
        shift = torch.from_numpy(rng.normal(scale=self.shift, size=3).astype(np.float32)).to(device)
        place = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).sub_(shift[:, None, None, None])
        knots = int(rng.integers(5, 12))
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
        bumps = torch.randn((1, 3, knots, knots, knots), generator=generator, device=device)
        bumps *= log_uniform(rng, *self.displacement)
        place += functional.interpolate(bumps, size=(n, n, n), mode="trilinear", align_corners=True)[0]
        centre = torch.from_numpy(head.centre.astype(np.float32)).to(device)
        place = torch.einsum("ab,bijk->aijk", matrix, place).add_(centre[:, None, None, None])
        drawn = self._pick(head, place, device)
        return drawn if rng.random() < 0.5 else _mirrored(drawn)

    def _pick(self, head: HeadMap, place: torch.Tensor, device: torch.device) -> Head:
        index = place.round().long()
        limits = torch.tensor(head.classes.shape, device=device)[:, None, None, None]
        outside = ((index < 0) | (index >= limits)).any(dim=0)
        index = torch.minimum(index.clamp_(min=0), limits - 1)
        flat = (index[0] * limits[1, 0, 0, 0] + index[1]) * limits[2, 0, 0, 0] + index[2]
        labels, classes = (
            torch.from_numpy(part).to(device).flatten()[flat].masked_fill_(outside, 0)
            for part in (head.labels, head.classes)
        )
        image = None
        if head.image is not None:
            unit = place.movedim(0, -1) / (limits[:, 0, 0, 0] - 1) * 2 - 1
            source = torch.from_numpy(head.image).to(device)[None, None]
            image = functional.grid_sample(source, unit.flip(-1)[None], align_corners=True)[0, 0]
        return Head(labels, classes, image)


def _mirrored(head: Head) -> Head:
    table = torch.tensor(MIRRORED, dtype=torch.uint8, device=head.classes.device)
    image = None if head.image is None else head.image.flip(0)
    return Head(head.labels.flip(0), table[head.classes.flip(0).long()], image)


def shares(classes: torch.Tensor) -> torch.Tensor:
    """Share of each class in the voxels of the network's grid, float32 (classes, n, n, n)."""
    n, m = classes.shape[0] // OVERSAMPLING, OVERSAMPLING
    parts = classes.view(n, m, n, m, n, m).permute(1, 3, 5, 0, 2, 4).reshape(m**3, n, n, n).long()
    found = torch.zeros((len(STRUCTURES), n, n, n), device=classes.device)
    share = found.new_full((), 1 / m**3).expand(1, n, n, n)
    for part in parts:
        found.scatter_add_(0, part[None], share)
    return found
