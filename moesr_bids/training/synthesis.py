"""Synthetic volumes from label maps, so that the network meets every contrast.

After SynthSeg and SynthSR (Billot et al. 2023; Iglesias et al. 2023). Every label gets a random intensity; in most
volumes white matter, grey matter, CSF and lesions have the order of T1w, T2w or FLAIR. The anatomy is drawn at twice
the target's resolution and averaged, which gives partial volume. Tissue has a texture with a power-law spectrum.
Lesions of random shape are put into white matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from ..errors import ImageError
from .lesions import RoughBall
from .tissue import CORTEX, WHITE
from .volumes import Turn, log_uniform, read_3d

# FreeSurfer numbers whose two sides have one contrast.
RIGHT_TO_LEFT = {
    **{41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 58: 26, 60: 28},
    **{62: 30, 63: 31},
}
_CEREBRAL_WHITE_MATTER = 2
# FreeSurfer numbers, both sides as one: cortex and deep grey matter; ventricles and the CSF around the brain.
_GREY = (3, 8, 10, 11, 12, 13, 17, 18, 26, 28)
_CSF = (4, 5, 14, 15, 24)
# Ranges of the mean intensity of white matter, grey matter, CSF and lesions, in units of the 99th percentile.
_CONTRASTS = {
    "T1w": ((0.8, 1.1), (0.45, 0.75), (0.05, 0.3), (0.3, 0.75)),
    "T2w": ((0.25, 0.45), (0.4, 0.65), (0.8, 1.1), (0.5, 1.0)),
    "FLAIR": ((0.45, 0.7), (0.55, 0.85), (0.05, 0.25), (0.8, 1.2)),
}
_BACKGROUND = 0
_LARGEST = 14_999  # FreeSurfer number
_LESION = 255
_OVERSAMPLING = 2
_SHARPER = 2  # label maps are refined by this factor first, so that their voxels do not show
_SPECTRAL_SLOPE = 1.2  # amplitude ~ 1 / f^slope, as white matter of the training scans has it
_LONGEST_WAVE = 40.0  # voxels: longer waves of the texture are no stronger


@frozen(eq=False)
class LabelMap:
    """A label map in which left and right have one label.

    Parameters
    ----------
    name
        File name without extension.
    data
        Index into ``values`` of each voxel, (i, j, k); 0 is background.
    values
        FreeSurfer number of each label.
    centres
        Voxels that patches are drawn around, (n, 3).
    """

    name: str
    data: NDArray[np.uint8]
    values: NDArray[np.int32]
    centres: NDArray[np.int16]

    def indices(self, numbers: Sequence[int]) -> list[int]:
        """Return the indices of FreeSurfer numbers, as far as the map holds them."""
        return np.flatnonzero(np.isin(self.values, numbers)).tolist()


def load_label_map(path: Path) -> LabelMap:
    """Load a label map with FreeSurfer numbers.

    Raises
    ------
    ImageError
        If it cannot be read or is no map with white matter.
    """
    voxels, _ = read_3d(path)
    raw = voxels.astype(np.int32)
    if raw.min() < 0 or raw.max() > _LARGEST or not np.array_equal(raw, voxels):
        raise ImageError(f"{path}: not a map of FreeSurfer labels with white matter: it holds other numbers")
    merged = np.arange(_LARGEST + 1)
    merged[list(RIGHT_TO_LEFT)] = list(RIGHT_TO_LEFT.values())
    present = np.flatnonzero(np.bincount(raw.ravel()))
    values = np.unique(np.append(merged[present], _BACKGROUND)).astype(np.int32)
    if _CEREBRAL_WHITE_MATTER not in values or len(values) >= _LESION:
        raise ImageError(f"{path}: not a map of FreeSurfer labels with white matter ({_CEREBRAL_WHITE_MATTER})")
    data = np.searchsorted(values, merged).astype(np.uint8)[raw]
    brain = np.flatnonzero((raw > 0) & (raw < 100))
    centres = np.stack(np.unravel_index(brain[:: max(1, len(brain) // 50_000)], raw.shape), axis=1).astype(np.int16)
    return LabelMap(path.name.split(".", 1)[0], data, values, centres)


class Anatomy(NamedTuple):
    """A deformed cube of a label map.

    ``fine`` are indices of labels at twice the target's resolution, uint8 (2 n, 2 n, 2 n); ``tissue`` are the shares of
    white matter, cortex and lesions at the target's resolution, float32 (3, n, n, n).
    """

    fine: torch.Tensor
    tissue: torch.Tensor


@frozen(eq=False)
class Palette:
    """Intensities, texture and orientation for an anatomy.

    ``tables`` (2, labels) are the mean and the standard deviation of each index, ``seed`` is that of the texture,
    ``turn`` the orientation.
    """

    tables: NDArray[np.float32]
    seed: int
    turn: Turn

    def paint(self, anatomy: Anatomy, tables: torch.Tensor) -> torch.Tensor:
        """Paint an anatomy.

        Parameters
        ----------
        anatomy
            Anatomy of the label map that the palette was drawn for.
        tables
            The attribute ``tables`` as a tensor on the device of the anatomy.

        Returns
        -------
        patch
            float32 (4, n, n, n) at the target's resolution: the image, and the shares of white matter, cortex and
            lesions.
        """
        device = anatomy.fine.device
        drawn = functional.avg_pool3d(tables[:, anatomy.fine.int()][None], _OVERSAMPLING)[0]
        waves = texture(drawn.shape[-1], torch.Generator(device).manual_seed(self.seed), device)
        return self.turn.apply(torch.cat([torch.addcmul(drawn[0], drawn[1], waves).clamp(min=0)[None], anatomy.tissue]))


@frozen
class RandomAnatomy:
    """Ranges of the synthesis.

    Parameters
    ----------
    spacing
        Range of the target voxel size, in label voxels.
    rotation
        Largest rotation about each axis in degrees.
    displacement
        Standard deviation of the smooth displacement in label voxels.
    texture
        Range of the standard deviation of the texture within a tissue.
    lesions
        Probability of lesions in a patch.
    bare
        Probability that everything outside of the brain is background.
    natural
        Probability that white matter, grey matter, CSF and lesions have the intensities of T1w, T2w or FLAIR.
    """

    spacing: tuple[float, float] = (0.65, 1.1)
    rotation: float = 20.0
    displacement: float = 2.0
    texture: tuple[float, float] = (0.003, 0.04)
    lesions: float = 0.3
    bare: float = 0.3
    natural: float = 0.7

    def draw(self, labels: LabelMap, size: int, rng: np.random.Generator, device: torch.device) -> Anatomy:
        """Draw a deformed cube of ``size`` target voxels per side."""
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
        spacing = rng.uniform(*self.spacing, size=3)
        reach = math.ceil(size * float(spacing.max()) * 1.2 + 4 * self.displacement)
        centre = labels.centres[rng.integers(len(labels.centres))].astype(int)
        refined = _refine(_crop_labels(labels.data, centre, reach), device)
        n = size * _OVERSAMPLING
        line = (torch.arange(n, device=device) + 0.5) / _OVERSAMPLING - size / 2
        turn = torch.from_numpy((_rotation(rng, self.rotation) * spacing).astype(np.float32)).to(device)
        grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
        knots = torch.randn((1, 3, 6, 6, 6), generator=generator, device=device) * self.displacement
        smooth = functional.interpolate(knots, size=(n, n, n), mode="trilinear", align_corners=True)[0]
        place = torch.einsum("ab,bijk->aijk", turn, grid).add_(smooth)
        index = ((place + reach / 2) * _SHARPER).long().clamp_(0, refined.shape[0] - 1)
        fine = refined[index[0], index[1], index[2]]
        if rng.random() < self.lesions:
            self._add_lesions(labels, fine, rng)
        if rng.random() < self.bare:
            _strip(labels, fine)
        tissues = [*labels.indices(WHITE), _LESION], labels.indices(CORTEX), [_LESION]
        return Anatomy(fine, torch.stack([_share(fine, tissue) for tissue in tissues]))

    def palette(self, labels: LabelMap, rng: np.random.Generator) -> Palette:
        """Draw a contrast for the anatomies of a label map."""
        seed, means = int(rng.integers(2**31)), self._means(labels, rng)
        spread = log_uniform(rng, *self.texture) * rng.uniform(0.5, 1.5, size=_LESION + 1).astype(np.float32)
        for table in (means, spread):
            table[_BACKGROUND] = 0.0
        return Palette(np.stack([means, spread]), seed, Turn.sample(rng))

    def _means(self, labels: LabelMap, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw the mean intensity of each index."""
        means = rng.uniform(0.05, 1.1, size=_LESION + 1).astype(np.float32)
        if rng.random() < self.natural:
            contrast = _CONTRASTS[str(rng.choice(list(_CONTRASTS)))]
            tissues = (*(labels.indices(some) for some in (WHITE, _GREY, _CSF)), [_LESION])
            for tissue, (low, high) in zip(tissues, contrast, strict=True):
                # Labels of one tissue differ by a few percent, as nuclei and lobes do.
                means[tissue] = rng.uniform(low, high) * rng.uniform(0.94, 1.06, size=len(tissue))
        return means

    def _add_lesions(self, labels: LabelMap, fine: torch.Tensor, rng: np.random.Generator) -> None:
        """Replace white matter inside some rough balls."""
        n = fine.shape[0]
        white = torch.isin(fine, torch.tensor(labels.indices(WHITE), device=fine.device))
        for _ in range(int(rng.integers(1, 8))):
            radii = np.exp(rng.uniform(math.log(2.0), math.log(0.12 * n), size=3))
            ball = RoughBall.draw(n, radii, rng)
            box = ball.box(n)
            fine[box][(ball.distance(box, fine.device) < 1) & white[box]] = _LESION


def _share(fine: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """Share of some labels in each voxel of the target's resolution."""
    here = torch.isin(fine, torch.tensor(chosen, dtype=torch.uint8, device=fine.device))
    return functional.avg_pool3d(here[None, None].float(), _OVERSAMPLING)[0, 0]


def _strip(labels: LabelMap, fine: torch.Tensor) -> None:
    """Make background of the labels that lie mostly away from white matter: skull, skin and tissue between them."""
    white = torch.isin(fine, torch.tensor([*labels.indices(WHITE), _LESION], dtype=torch.uint8, device=fine.device))
    coarse = functional.max_pool3d(white[None, None].float(), 4)
    near = functional.interpolate(functional.max_pool3d(coarse, 3, stride=1, padding=1), scale_factor=4)[0, 0] > 0
    inside = fine[tuple(slice(0, n) for n in near.shape)]
    # Every other voxel is enough to count; bincount would make the CPU wait for a GPU.
    some, weights = (volume[::2, ::2, ::2].flatten() for volume in (inside, near.float()))
    counts = torch.zeros((2, _LESION + 1), device=fine.device)
    counts.index_add_(1, some.int(), torch.stack([weights, torch.ones_like(weights)]))
    fine[(counts[0] < 0.2 * counts[1])[fine.int()]] = _BACKGROUND


def texture(size: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Gaussian random field of standard deviation 1 with a power-law spectrum, float32 (size, size, size)."""
    white = torch.randn((size,) * 3, generator=generator, device=device)
    squares = torch.fft.fftfreq(size, device=device).square()
    half = torch.fft.rfftfreq(size, device=device).square()
    frequency = (squares[:, None, None] + squares[None, :, None] + half).sqrt_().clamp_(min=1 / _LONGEST_WAVE)
    field = torch.fft.irfftn(torch.fft.rfftn(white) * frequency.pow_(-_SPECTRAL_SLOPE), s=(size,) * 3)
    return field / field.std()


def _crop_labels(data: NDArray[np.uint8], centre: NDArray[np.int_], size: int) -> NDArray[np.uint8]:
    picks = [np.clip(np.arange(size) - size // 2 + c, -1, n) for c, n in zip(centre, data.shape, strict=True)]
    cube = data[np.ix_(*(np.clip(p, 0, n - 1) for p, n in zip(picks, data.shape, strict=True)))]
    for axis, (p, n) in enumerate(zip(picks, data.shape, strict=True)):
        cube[tuple((p < 0) | (p >= n) if a == axis else slice(None) for a in range(3))] = _BACKGROUND
    return cube


def _refine(labels: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Label map at twice the resolution: the label with the largest smoothed and interpolated indicator."""
    cube = torch.from_numpy(labels).to(device)
    size = [n * _SHARPER for n in cube.shape]
    best = torch.zeros(size, device=device)
    chosen = torch.zeros(size, dtype=torch.uint8, device=device)
    for label, place in enumerate(
        ndimage.find_objects(labels + 1)
    ):  # on the CPU: a GPU would have to be waited for at each label
        if place is None:
            continue
        # Two voxels around the label: that far its smoothed indicator reaches.
        box = tuple(slice(max(0, p.start - 2), min(n, p.stop + 2)) for p, n in zip(place, cube.shape, strict=True))
        here = (cube[box] == label)[None, None].float()
        smooth = functional.avg_pool3d(here, 3, stride=1, padding=1, count_include_pad=False)
        indicator = functional.interpolate(smooth, scale_factor=_SHARPER, mode="trilinear")[0, 0]
        fine = tuple(slice(b.start * _SHARPER, b.stop * _SHARPER) for b in box)
        better = indicator > best[fine]
        chosen[fine][better] = label
        best[fine] = torch.maximum(best[fine], indicator)
    return chosen


def _rotation(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    turn = np.eye(3)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        angle = math.radians(float(rng.uniform(-degrees, degrees)))
        one = np.eye(3)
        one[a, a] = one[b, b] = math.cos(angle)
        one[a, b], one[b, a] = -math.sin(angle), math.sin(angle)
        turn = one @ turn
    return turn
