"""Point-spread functions: how much one voxel of the scanner sees of its surroundings along each axis.

The profile is kept as its spectrum (transfer function), because the acquisition matrix is built from it in closed
form. FWHM is the width that a user knows: the slice thickness or the acquired voxel size, in mm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

Kind = Literal["gaussian", "rect", "kspace"]
_ANISOTROPIC = 1.5  # thickest axis at least this many times the next one: slices, whatever the header says
_PLAUSIBLE_THICKNESS = (0.4, 2.5)  # of the slice spacing: gaps are common, overlaps (interpolated slices) as well


@frozen
class AxisPSF:
    """Point-spread function along one axis.

    Parameters
    ----------
    kind
        ``gaussian``: slice profile of a selective pulse; ``rect``: ideal slab; ``kspace``: ideal low-pass of a
        Cartesian k-space window, whose voxel size is ``fwhm``.
    fwhm
        Width in mm.
    """

    kind: Kind = field()
    fwhm: float = field(converter=float)

    @kind.validator
    def _known(self, _: Any, value: str) -> None:
        if value not in get_args(Kind):
            raise ValueError(f"unknown PSF kind {value!r}: one of {', '.join(get_args(Kind))}")

    @fwhm.validator
    def _positive(self, _: Any, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"a PSF width is a positive number of mm, got {value}")

    def spectrum(self, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transfer function at spatial frequencies in cycles per mm; 1 at zero frequency."""
        if self.kind == "gaussian":
            sigma = self.fwhm / math.sqrt(8 * math.log(2))
            return np.asarray(np.exp(-2 * (math.pi * sigma * frequency) ** 2), dtype=np.float64)
        if self.kind == "rect":
            return np.asarray(np.sinc(frequency * self.fwhm), dtype=np.float64)
        # The sample on the edge of the window belongs to both signs of the frequency, hence one half.
        distance = np.abs(frequency) * 2 * self.fwhm - 1
        return np.where(np.abs(distance) < 1e-9, 0.5, (distance < 0).astype(np.float64))


@frozen
class PSF:
    """Separable point-spread function: one profile per array axis (i, j, k), and why it was chosen."""

    axes: tuple[AxisPSF, AxisPSF, AxisPSF]
    reason: str = "given"

    @classmethod
    def from_acquisition(cls, zooms: Sequence[float], metadata: Mapping[str, Any] | None = None) -> PSF:
        """Point-spread function from voxel size and, where given, BIDS metadata.

        A 2-D acquisition (``MRAcquisitionType`` or clearly anisotropic voxels) has a Gaussian slice profile as wide
        as ``SliceThickness`` and a k-space window in plane; a 3-D one has k-space windows on all axes.

        Parameters
        ----------
        zooms
            Voxel size along (i, j, k) in mm.
        metadata
            BIDS sidecar; the keys ``MRAcquisitionType``, ``SliceThickness`` and ``SpacingBetweenSlices`` (mm) are used.
        """
        metadata = metadata or {}
        # Oblique affines give equal voxel sizes that differ by rounding.
        sizes = [round(float(z), 5) for z in zooms]
        dimension = str(metadata.get("MRAcquisitionType", "")).upper()
        thickness, spacing = (_millimetres(metadata.get(k)) for k in ("SliceThickness", "SpacingBetweenSlices"))
        axis = int(np.argmax(sizes))
        others = sorted(sizes)[:2]
        anisotropic = sizes[axis] >= _ANISOTROPIC * others[1]
        windows = [AxisPSF("kspace", z) for z in sizes]
        if dimension == "3D":
            return cls((windows[0], windows[1], windows[2]), "3-D acquisition (MRAcquisitionType)")
        if dimension != "2D" and not anisotropic:
            return cls((windows[0], windows[1], windows[2]), "voxels are not slices: taken for a 3-D acquisition")
        if anisotropic:
            reason = f"slice axis {'ijk'[axis]}: voxels are thickest along it"
        else:
            axis = _slice_axis_of_near_isotropic(sizes, spacing or thickness)
            reason = f"slice axis {'ijk'[axis]}: 2-D acquisition (MRAcquisitionType)"
        low, high = (f * sizes[axis] for f in _PLAUSIBLE_THICKNESS)
        if thickness is not None and low <= thickness <= high:
            width = thickness
            reason += f", profile as wide as SliceThickness {thickness:g} mm"
        else:
            width = sizes[axis]
            reason += f", profile as wide as the slice spacing {width:g} mm"
            if thickness is not None:
                reason += f" (SliceThickness {thickness:g} mm is not plausible)"
        windows[axis] = AxisPSF("gaussian", width)
        return cls((windows[0], windows[1], windows[2]), reason)

    @classmethod
    def parse(cls, text: str, zooms: Sequence[float]) -> PSF:
        """Read ``gaussian:5.0,kspace,kspace``: one profile per axis (i, j, k), with its width in mm.

        A profile without a width is as wide as the voxel (``zooms``, mm).

        Raises
        ------
        ValueError
            If there are not three profiles, a kind is unknown or a width is not a positive number.
        """
        parts = text.split(",")
        if len(parts) != 3:
            raise ValueError(f"a PSF has one profile for each of three axes, got {text!r}")
        profiles = []
        for part, zoom in zip(parts, zooms, strict=True):
            kind, _, width = part.strip().partition(":")
            try:
                fwhm = float(width) if width else float(zoom)
            except ValueError:
                raise ValueError(f"{width!r} in {text!r} is not a width in mm") from None
            profiles.append(AxisPSF(kind, fwhm))  # type: ignore[arg-type]
        return cls((profiles[0], profiles[1], profiles[2]), "given")

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return ",".join(f"{profile.kind}:{profile.fwhm:.10g}" for profile in self.axes)

    def record(self) -> list[dict[str, str | float]]:
        """Return the profiles as JSON-serialisable dictionaries in axis order."""
        return [{"Kind": p.kind, "FWHM": round(p.fwhm, 4)} for p in self.axes]


def _millimetres(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _slice_axis_of_near_isotropic(sizes: Sequence[float], spacing: float | None) -> int:
    """Axis whose voxel size is the slice spacing; the last one (as converters store slices) when several are."""
    wanted = spacing if spacing is not None else max(sizes)
    errors = [abs(s - wanted) for s in sizes]
    return max(axis for axis in range(3) if errors[axis] <= min(errors) + 1e-3)
