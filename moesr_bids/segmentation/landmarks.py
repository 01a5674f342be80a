"""Centres of the structures of a brain: where it lies, and whether its parts lie as those of a brain do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..preproc.images import voxel_ml
from .inference import Shares, look_within
from .network import Segmenter
from .structures import CSF, STRUCTURES

# CSF lies all around: its centre says little of the position.
_STRUCTURES = tuple(s for s in STRUCTURES if s.index > CSF)
_LEAST_ML = 0.5
_FEWEST = 3


@attrs.frozen(eq=False)
class Landmarks:
    """Centres and volumes of the structures with a place of their own.

    Attributes
    ----------
    centres : ndarray, shape (structures, 3)
        World mm (RAS).
    volumes : ndarray, shape (structures,)
        In mL.

    """

    centres: NDArray[np.float64]
    volumes: NDArray[np.float64]

    @classmethod
    def of(cls, found: Shares) -> Landmarks:
        """Return those of an image."""
        shares = found.values[[structure.index for structure in _STRUCTURES]]
        masses = shares.sum(axis=(1, 2, 3), dtype=np.float64)
        places = np.empty((len(shares), 3))
        for axis in range(3):
            line = shares.sum(axis=tuple(a for a in (1, 2, 3) if a != axis + 1), dtype=np.float64)
            places[:, axis] = line @ np.arange(line.shape[1]) / np.maximum(masses, 1e-9)
        return cls(apply_affine(found.affine, places), masses * voxel_ml(found.affine))

    @classmethod
    def of_template(cls, network: Segmenter) -> Landmarks:
        """Return those of the embedded template, as a network finds them."""
        from ..preproc.template import load_template

        template = load_template(resolution=network.shape.zoom)
        assert template.mask is not None
        return cls.of(look_within(template.image, network, np.asarray(template.mask.dataobj) > 0))

    def record(self) -> dict[str, list[float]]:
        """Return centre and volume of each structure by its name, for the card of a network."""
        rows = zip(_STRUCTURES, self.centres, self.volumes, strict=True)
        return {s.name: [round(float(value), 2) for value in (*centre, volume)] for s, centre, volume in rows}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Landmarks:
        """Return those that `record` told.

        Raises
        ------
        KeyError
            If a structure is missing.

        """
        table = np.array([record[structure.name] for structure in _STRUCTURES], dtype=float)
        return cls(table[:, :3], table[:, 3])

    def position(self, template: Landmarks) -> tuple[NDArray[np.float64], float]:
        """Return the similarity transform (4 x 4, world mm) that lays these onto the template's, and the misfit, mm.

        Umeyama 1991 (doi:10.1109/34.88573), weighted by the cube roots of the volumes. The scale is that of the
        distances from the common centre. The misfit is the root mean square distance; with fewer than three structures
        it is infinite, and the transform a shift.
        """
        weights = np.cbrt(np.minimum(self.volumes, template.volumes)) * (self.volumes > _LEAST_ML)
        matrix = np.eye(4)
        if np.count_nonzero(weights) < _FEWEST:
            centre = np.average(self.centres, axis=0, weights=self.volumes + 1e-6)
            matrix[:3, 3] = np.average(template.centres, axis=0, weights=template.volumes + 1e-6) - centre
            return matrix, float("inf")
        centre, target = (np.average(part.centres, axis=0, weights=weights) for part in (self, template))
        own, wanted = self.centres - centre, template.centres - target
        rotation, _ = Rotation.align_vectors(wanted, own, weights=weights)
        spreads = [np.average((part**2).sum(axis=1), weights=weights) for part in (own, wanted)]
        matrix[:3, :3] = rotation.as_matrix() * np.sqrt(spreads[1] / spreads[0])
        matrix[:3, 3] = target - matrix[:3, :3] @ centre
        distances = ((apply_affine(matrix, self.centres) - template.centres) ** 2).sum(axis=1)
        return matrix, float(np.sqrt(np.average(distances, weights=weights)))

    def in_view(self, to_voxels: NDArray[np.float64], shape: tuple[int, ...]) -> float:
        """Return the share of the structures, by volume, whose centres lie in a field of view.

        Parameters
        ----------
        to_voxels : ndarray, shape (4, 4)
            From the world of the landmarks to voxels.
        shape : tuple of int
            Voxels along each axis.

        """
        voxels = apply_affine(to_voxels, self.centres)
        inside = ((voxels > -0.5) & (voxels < np.array(shape) - 0.5)).all(axis=1)
        return float(np.average(inside, weights=self.volumes + 1e-6))
