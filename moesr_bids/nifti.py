"""Reading NIfTI files: the header is checked before any voxel is read, and nothing in it is repaired silently.

Fields and their defaults: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Header, intent_codes
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from .errors import ImageError

_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, zlib.error)
_GZIP_MAGIC = b"\x1f\x8b"
# Pointers that stand for a file whose content is elsewhere, and the command that fetches it.
_POINTERS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs.github.com/": ("a pointer of Git LFS", "git lfs pull"),
    b"annex/objects/": ("a pointer of git-annex", "datalad get"),
}
_LONGEST_POINTER = 32 * 1024  # bytes, as git-annex defines it
_XFORM_CODES = range(6)
# Voxel sizes are float32 in one place of a header and products of them in another.
_ZOOM_TOLERANCE = 0.01
_POSITION_TOLERANCE_MM = 0.05
MAX_SHEAR = 0.05
"""Largest cosine of the angle between two axes of an image that is not refused."""
_CHUNK_BYTES = 1 << 20


def open_image(path: Path) -> tuple[nib.Nifti1Image, tuple[str, ...]]:
    """Open a NIfTI image and check its header.

    Parameters
    ----------
    path : pathlib.Path
        A ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2.

    Returns
    -------
    image : nibabel.Nifti1Image
        Image of real numbers with as many axes as the header says, each of at least one voxel; voxels are not read yet.
    notes : tuple of str
        Sentences on what is odd about the header, and what was done about it.

    Raises
    ------
    ImageError
        If there is no such image, or the header cannot be trusted; one sentence that says what to do.

    """
    check_fetched(path)
    header = _read_header(path)
    notes: list[str] = []
    _check_shape(path, header)
    _check_kind(path, header)
    _check_place_of_voxels(path, header)
    _check_scaling(path, header, notes)
    _check_voxel_sizes(path, header, notes)
    _check_codes(path, header, notes)
    try:
        with LoggingOutputSuppressor():  # what nibabel repairs has been judged
            image = nib.load(path)
    except _UNREADABLE as error:
        raise ImageError(_unreadable(path, error)) from error
    if not isinstance(image, nib.Nifti1Image):
        raise ImageError(f"{path}: a CIFTI file holds no image; give the NIfTI image")
    _compare_positions(image, notes)
    return image, tuple(notes)


def coarsest_voxel(path: Path) -> float:
    """Return the largest voxel size of an image in mm; infinite where its header cannot be read."""
    try:
        return max(float(zoom) for zoom in open_image(path)[0].header.get_zooms()[:3])
    except Exception:  # Whatever is wrong, the header check says so; here it is only the last choice.
        return float("inf")


def read_voxels(image: SpatialImage, name: str) -> NDArray[np.float32]:
    """Read the voxels of an image.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        Opened image, or one in memory.
    name : str
        Name in messages.

    Returns
    -------
    ndarray of float32
        Voxels with the shape of the image, in C order, scaled as the header says.

    Raises
    ------
    ImageError
        If voxels are colours or complex, or the file is truncated, damaged, or longer than its header says.

    """
    _refuse_other_than_magnitudes(name, image.get_data_dtype())
    if nib.is_proxy(image.dataobj) and isinstance(image.dataobj.file_like, str):
        _check_length(image.dataobj)
    try:
        with np.errstate(over="ignore"):  # they become infinite, which callers check
            return np.ascontiguousarray(np.asanyarray(image.dataobj, dtype=np.float32))
    except _UNREADABLE as error:
        raise ImageError(_damaged(name, error)) from error


def check_fetched(path: Path) -> None:
    """Refuse a file that does not exist, cannot be read, is empty, or is a pointer to content elsewhere.

    Raises
    ------
    ImageError
        If so; for a pointer the message names the command that fetches the content.

    """
    if path.is_symlink() and not path.exists():
        raise ImageError(_not_fetched(path, f"a dangling link to {path.readlink()}", "datalad get"))
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if not path.is_file():
        raise ImageError(f"{path}: not a file")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{path}: no permission to read it")
    size = path.stat().st_size
    if size == 0:
        raise ImageError(f"{path}: the file is empty; copy it again")
    if size <= _LONGEST_POINTER:
        first_line = path.read_bytes().split(b"\n", 1)[0]
        for mark, (what, command) in _POINTERS.items():
            if mark in first_line:
                raise ImageError(_not_fetched(path, what, command))


def _not_fetched(path: Path, what: str, command: str) -> str:
    return f"{path}: the file's content was not fetched ({what}); fetch it first, e.g. with `{command}`"


def _damaged(name: Path | str, why: object) -> str:
    return f"{name}: the voxel data is truncated or damaged ({why}); copy the file again"


def _unreadable(path: Path, error: Exception) -> str:
    """Say why a file with a readable header cannot be opened; nibabel does not report a damaged stream."""
    if _is_compressed(path):
        try:
            _unzipped_bytes(path)
        except _UNREADABLE as damage:
            return _damaged(path, damage)
    return f"{path}: not a NIfTI image ({error}); convert or copy it again"


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _stream(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path) if _is_compressed(path) else path.open("rb"))


def _read_header(path: Path) -> Nifti1Header:
    """Return the header as it is in the file."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ImageError(f"{path}: the name of a NIfTI image ends in .nii or .nii.gz; convert it")
    with path.open("rb") as stream:
        zipped = stream.read(2) == _GZIP_MAGIC
    if zipped and not _is_compressed(path):
        raise ImageError(f"{path}: the file is compressed, which its name does not say; rename it to {path.name}.gz")
    if not zipped and _is_compressed(path):
        raise ImageError(
            f"{path}: not a NIfTI image (not compressed, though its name ends in .gz); copy or convert it again"
        )
    try:
        with _stream(path) as stream:
            start = stream.read(Nifti2Header.sizeof_hdr)
    except _UNREADABLE as error:
        raise ImageError(f"{path}: not a NIfTI image ({error}); convert or copy it again") from error
    for kind in (Nifti1Header, Nifti2Header):
        block = start[: kind.sizeof_hdr]
        if kind.may_contain_header(block):
            return kind(block, check=False)
    raise ImageError(f"{path}: not a NIfTI image (it has no such header); convert or copy it again")


def _check_shape(path: Path, header: Nifti1Header) -> None:
    count, *sizes = map(int, header["dim"])
    if int(header["sizeof_hdr"].byteswap()) == header.sizeof_hdr:
        # With an impossible number of dimensions, nibabel assumes the other byte order.
        count = int(header["dim"][0].byteswap())
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        stated = tuple(sizes[:count]) if 1 <= count <= 7 else "any"
        raise ImageError(f"{path}: the header states {count} dimensions of {stated} voxels; convert the image again")


def _check_kind(path: Path, header: Nifti1Header) -> None:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = None
    if dtype is None or dtype.itemsize == 0:
        raise ImageError(f"{path}: the header's data type ({code}) is none that can be read; convert the image again")
    _refuse_other_than_magnitudes(path, dtype)


def _refuse_other_than_magnitudes(name: Path | str, dtype: np.dtype[Any]) -> None:
    if dtype.fields is not None:
        raise ImageError(f"{name}: voxels are colours ({dtype}), not magnitude values; export a magnitude image")
    if np.issubdtype(dtype, np.complexfloating):
        raise ImageError(f"{name}: voxels are {dtype}, not magnitude values; export a magnitude image")


def _check_place_of_voxels(path: Path, header: Nifti1Header) -> None:
    if header["magic"].item() != header.single_magic:
        raise ImageError(
            f"{path}: the header says that the voxels are in another file (.img); convert the pair to one file"
        )
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset >= header.single_vox_offset and offset == int(offset)):
        raise ImageError(
            f"{path}: the header says that the voxels begin at byte {offset:g} (vox_offset), and they cannot before "
            f"{header.single_vox_offset}; convert the image again"
        )


def _check_scaling(path: Path, header: Nifti1Header, notes: list[str]) -> None:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):  # no scaling, by the standard and in what nibabel writes
        if math.isfinite(inter) and inter != 0:
            notes.append(
                f"the header shifts the voxels by {inter:g} without a scale; they were taken as they are stored"
            )
        return
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise ImageError(
            f"{path}: the scale of the voxels, {slope:g} and {inter:g}, is not finite; convert the image again"
        )


def _check_voxel_sizes(path: Path, header: Nifti1Header, notes: list[str]) -> None:
    zooms = np.array(header["pixdim"][1:4], dtype=np.float64)[: int(header["dim"][0])]
    told = f"voxel sizes of {', '.join(f'{zoom:g}' for zoom in zooms)} mm in the header (pixdim)"
    usable = bool(np.isfinite(zooms).all() and (zooms > 0).all())
    if int(header["sform_code"]) not in _XFORM_CODES[1:]:
        if not usable:
            raise ImageError(f"{path}: {told} are not possible, and no sform has others; convert the image again")
        return
    of_sform = nib.affines.voxel_sizes(header.get_sform())[: len(zooms)]
    if not usable or (np.abs(zooms - of_sform) > _ZOOM_TOLERANCE * of_sform).any():
        notes.append(
            f"{told} are not those of the sform, {', '.join(f'{zoom:g}' for zoom in of_sform)} mm, which were taken"
        )


def _check_codes(path: Path, header: Nifti1Header, notes: list[str]) -> None:
    for name in ("sform_code", "qform_code"):
        if int(header[name]) not in _XFORM_CODES:
            notes.append(f"the {name} of the header, {int(header[name])}, is undefined; that form was not used")
    qfac = float(header["pixdim"][0])
    if int(header["qform_code"]) in _XFORM_CODES[1:] and qfac not in (-1, 0, 1):
        notes.append(f"the handedness of the qform, {qfac:g}, is neither 1 nor -1; 1 was taken")
    intent = int(header["intent_code"])
    if intent:
        name = intent_codes.label[intent] if intent in intent_codes.value_set() else "undefined"
        notes.append(f"the header's intent is {name} (code {intent}); the voxels were taken for intensities")
    unit = length_unit(header)
    if unit in {"meter", "micron"}:
        raise ImageError(f"{path}: voxel sizes are given in {unit}s; convert it to mm")
    if unit == "undefined":
        notes.append(f"the unit code {header['xyzt_units']} of the header is undefined; taken for mm")


def _compare_positions(image: nib.Nifti1Image, notes: list[str]) -> None:
    """Add notes if sform and qform differ, or if there is neither."""
    sform, scode = image.get_sform(coded=True)
    try:
        qform, qcode = image.get_qform(coded=True)
    except (ValueError, HeaderDataError) as error:  # as of some converters
        notes.append(f"the qform is no rotation ({error}); the sform was taken")
        return
    if not scode and not qcode:
        notes.append("neither sform nor qform is set: left and right, and the position, are not known for sure")
    elif scode and qcode and (apart := largest_shift(image.shape, sform - qform)) > _POSITION_TOLERANCE_MM:
        notes.append(f"sform and qform differ by up to {apart:.2f} mm; the sform was taken")


def largest_shift(shape: tuple[int, ...], difference: NDArray[np.float64]) -> float:
    """Return how far the corner that moves most moves, in mm, for the difference of two affines."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
    return float(np.linalg.norm(nib.affines.apply_affine(difference, corners), axis=1).max())


def xform_code(image: SpatialImage) -> int:
    """Return the NIfTI xform code of an image's affine.

    It is 2 (aligned) for a NIfTI image without a code, and 1 (scanner) for other images.
    """
    if not isinstance(image, nib.Nifti1Image):
        return 1
    return int(image.header["sform_code"]) or int(image.header["qform_code"]) or 2


def image_like(data: NDArray[Any], affine: NDArray[np.float64], like: SpatialImage) -> nib.Nifti1Image:
    """Make a NIfTI image in mm, with the xform code of another image."""
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    code = xform_code(like)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    return image


def length_unit(header: Nifti1Header) -> str:
    """Return ``mm``, ``meter``, ``micron``, ``unknown``, or ``undefined`` for a code that NIfTI does not define."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        # Only the unit of time, in the upper bits, may be undefined.
        return {1: "meter", 3: "micron"}.get(int(header["xyzt_units"]) % 8, "undefined")


def _check_length(voxels: ArrayProxy) -> None:
    """Compare the length of a file with its header, and check its checksum if it has one.

    Readers stop at the last voxel, so they would not notice.
    """
    path, slab = Path(voxels.file_like), math.prod(voxels.shape[:2]) * voxels.dtype.itemsize
    expected = voxels.offset + slab * math.prod(voxels.shape[2:])
    try:
        found = _unzipped_bytes(path) if _is_compressed(path) else path.stat().st_size
    except _UNREADABLE as error:
        raise ImageError(_damaged(path, error)) from error
    if found < expected:
        raise ImageError(_damaged(path, f"{expected - found} of {expected} bytes are missing"))
    if found - expected >= slab:
        raise ImageError(
            f"{path}: the file is {found - expected} bytes longer than its header says, a slice or more: dimensions "
            f"{voxels.shape} cannot be right; convert the image again"
        )


def _unzipped_bytes(path: Path) -> int:
    found = 0
    with gzip.open(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found += len(chunk)
    return found
