"""Synthetic images of heads with their classes, for the contrast-agnostic segmentation.

After SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789) and SynthStrip (Hoopes et al. 2022,
doi:10.1016/j.neuroimage.2022.119474). Each label of a deformed map gets a random intensity. The image then gets the
faults of real ones: slices of any thickness and gap, shading, noise, a field of view that cuts the head, a removed
skull or face, air that is not 0, lesions and cavities of resections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch.nn import functional

from ..segmentation.inference import scaled
from ..segmentation.structures import BACKGROUND, CSF, EXTRACEREBRAL, STRUCTURES
from .heads import OVERSAMPLING, Head, shares
from .lesions import RoughBall
from .volumes import log_uniform

Range = tuple[float, float]
_CAVITY, _LESION, _INDICES = 255, 254, 256
_WHITE = tuple(s.index for s in STRUCTURES if s.tissue == "white matter")
_TISSUES = {
    "white": ("white matter", "brainstem"),
    "grey": ("cortex", "deep grey matter", "cerebellum"),
    "csf": ("csf", "midline ventricles", "lateral ventricle"),
}
# Ranges of the mean intensity of white matter, grey matter, CSF and lesions.
_CONTRASTS: dict[str, tuple[Range, Range, Range, Range]] = {
    "T1w": ((0.7, 1.0), (0.4, 0.7), (0.05, 0.3), (0.3, 0.7)),
    "T2w": ((0.2, 0.45), (0.35, 0.65), (0.7, 1.1), (0.5, 1.0)),
    "FLAIR": ((0.4, 0.7), (0.45, 0.8), (0.02, 0.25), (0.7, 1.2)),
    "PD": ((0.5, 0.7), (0.6, 0.9), (0.6, 1.0), (0.6, 1.0)),
}


class HeadExample(NamedTuple):
    """Image for the network, (1, n, n, n), and the share of each class, (classes, n, n, n); float32."""

    image: torch.Tensor
    classes: torch.Tensor


@frozen
class RandomImage:
    """Probabilities and ranges of the changes of an image; lengths in mm, intensities relative to about the brightest.

    Parameters
    ----------
    natural
        Probability that the tissues have the order of T1w, T2w, FLAIR or PD.
    texture
        Range of the standard deviation within a label.
    lesions, cavity
        Probability of lesions in white matter, and of the cavity of a resection.
    bare
        Probability that the skull is removed.
    defaced
        Probability that the face is removed, of images with a skull.
    air
        Probability that air is not 0.
    cut
        Probability that the field of view ends inside the head.
    shading
        Largest standard deviation of the natural logarithm of the bias field.
    thick
        Probability of thick slices.
    slices
        Range of the spacing of thick slices.
    thickness
        Range of the slice thickness as a share of the spacing.
    in_plane
        Range of the resolution along the other axes.
    noise
        Range of the standard deviation of the noise.
    """

    natural: float = 0.5
    texture: Range = (0.005, 0.12)
    lesions: float = 0.3
    cavity: float = 0.08
    bare: float = 0.35
    defaced: float = 0.4
    air: float = 0.3
    cut: float = 0.3
    shading: float = 0.35
    thick: float = 0.5
    slices: Range = (2.5, 7.5)
    thickness: Range = (0.5, 1.2)
    in_plane: Range = (0.7, 2.5)
    noise: Range = (0.003, 0.12)

    def draw(self, head: Head, zoom: float, rng: np.random.Generator, real: float = 0.5) -> HeadExample:
        """Draw an image of a deformed head.

        Parameters
        ----------
        head
            On a grid of ``zoom / OVERSAMPLING`` mm.
        zoom
            Voxel size of the network's grid, mm.
        rng
            Random generator.
        real
            Probability that the intensities of the head's scan are used, if it has one.
        """
        fine = zoom / OVERSAMPLING
        generator = torch.Generator(head.labels.device).manual_seed(int(rng.integers(2**31)))
        image, classes = self.paint(head, fine, rng, generator, real)
        image = self._scan(image, fine, rng, generator)
        image = functional.avg_pool3d(image[None, None], OVERSAMPLING)[0]
        truth = shares(classes)
        box = self._field_of_view(truth, rng)
        outside = torch.ones_like(image, dtype=torch.bool)
        outside[(slice(None), *box)] = False
        truth = torch.where(outside, torch.zeros_like(truth), truth)
        truth[BACKGROUND] = torch.where(outside[0], torch.ones_like(truth[0]), truth[BACKGROUND])
        seen_image = torch.zeros_like(image)
        seen_image[(slice(None), *box)] = scaled(image[(slice(None), *box)])
        return HeadExample(seen_image, truth)

    def paint(
        self, head: Head, fine: float, rng: np.random.Generator, generator: torch.Generator, real: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw intensities and classes of a deformed head, as they are before a scanner samples them.

        Parameters
        ----------
        head
            On a grid of ``fine`` mm.
        fine
            Its voxel size, mm.
        rng, generator
            Random generators of single numbers and of volumes.
        real
            As for `draw`.

        Returns
        -------
        image, classes
            float32 and uint8, on the grid of the head.
        """
        labels, classes = head.labels.clone(), head.classes.clone()
        measured = head.image if rng.random() < real else None
        if measured is None:  # a real scan has its own lesions
            self._hurt(labels, classes, rng)
        seen = self._remove(classes, fine, rng)
        if measured is not None:
            image = measured.clamp(0, 1.5)
        else:
            means, spreads = self._palette(labels, head.classes, rng)
            waves = torch.randn(labels.shape, generator=generator, device=labels.device)
            index = labels.int()
            image = torch.addcmul(means[index], spreads[index], waves).clamp_(min=0)
        level = float(rng.uniform(0, 0.3)) if rng.random() < self.air else 0.0
        image = torch.where(seen, image, torch.full_like(image, level))
        return image.pow_(log_uniform(rng, 0.6, 1.6)) * self._bias(image.shape, rng, generator, image.device), classes

    def _palette(
        self, labels: torch.Tensor, classes: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw mean and standard deviation of the intensity of each label index."""
        means = rng.uniform(0.02, 1.1, size=_INDICES).astype(np.float32)
        if rng.random() < self.natural:
            ranges = dict(zip((*_TISSUES, "lesion"), _CONTRASTS[str(rng.choice(list(_CONTRASTS)))], strict=True))
            tissues = _tissue_of_labels(labels, classes)
            centres = {tissue: rng.uniform(*ranges[tissue]) for tissue in _TISSUES}
            for label, tissue in tissues.items():
                # The labels of a tissue differ by a few per cent.
                means[label] = centres[tissue] * rng.uniform(0.93, 1.07)
            means[_LESION], means[_CAVITY] = rng.uniform(*ranges["lesion"]), centres["csf"]
        spreads = (log_uniform(rng, *self.texture) * rng.uniform(0.4, 1.6, size=_INDICES)).astype(np.float32)
        means[0] = spreads[0] = 0.0
        return torch.from_numpy(means).to(labels.device), torch.from_numpy(spreads).to(labels.device)

    def _hurt(self, labels: torch.Tensor, classes: torch.Tensor, rng: np.random.Generator) -> None:
        """Put lesions into white matter, and a cavity around a place in white matter."""
        n = labels.shape[0]
        if rng.random() < self.lesions:
            for _ in range(int(rng.integers(1, 13))):
                radii = log_uniform(rng, 1.0, 10.0) * np.exp(rng.uniform(-0.35, 0.35, size=3))
                _fill(labels, classes, _ball(n, radii, classes, _WHITE, rng), _LESION, within=_WHITE)
        if rng.random() < self.cavity:
            radii = log_uniform(rng, 8.0, 28.0) * np.exp(rng.uniform(-0.3, 0.3, size=3))
            ball = _ball(n, radii, classes, _WHITE, rng)
            _fill(labels, classes, ball, _CAVITY, within=None, becomes=CSF)

    def _remove(self, classes: torch.Tensor, fine: float, rng: np.random.Generator) -> torch.Tensor:
        """Remove the skull or the face: its classes become background. Return the mask of what is left."""
        brain = classes > EXTRACEREBRAL
        kept = classes != BACKGROUND
        if rng.random() < self.bare:
            kept = _grown(brain, round(rng.uniform(0, 3.5) / fine))
        elif rng.random() < self.defaced:
            kept = kept & ~_face(brain, rng)
        classes[~kept] = BACKGROUND
        return kept

    def _bias(
        self, shape: Sequence[int], rng: np.random.Generator, generator: torch.Generator, device: torch.device
    ) -> torch.Tensor:
        knots = int(rng.integers(2, 5))
        log = torch.randn((1, 1, knots, knots, knots), generator=generator, device=device)
        log *= float(rng.uniform(0, self.shading))
        return functional.interpolate(log, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0].exp_()

    def _scan(
        self, image: torch.Tensor, fine: float, rng: np.random.Generator, generator: torch.Generator
    ) -> torch.Tensor:
        """Sample with a scanner's voxels, add its noise, and interpolate back linearly."""
        n = image.shape[0]
        spacings = np.full(3, log_uniform(rng, *self.in_plane) if rng.random() < 0.7 else fine)
        widths = np.maximum(spacings, fine)
        if rng.random() < self.thick:
            axis = int(rng.integers(3))
            spacings[axis] = log_uniform(rng, *self.slices)
            widths[axis] = spacings[axis] * rng.uniform(*self.thickness)
        back = []
        for axis, (spacing, width) in enumerate(zip(spacings, widths, strict=True)):
            down, up = _sampling(n, spacing / fine, width / fine, float(rng.random()))
            image = torch.tensordot(torch.from_numpy(down).to(image), image.movedim(axis, 0), dims=1).movedim(0, axis)
            back.append(torch.from_numpy(up).to(image))
        sigma = log_uniform(rng, *self.noise)
        draw = torch.randn((2, *image.shape), generator=generator, device=image.device) * sigma
        image = torch.hypot(image + draw[0], draw[1]) if rng.random() < 0.8 else (image + draw[0])
        for axis, matrix in enumerate(back):
            image = torch.tensordot(matrix, image.movedim(axis, 0), dims=1).movedim(0, axis)
        return image.contiguous()

    def _field_of_view(self, truth: torch.Tensor, rng: np.random.Generator) -> tuple[slice, slice, slice]:
        """Draw where the field of view ends; it holds at least half of the brain along each axis."""
        box = [slice(0, n) for n in truth.shape[1:]]
        if rng.random() < self.cut:
            brain = truth[EXTRACEREBRAL + 1 :].sum(dim=0) > 0.5
            for axis in rng.permutation(3)[: int(rng.integers(1, 3))]:
                others = [a for a in range(3) if a != axis]
                where = torch.nonzero(brain.any(dim=others[1]).any(dim=others[0])).flatten()
                if not len(where):
                    continue
                low, high, n = int(where[0]), int(where[-1]), truth.shape[1 + int(axis)]
                reach = int(rng.uniform(-0.15, 0.5) * (high - low))
                box[axis] = slice(max(0, low + reach), n) if rng.random() < 0.5 else slice(0, min(n, high - reach))
        return box[0], box[1], box[2]


def _tissue_of_labels(labels: torch.Tensor, classes: torch.Tensor) -> dict[int, str]:
    """Tissue of each label of the brain: that of its most frequent class."""
    pairs = torch.bincount((labels.int() * len(STRUCTURES) + classes.int()).flatten(), minlength=1).cpu().numpy()
    table = np.zeros(_INDICES * len(STRUCTURES), dtype=np.int64)
    table[: len(pairs)] = pairs[: len(table)]
    names = {s.index: tissue for tissue, own in _TISSUES.items() for s in STRUCTURES if s.tissue in own}
    found: dict[int, str] = {}
    for label, counts in enumerate(table.reshape(_INDICES, -1)):
        if label and counts.sum() and (tissue := names.get(int(counts.argmax()))):
            found[label] = tissue
    return found


def _ball(
    n: int, radii: NDArray[np.floating], classes: torch.Tensor, around: Sequence[int], rng: np.random.Generator
) -> RoughBall:
    """Return a rough ball with its centre in one of some classes; anywhere, if 50 draws find no such place."""
    ball = RoughBall.draw(n, radii, rng)
    for _ in range(50):
        place = rng.integers(0, n, size=3)
        if int(classes[tuple(int(p) for p in place)]) in around:
            return RoughBall([float(p) for p in place], ball.radii, ball.phases)
    return ball


def _fill(
    labels: torch.Tensor,
    classes: torch.Tensor,
    ball: RoughBall,
    label: int,
    within: Sequence[int] | None,
    becomes: int | None = None,
) -> None:
    box = ball.box(labels.shape[0])
    here = ball.distance(box, labels.device) < 1
    if within is None:
        here &= classes[box] > EXTRACEREBRAL
    else:
        here &= torch.isin(classes[box], torch.tensor(within, dtype=torch.uint8, device=classes.device))
    labels[box][here] = label
    if becomes is not None:
        classes[box][here] = becomes


def _grown(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    """Dilate a mask by some voxels, by crosses and cubes in turn, which together are nearly a ball."""
    grown = mask[None, None].float()
    for step in range(voxels):
        if step % 2:
            grown = functional.max_pool3d(grown, 3, stride=1, padding=1)
        else:
            parts = [
                functional.max_pool3d(grown, kernel, stride=1, padding=tuple(k // 2 for k in kernel))
                for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3))
            ]
            grown = torch.stack(parts).amax(dim=0)
    return grown[0, 0] > 0


def _face(brain: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Half-space in front of and below the brain that a defacing tool removes."""
    angle = math.radians(rng.uniform(15, 65))
    forward, downward = math.cos(angle), -math.sin(angle)
    y = torch.arange(brain.shape[1], device=brain.device, dtype=torch.float32)[None, :, None] * forward
    z = torch.arange(brain.shape[2], device=brain.device, dtype=torch.float32)[None, None, :] * downward
    along = (y + z).expand(brain.shape)
    if not bool(brain.any()):
        return torch.zeros_like(brain)
    limit = float(along[brain].max()) + float(rng.uniform(1, 15))
    return along > limit


def _sampling(n: int, spacing: float, width: float, offset: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices of an axis of n fine voxels: to samples with a box profile, and linearly back.

    ``spacing`` and ``width`` are in fine voxels; ``offset`` (0 to 1) shifts the first sample.
    """
    count = max(2, math.floor((n - 1 - offset * (spacing - 1)) / spacing) + 1)
    centres = offset * (spacing - 1) + spacing * np.arange(count)
    fine = np.arange(n)
    near = np.clip((width + 1) / 2 - np.abs(fine[None] - centres[:, None]), 0, 1)
    down = near / np.maximum(near.sum(axis=1, keepdims=True), 1e-6)
    place = np.clip((fine - centres[0]) / spacing, 0, count - 1)
    below = np.minimum(place.astype(int), count - 2)
    up = np.zeros((n, count))
    up[fine, below] = 1 - (place - below)
    up[fine, below + 1] += place - below
    return down.astype(np.float32), up.astype(np.float32)
