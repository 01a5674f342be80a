"""Pairs of real scans: one head in a coarse and in a sharp protocol.

The band-limited resampling of :mod:`..sr.joint` brings the sharp scan to the axes of the coarse one. The engine's own
operator then relates the two, and the network gets the same inputs as it will get for such a scan in the engine.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from ..bids.names import entities_of, stem_of, suffix_of
from ..bids.schema import read_object
from ..config import SUFFIXES
from ..errors import ImageError
from ..preproc.align import Pair as Alignment
from ..preproc.align import read_affine, write_affine
from ..preproc.images import resample_isotropic, to_ants
from ..sr.grid import Grid
from ..sr.interpolation import cubic_spline
from ..sr.joint.alternate import Given, place
from ..sr.joint.operator import ScanOperator, covered_by
from ..sr.joint.positions import centre_of
from ..sr.joint.resampling import Resampling
from ..sr.joint.robust import gain_field
from ..sr.models.base import Problem, silent
from ..sr.models.inputs import Inputs
from ..sr.models.layers import FACTOR
from ..sr.noise import MAD_OF_NORMAL, estimate_noise, foreground
from ..sr.operator import AcquisitionOperator
from ..sr.psf import PSF
from ..sr.reading import Reading
from ..sr.zerofilling import measured_shares, zero_filled
from .sharpness import axis_resolution
from .simulation import Example, low_passes
from .volumes import detail_of, too_coarse

_PERCENTILE = 99.0
_LARGEST_MISFIT = 0.1  # of the 99th percentile, without the noise: more means another contrast
_ALIGNMENT_MM = 1.5
_LEVELS = ((60, 4, 2.0), (40, 2, 1.0), (20, 1, 0.0))
_DRAWS = 50


@frozen
class PairFiles:
    """A coarse and a sharp scan of one contrast, participant and session."""

    low: Path
    high: Path


@frozen(eq=False)
class PairCut:
    """Index of a pair, the corner of a cube that is cut out of it, and the axes that are flipped."""

    index: int
    corner: tuple[int, int, int]
    flips: tuple[int, ...]


@frozen(eq=False)
class PairedScan:
    """A pair on the target grid, with axes in the order of the network.

    Parameters
    ----------
    name
        File name of the coarse scan without extension.
    channels
        float16 (2 + guidance, i, j, k), see :class:`.simulation.Example`.
    sharp
        float16 (i, j, k): the sharp scan on this grid, with the brightness of the coarse one unless contrasts differ.
    acquisition
        Acquisition vector of the coarse scan, see :class:`.simulation.Example`.
    detail
        Finest detail of ``sharp`` along each axis, in voxels; 1 where it is sharp.
    head
        Boolean (i, j, k): the head, where both scans show it.
    known
        Boolean (i, j, k): the field of view of the sharp scan.
    facts
        Facts for the card: ``Low``, ``High``, ``OutputZooms``; without synthesis also ``Agreement`` and ``Misfit``.
    """

    name: str
    channels: NDArray[np.float16]
    sharp: NDArray[np.float16]
    acquisition: torch.Tensor
    detail: tuple[float, float, float]
    head: NDArray[np.bool_]
    known: NDArray[np.bool_]
    facts: dict[str, Any]

    def draw(self, index: int, size: int, rng: np.random.Generator) -> PairCut:
        """Draw a cube around a voxel of the head, with more than 99 % of it in the field of view of both scans.

        Raises
        ------
        ImageError
            If the scans share no cube of this size.
        """
        limits = np.array(self.sharp.shape) - size
        if limits.min() >= 0:
            places = np.argwhere(self.head)
            best, share = None, 0.0
            for _ in range(_DRAWS):
                corner = np.clip(places[rng.integers(len(places))] - size // 2, 0, limits)
                box = tuple(slice(c, c + size) for c in corner)
                seen = float(self.known[box].mean())
                if seen > share:
                    best, share = corner, seen
                if share == 1:
                    break
            if best is not None and share > 0.99:
                i, j, k = (int(c) for c in best)
                return PairCut(index, (i, j, k), tuple(axis for axis in range(3) if rng.random() < 0.5))
        raise ImageError(f"{self.name}: both scans of the pair share no cube of {size} voxels; take a smaller patch")

    def example(self, cut: PairCut, size: int, device: torch.device) -> Example:
        """Cut an example of ``size`` voxels per side out."""
        box = tuple(slice(c, c + size) for c in cut.corner)
        channels = torch.from_numpy(self.channels[:, *box].astype(np.float32))
        sharp = torch.from_numpy(self.sharp[box].astype(np.float32))
        channels, sharp = channels.flip([1 + axis for axis in cut.flips]), sharp.flip(cut.flips)
        band = low_passes(np.arange(size, dtype=np.float64), self.detail)
        parts = channels, self.acquisition, sharp, torch.zeros((3, size, size, size)), band
        return Example(*(part.contiguous().to(device) for part in parts))

    def fixed(self, size: int, count: int, device: torch.device) -> Iterator[Example]:
        """Yield ``count`` fixed examples that validate a training."""
        for number in range(count):
            cut = self.draw(0, size, np.random.default_rng(number))
            yield self.example(PairCut(0, cut.corner, ()), size, device)


def find_pairs(data: Path | None, low: str, high: str, wanted: Callable[[str], bool]) -> list[PairFiles]:
    """Find the pairs of the participants whose label is wanted.

    Parameters
    ----------
    data
        BIDS folder that holds the scans of both protocols; None if each protocol has a folder of its own.
    low, high
        Entities of file names in ``data``, such as ``acq-64mT`` and ``acq-3T``; without ``data`` the two folders.
    wanted
        Whether a participant label is wanted.

    Raises
    ------
    ImageError
        If a scan could belong to several pairs.
    """
    if data is None:
        sides = [_scans(Path(folder), "", wanted) for folder in (low, high)]
    else:
        sides = [_scans(data, entity, wanted) for entity in (low, high)]
    pairs = []
    for key, coarse in sorted(sides[0].items()):
        sharp = sides[1].get(key, [])
        if len(coarse) > 1 or len(sharp) > 1:
            several = ", ".join(path.name for path in (coarse if len(coarse) > 1 else sharp))
            raise ImageError(f"{'_'.join(key)}: several scans could be its pair ({several}); leave one of each there")
        if sharp:
            pairs.append(PairFiles(coarse[0], sharp[0]))
    return pairs


def _scans(folder: Path, entity: str, wanted: Callable[[str], bool]) -> dict[tuple[str, ...], list[Path]]:
    """Find the scans of a folder, by participant, session and suffix."""
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in sorted(path for s in SUFFIXES for path in folder.rglob(f"sub-*_{s}.nii.gz")):
        entities = entities_of(path)
        if wanted(entities["sub"]) and (not entity or entity in stem_of(path).split("_")):
            key = tuple(f"{name}-{entities[name]}" for name in ("sub", "ses") if name in entities)
            found.setdefault((*key, suffix_of(path)), []).append(path)
    return found


def load_pair(files: PairFiles, *, synthesis: bool = False, seed: int = 1) -> PairedScan:
    """Bring a pair to one grid, and match its intensities.

    Scans of one contrast are aligned by their detail, as scans that are joined (:func:`..sr.joint.alternate.place`);
    scans of different contrasts by mutual information.

    Parameters
    ----------
    files
        The scans.
    synthesis
        Whether the contrasts may differ: the sharp scan then keeps its own.
    seed
        Seed of the sampling of the mutual information.

    Raises
    ------
    ImageError
        If a scan cannot be used, the scans cannot be aligned, or their contrasts differ and ``synthesis`` is false.
    """
    low, high = _read(files.low), _read(files.high)
    if coarse := too_coarse(high.grid.affine):
        raise ImageError(f"{files.high}: {coarse}")
    fine = high.grid.isotropic(max(high.grid.zooms))
    truth = cubic_spline(torch.from_numpy(high.data), high.grid, fine)
    agreement, position = _by_mutual_information(low, high, seed) if synthesis else _by_detail(files, low, high)
    grid = low.grid.isotropic(max(high.grid.zooms))
    known = covered_by(high.grid, grid, np.linalg.inv(position)).numpy()
    sharp = Resampling(fine, grid, position).forward(truth).clamp_(min=0)
    facts: dict[str, Any] = {"Low": files.low.name, "High": files.high.name, **agreement}
    if not synthesis:
        operator = ScanOperator(low.grid, fine, low.psf, position)
        predicted = operator.forward(truth).numpy()
        inside = low.inside & operator.seen().numpy()
        gain = gain_field(low.data, predicted, inside, low.grid.zooms)
        facts["Misfit"] = _misfit(files, low.data - gain * predicted, inside, low.sigma)
        sharp *= cubic_spline(torch.from_numpy(gain), low.grid, grid)
    resolution = axis_resolution(sharp.numpy(), foreground(sharp.numpy()) & known, grid.zooms)
    return _on_network_axes(stem_of(files.low), low, grid, sharp, known, resolution, facts)


def _read(path: Path) -> Given:
    """Read a scan, and estimate its profile and noise as the engine does."""
    scan = Reading.of(path)
    data, grid, inside = scan.values.data, scan.grid, scan.inside
    sidecar = path.with_name(f"{stem_of(path)}.json")
    metadata = read_object(sidecar) if sidecar.is_file() else {}
    psf = zero_filled(PSF.from_acquisition(grid.zooms, metadata), data, grid.zooms, inside)
    noise = estimate_noise(data, inside, zooms=grid.zooms, shares=measured_shares(psf, grid.zooms))
    scale = float(np.percentile(data[inside], _PERCENTILE))
    if scale <= 0:
        raise ImageError(f"{path}: the image is not positive inside the head; a magnitude image is needed")
    return Given(np.asarray(data / np.float32(scale), dtype=np.float32), grid, psf, inside, noise.std / scale)


def _by_detail(files: PairFiles, low: Given, high: Given) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Agreement of two scans of one contrast, and the position of the coarse one in the world of the sharp one."""
    found = place([high, low])
    if found.reference != 0 or len(found.used) < 2:
        reason = next(placed.reason for placed in found.placed if placed.reason)
        raise ImageError(f"{files.low}: does not fit {files.high.name}: {reason}; name --synthesis if contrasts differ")
    placed = found.placed[1]
    return {"Agreement": round(placed.agreement, 3)}, placed.position


def _by_mutual_information(low: Given, high: Given, seed: int) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return the position as :func:`_by_detail` does, for any two contrasts; the agreement is not known."""
    images = [resample_isotropic(scan.data, scan.grid.affine, _ALIGNMENT_MM) for scan in (high, low)]
    region, _ = resample_isotropic(high.inside.astype(np.float32), high.grid.affine, _ALIGNMENT_MM)
    start = np.eye(4)
    start[:3, 3] = centre_of(low.inside, low.grid.affine) - centre_of(high.inside, high.grid.affine)
    with tempfile.TemporaryDirectory() as folder:
        pair = Alignment(
            fixed=to_ants(*images[0]),
            moving=to_ants(*images[1]),
            mask=to_ants(region >= 0.5, images[0][1]),
            folder=Path(folder),
            seed=seed,
        )
        initial = write_affine(start, Path(folder) / "start.mat")
        position = read_affine(pair.affine("pair_", initial, _LEVELS, kinds=("Rigid",)))
    return {}, position


def _misfit(files: PairFiles, residual: NDArray[np.float32], inside: NDArray[np.bool_], sigma: float) -> float:
    """Robust standard deviation of the residual without the noise, relative to the 99th percentile.

    Raises
    ------
    ImageError
        If it is too large for scans of one contrast.
    """
    deviation = float(np.median(np.abs(residual[inside]))) / MAD_OF_NORMAL
    misfit = math.sqrt(max(0.0, deviation**2 - sigma**2))
    if misfit > _LARGEST_MISFIT:
        raise ImageError(
            f"{files.low}: differs from {files.high.name} by {misfit:.0%} of the brightest (at most "
            f"{_LARGEST_MISFIT:.0%}): another contrast; name --synthesis to train a model that translates it"
        )
    return round(misfit, 4)


def _on_network_axes(
    name: str,
    low: Given,
    grid: Grid,
    sharp: torch.Tensor,
    known: NDArray[np.bool_],
    resolution: Sequence[float],
    facts: dict[str, Any],
) -> PairedScan:
    """Make the inputs of the network as the engine does, and bring the truth to the same axes."""
    problem = Problem(
        acquired=torch.from_numpy(low.data),
        mask=torch.from_numpy(low.inside),
        operator=AcquisitionOperator(low.grid, grid, low.psf),
        sigma=low.sigma,
        seed=0,
        progress=silent,
    )
    inputs = Inputs.of(problem, FACTOR)
    i, j, k = inputs.shape
    inside = np.asarray(foreground(sharp.numpy())) & known & low.grid.nearest(low.inside, grid)
    if not inside.any():
        raise ImageError(f"{name}: both scans of the pair share no part of the head")
    order = inputs.order
    return PairedScan(
        name=name,
        channels=inputs.channels()[0, :, :i, :j, :k].numpy().astype(np.float16),
        sharp=sharp.permute(order).numpy().astype(np.float16),
        acquisition=inputs.acquisition,
        detail=detail_of(resolution, order),
        head=inside.transpose(order),
        known=known.transpose(order),
        facts={**facts, "OutputZooms": [round(zoom, 3) for zoom in grid.zooms]},
    )
