"""Gradient nonlinearity: the displacement of positions by imperfect gradient coils, and its correction.

A scanner encodes position with fields that are not quite linear, so tissue at x appears at x + d(x). The field d is
fixed in scanner space. It comes from a Siemens ``.grad`` file of spherical-harmonic coefficients (Janke et al. 2004,
doi:10.1002/mrm.20122), which gradunwarp reads and evaluates on a lattice in scanner space; or it is given as an ITK
displacement field. gradunwarp's own resampling, Jacobian and inverse are not exact, and not used.

The correction maps points of the corrected image to the acquired one, as ITK transforms do. ANTs interpolates once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.nifti import open_image, read_voxels
from moesr_bids.preproc.images import RAS_TO_LPS, from_ants, image_data, like, to_ants, use_threads

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

LATTICE_MM = 5.0
MARGIN_MM = 20.0
# Rows: scanner axes (left, anterior and inferior of a patient who lies supine with the head first) in patient RAS.
PATIENT_POSITIONS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "HFS": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "HFP": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "HFDL": ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
    "HFDR": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "FFS": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "FFP": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "FFDL": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "FFDR": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
}
_COEFFICIENT = re.compile(r"^\s*\d+\s+([AB])\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)\s+(\S+)\s+([xyz])\b")
_LIKE_COEFFICIENT = re.compile(r"^\s*\d+\s+[AB]\s*\(")
_JACOBIAN_LIMITS = (0.1, 10.0)
_INVERSE_STEPS = 30
INVERSE_TOLERANCE_MM = 1e-3


@attrs.frozen(eq=False)
class DisplacementField:
    """A field of displacements on a lattice.

    Attributes
    ----------
    vectors : ndarray, shape (i, j, k, 3)
        Displacement d(x) in world RAS mm, float64.
    affine : ndarray, shape (4, 4)
        Lattice to world RAS mm.

    """

    vectors: NDArray[np.float64]
    affine: NDArray[np.float64]

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the displacements (mm) at world points (..., 3), linear between the lattice's points, as ITK does."""
        index = np.moveaxis(apply_affine(np.linalg.inv(self.affine), points), -1, 0)
        parts = [ndimage.map_coordinates(self.vectors[..., axis], index, order=1, mode="nearest") for axis in range(3)]
        return np.stack(parts, axis=-1)

    def along(self, direction: NDArray[np.float64]) -> DisplacementField:
        """Return only the component along a direction (RAS)."""
        unit = direction / np.linalg.norm(direction)
        return attrs.evolve(self, vectors=(self.vectors @ unit)[..., None] * unit)

    def jacobian(self) -> NDArray[np.float64]:
        """Return the determinant of the Jacobian of x + d(x) at the lattice's points, by central differences."""
        to_lattice = np.linalg.inv(self.affine[:3, :3])
        # Derivatives by lattice index (component, index axis), then by the chain rule by world axis.
        by_index = np.stack([np.stack(np.gradient(self.vectors[..., c]), axis=-1) for c in range(3)], axis=-2)
        return np.asarray(np.linalg.det(np.eye(3) + by_index @ to_lattice))

    def inverse(self, image: Nifti1Image) -> tuple[DisplacementField, float]:
        """Return e with x + e(x) the inverse of x + d(x), on the same lattice, by fixed-point iteration.

        Parameters
        ----------
        image : Nifti1Image
            Image for which the inverse is needed. Far from it the field may fold.

        Returns
        -------
        inverse : DisplacementField
        left_mm : float
            Last change in the image's field of view, mm. It is `INVERSE_TOLERANCE_MM` or more if the field folds there.

        """
        corners = self.corners(image)
        low, high = np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 1
        box = tuple(slice(max(int(start), 0), int(end) + 1) for start, end in zip(low, high, strict=True))
        points = self.points()
        found, left = -self.vectors, np.inf
        for _ in range(_INVERSE_STEPS):
            before, found = found, -self.at(points + found)
            left = float(np.abs(found[box] - before[box]).max())
            if left < INVERSE_TOLERANCE_MM:
                break
        return attrs.evolve(self, vectors=found), left

    def corners(self, image: Nifti1Image) -> NDArray[np.float64]:
        """Return the lattice indices of the centres of an image's corner voxels, (8, 3)."""
        ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape) - 1)
        return np.asarray(apply_affine(np.linalg.inv(self.affine) @ image.affine, ends))

    def turned(self, rotation: NDArray[np.float64]) -> DisplacementField:
        """Return the same field in a world that is turned about the isocentre: its positions and its displacements."""
        return DisplacementField(self.vectors @ rotation.T, from_matvec(rotation) @ self.affine)

    def points(self) -> NDArray[np.float64]:
        """Return the world positions of the lattice, (i, j, k, 3)."""
        index = np.stack(np.meshgrid(*map(np.arange, self.vectors.shape[:3]), indexing="ij"), axis=-1)
        return np.asarray(apply_affine(self.affine, index))

    def to_image(self) -> Nifti1Image:
        """Return the field as ITK and ANTs store it: float32, shape (i, j, k, 1, 3), vector intent, LPS mm."""
        data = (self.vectors * np.diag(RAS_TO_LPS)[:3]).astype(np.float32)[:, :, :, None, :]
        image = nib.nifti1.Nifti1Image(data, self.affine)
        image.header.set_intent("vector")
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, 1)
        image.set_qform(self.affine, 1)
        return image


def load_field(path: Path, patient_position: str = "HFS") -> DisplacementField:
    """Read an ITK displacement field in the scanner's frame: the world of a patient who lies supine, head first.

    Parameters
    ----------
    path : pathlib.Path
    patient_position : str
        DICOM Patient Position; the field is returned in the world of a patient in this position.

    Raises
    ------
    ImageError
        If the file is no displacement field of finite values, or DICOM has no such patient position.

    """
    image, _ = open_image(path)
    if len(image.shape) != 5 or image.shape[3:] != (1, 3):
        raise ImageError(
            f"{path}: an ITK displacement field has shape (i, j, k, 1, 3), this file has {image.shape}; "
            "for Siemens coefficients give the .grad file"
        )
    data = read_voxels(image, str(path)).astype(np.float64)
    if not np.isfinite(data).all():
        raise ImageError(f"{path}: the displacement field has NaN or infinite values")
    field = DisplacementField(data[:, :, :, 0] * np.diag(RAS_TO_LPS)[:3], image.affine)
    return field.turned(_to_scanner(patient_position).T @ _to_scanner("HFS"))


def _to_scanner(patient_position: str) -> NDArray[np.float64]:
    if patient_position not in PATIENT_POSITIONS:
        raise ImageError(f"PatientPosition {patient_position!r} is none of {', '.join(PATIENT_POSITIONS)}")
    return np.array(PATIENT_POSITIONS[patient_position], dtype=np.float64)


def read_coefficients(path: Path) -> Any:
    """Read a Siemens ``.grad`` file with gradunwarp's parser, and check that it read every coefficient.

    Returns
    -------
    gradunwarp.core.coeffs.Coeffs

    Raises
    ------
    ImageError
        If the file cannot be read, or has no coefficients, no reference radius, or a line that the parser did not read.

    """
    from gradunwarp.core.coeffs import get_siemens_grad

    try:
        lines = path.read_text(encoding="latin-1").splitlines()
        found = get_siemens_grad(str(path))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnboundLocalError:
        raise ImageError(f"{path}: no reference radius (a line such as '0.25 m = R0'); is it a .grad file?") from None
    except (ValueError, IndexError) as error:
        raise ImageError(f"{path}: not a Siemens .grad file ({error})") from None
    wanted = [(number, line) for number, line in enumerate(lines, 1) if _LIKE_COEFFICIENT.match(line)]
    if not wanted:
        raise ImageError(f"{path}: no coefficients; is it a Siemens .grad file?")
    for number, line in wanted:
        if not _was_read(line, found):
            raise ImageError(
                f"{path}, line {number}: this coefficient was not read: {line.strip()!r}; write it as a plain decimal "
                "number such as -0.0500"
            )
    return found


def _was_read(line: str, found: Any) -> bool:
    match = _COEFFICIENT.match(line)
    if match is None:
        return False
    kind, degree, order, text, axis = match.groups()
    table = getattr(found, f"{'alpha' if kind == 'A' else 'beta'}_{axis}")
    try:
        return bool(table[int(degree), int(order)] == float(text))
    except (ValueError, IndexError):
        return False


def evaluate(coefficients: Any, points: NDArray[np.float64], patient_position: str = "HFS") -> NDArray[np.float64]:
    """Return the displacement at points.

    Parameters
    ----------
    coefficients : gradunwarp.core.coeffs.Coeffs
    points : ndarray, shape (..., 3)
        World RAS mm, from the isocentre.
    patient_position : str
        DICOM Patient Position: how the patient lay in the scanner.

    Returns
    -------
    ndarray, shape (..., 3)
        World RAS mm.

    Raises
    ------
    ImageError
        If DICOM has no such patient position.

    """
    from gradunwarp.core.unwarp_resample import eval_spherical_harmonics
    from gradunwarp.core.utils import CoordsVector

    to_scanner = _to_scanner(patient_position)
    displacement, _ = eval_spherical_harmonics(
        coefficients, "siemens", CoordsVector(*np.moveaxis(points @ to_scanner.T, -1, 0))
    )
    return np.asarray(np.stack(displacement, axis=-1) @ to_scanner)


def field_around(
    image: Nifti1Image, coefficients: Any, patient_position: str = "HFS", *, lattice: float = LATTICE_MM
) -> DisplacementField:
    """Evaluate coefficients on a lattice in scanner space that covers the field of view of an image.

    Parameters
    ----------
    image : Nifti1Image
        Its world origin is the isocentre.
    coefficients : gradunwarp.core.coeffs.Coeffs
    patient_position : str
        DICOM Patient Position.
    lattice : float
        Spacing in mm.

    Raises
    ------
    ImageError
        If DICOM has no such patient position.

    """
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in image.shape[:3]])).reshape(3, -1).T
    corners = apply_affine(image.affine, ends)
    # At multiples of the spacing, so that the lattice does not depend on how the image is stored.
    low = np.floor((corners.min(axis=0) - MARGIN_MM) / lattice)
    high = np.ceil((corners.max(axis=0) + MARGIN_MM) / lattice)
    shape = (high - low + 1).astype(int)
    empty = DisplacementField(np.zeros((*shape, 3)), from_matvec(np.eye(3) * lattice, low * lattice))
    return attrs.evolve(empty, vectors=evaluate(coefficients, empty.points(), patient_position))


def slice_normal(affine: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the unit vector (RAS) perpendicular to the slices along a voxel axis."""
    first, second = (affine[:3, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    return np.asarray(normal / np.linalg.norm(normal))


@attrs.frozen(eq=False)
class Unwarped:
    """Result of `unwarp`; the images are float32 on the input's grid.

    Attributes
    ----------
    image : Nifti1Image
        Corrected image.
    jacobian : Nifti1Image
        Determinant of the Jacobian of the map from corrected to acquired positions, limited to 0.1 to 10; 1 where
        nothing changes.
    largest_mm : float
        Longest displacement in the image's field of view.
    folded_voxels : int
        Voxels where the field folds and the Jacobian was limited.

    """

    image: Nifti1Image
    jacobian: Nifti1Image
    largest_mm: float
    folded_voxels: int


def unwarp(
    image: Nifti1Image, field: DisplacementField, folder: Path, *, intensity: bool = True, threads: int = 1
) -> Unwarped:
    """Move the tissue of an image to its true position, with one interpolation by cubic B-splines.

    Parameters
    ----------
    image : Nifti1Image
        3-D, finite, on the grid that it was acquired on.
    field : DisplacementField
        From corrected to acquired positions.
    folder : pathlib.Path
        Folder for the file of the field, which ANTs reads.
    intensity : bool
        Multiply by the Jacobian: where the gradients squeezed tissue together, it is too bright by that factor.
    threads : int
        ITK threads; see `moesr_bids.preproc.images.use_threads`.

    Raises
    ------
    ImageError
        If the image is not 3-D, finite and of perpendicular axes, or reaches beyond the field.

    """
    import ants

    use_threads(threads)
    data = image_data(image)
    index = field.corners(image)
    if (index < -0.5).any() or (index > np.array(field.vectors.shape[:3]) - 0.5).any():
        # ANTs would leave the image as it is there.
        raise ImageError("the displacement field does not cover the image; make it over all that the scanner sees")
    path = folder / "displacement.nii.gz"
    field.to_image().to_filename(path)
    source = to_ants(data, image.affine)
    moved = from_ants(
        ants.apply_transforms(source, source, [str(path)], interpolator="bSpline", defaultvalue=0), image.affine
    )
    # Splines ring: an image without negative values must not get any.
    moved = np.clip(moved, min(0.0, float(data.min())), None)
    lattice_to_image = np.linalg.inv(field.affine) @ image.affine
    determinant = ndimage.affine_transform(
        field.jacobian().astype(np.float32), lattice_to_image, output_shape=data.shape, order=3, mode="nearest"
    )
    low, high = _JACOBIAN_LIMITS
    folded = int(np.count_nonzero((determinant < low) | (determinant > high)))
    determinant = np.clip(determinant, low, high)
    if intensity:
        moved *= determinant
    lengths = np.linalg.norm(field.vectors, axis=-1).astype(np.float32)
    reach = ndimage.affine_transform(lengths, lattice_to_image, output_shape=data.shape, order=1, mode="nearest")
    return Unwarped(
        image=like(moved, image, np.float32),
        jacobian=like(determinant, image, np.float32),
        largest_mm=round(float(reach.max()), 2),
        folded_voxels=folded,
    )
