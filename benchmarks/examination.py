"""A whole examination through the app: stacks of a sharp scan, joined from raw to report, against the truth.

    python -m benchmarks.examination FOLDER --data BIDS_DIR --splits splits.tsv --participant NAME [--options WORDS]

The first session of the data set that is built in FOLDER has the scans of a case of :mod:`benchmarks.join`, moved
against each other, the second session a single one, which is not to be joined. What the app wrote is compared inside
the brain with the truth, on its grid: without the detail that the truth does not know or its voxels cannot hold, and
after the smooth field that the app's correction of shading leaves between the two. Cubic interpolation starts from the
same corrected scans.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from attrs import evolve, frozen
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from moesr_bids.bids.names import entities_of, stem_of
from moesr_bids.reports.derivatives import find_images
from moesr_bids.resources import cpu_name
from moesr_bids.sr.calibration import LEVELS, ErrorRatios
from moesr_bids.sr.grid import bounding_box
from moesr_bids.sr.joint.positions import centre_of, distance
from moesr_bids.sr.joint.robust import gain_field
from moesr_bids.sr.metrics import psnr, ssim

from .app import APP, children_seconds
from .join import SETTINGS, Setting, positions_of, simulate
from .truths import Truth, load_truths

_MULTIPLE = 20  # voxels: of the thickness of all slices
_ORIENTATIONS = {"L": "sag", "R": "sag", "A": "cor", "P": "cor", "I": "ax", "S": "ax"}
Position = NDArray[np.float64]


def trimmed(truth: Truth) -> Truth:
    """Cut off the air around the head, but so much that slices fill the field of view."""
    head = bounding_box(np.asanyarray(truth.image.dataobj) > 0)
    sizes = [
        min(n, -(-(h.stop - h.start) // _MULTIPLE) * _MULTIPLE) for n, h in zip(truth.mask.shape, head, strict=True)
    ]
    firsts = [min(h.start, n - size) for h, n, size in zip(head, truth.mask.shape, sizes, strict=True)]
    box = tuple(slice(first, first + size) for first, size in zip(firsts, sizes, strict=True))
    return evolve(truth, image=truth.image.slicer[box], mask=truth.mask[box], lesions=None)


def build(folder: Path, truth: Truth, other: Truth | None, setting: Setting) -> dict[str, Position]:
    """Make the data set, if it is not there; return by ``acq`` where each scan of the first session lies.

    Positions are from world mm of the truth to world mm of the scan.
    """
    centre = centre_of(truth.mask, truth.image.affine)
    positions = positions_of(len(setting.factors), centre, seed=sum(map(ord, truth.participant)), known=False)
    names = [_name(truth, setting, number) for number in range(len(positions))]
    found = dict(zip(names, positions, strict=True))
    if (folder / "bids").exists():
        return found
    (folder / "bids").mkdir(parents=True)
    description = {"Name": "examination", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "bids" / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    for number, scan in enumerate(simulate(truth, other, setting, positions, seed=1)):
        thickness = max(setting.factors[number]) * truth.zoom
        metadata = {"MRAcquisitionType": "2D", "SliceThickness": thickness}
        name = f"acq-{names[number]}_{truth.suffix}.nii.gz"
        _write(scan, folder / f"bids/sub-01/ses-1/anat/sub-01_ses-1_{name}", metadata)
        if number == 0:
            _write(scan, folder / f"bids/sub-01/ses-2/anat/sub-01_ses-2_{name}", metadata)
    return found


def _name(truth: Truth, setting: Setting, number: int) -> str:
    """By the direction across the slices."""
    if setting.foreign and number == len(setting.factors) - 1:
        return "other"
    return _ORIENTATIONS[nib.aff2axcodes(truth.image.affine)[int(np.argmax(setting.factors[number]))]]


def _write(scan: nib.Nifti1Image, path: Path, metadata: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asanyarray(scan.dataobj, dtype=np.float32), scan.affine)
    image.set_qform(scan.affine, code=1)
    image.set_sform(scan.affine, code=1)
    nib.save(image, path)
    path.with_name(f"{stem_of(path.name)}.json").write_text(json.dumps(metadata), encoding="utf-8")


@frozen(eq=False)
class Judge:
    """The truth, and where its head lies in each scan.

    Parameters
    ----------
    truth
        Sharp scan.
    positions
        By ``acq``.
    """

    truth: Truth
    positions: dict[str, Position]

    def in_place(self, path: Path, scan: str) -> NDArray[np.float32]:
        """Bring an image that lies as a scan does to the truth's grid, with no more than that can hold."""
        image = nib.load(path)
        volume = np.asanyarray(image.dataobj, dtype=np.float32)
        for axis, zoom in enumerate(image.header.get_zooms()):
            kept = np.fft.rfftfreq(volume.shape[axis], float(zoom)) <= 0.5 / self.truth.zoom
            if not kept.all():
                spectrum = np.fft.rfft(volume, axis=axis)
                spectrum *= np.expand_dims(kept, [a for a in range(3) if a != axis])
                volume = np.fft.irfft(spectrum, volume.shape[axis], axis=axis).astype(np.float32)
        placed = nib.Nifti1Image(volume, np.linalg.inv(self.positions[scan]) @ image.affine)
        grid = self.truth.image.shape, self.truth.image.affine
        return np.asarray(resample_from_to(placed, grid, order=3).get_fdata(dtype=np.float32))

    def compare(
        self, path: Path, scan: str, uncertainty: Path | None = None
    ) -> tuple[float, float, ErrorRatios | None]:
        """Return PSNR, SSIM and, with a map of the standard deviation, how errors compare with it."""
        sharp = np.asanyarray(self.truth.image.dataobj, dtype=np.float32)
        mask, zooms = self.truth.mask, (self.truth.zoom,) * 3
        volume = self.in_place(path, scan)
        gain = gain_field(volume, sharp, mask, zooms)
        expected, image = self.truth.known(sharp), self.truth.known(volume / gain)
        ratios = None
        if uncertainty is not None:
            ratios = ErrorRatios.of(image - expected, self.in_place(uncertainty, scan) / gain, mask)
        return psnr(expected, image, mask), ssim(expected, image, mask), ratios


def report(folder: Path, judge: Judge) -> Iterator[str]:
    """Yield lines: what was made of each scan alone, of all, and how each scan was placed."""
    anat = folder / "out/sub-01/ses-1/anat"
    for image in find_images(folder / "out"):
        if image.session != "ses-1" or image.moesr is None or image.sidecar is None:
            continue
        sidecar, joined = image.sidecar, image.moesr.joined
        stem = stem_of(sidecar.name)
        scan = entities_of(joined.scans[joined.reference].source if joined else sidecar.name)["acq"]
        if scan not in judge.positions or scan == "other":
            continue
        uncertainty = sidecar.with_name(f"{stem.replace('_desc-moesr_', '_desc-uncertainty_')}.nii.gz")
        yield _line(
            stem, judge.compare(sidecar.with_suffix(".nii.gz"), scan, uncertainty if uncertainty.exists() else None)
        )
        if joined is None:
            corrected = next(anat.glob(f"*_acq-{scan}_desc-corrected_*.nii.gz"))
            yield _line(f"{corrected.name.split('_desc')[0]}, cubic", judge.compare(corrected, scan))
            continue
        for one in joined.scans:
            name = entities_of(one.source)["acq"]
            true = judge.positions[name] @ np.linalg.inv(judge.positions[scan])
            centre = centre_of(judge.truth.mask, judge.positions[scan] @ judge.truth.image.affine)
            error = distance(true, np.asarray(one.position), centre)
            doubted = ", ".join(f"{slice_}: {weight:.2f}" for slice_, weight in one.slice_weights.items())
            yield (
                f"  {name}: {'used' if one.used else one.reason}; error of position {error:.2f} mm, agreement "
                f"{one.agreement:.2f}, residual {one.output.residual_std:.2f}, slices doubted: {doubted or 'none'}"
            )


def _line(name: str, found: tuple[float, float, ErrorRatios | None]) -> str:
    quality, similarity, ratios = found
    line = f"{name}: PSNR {quality:.2f} dB, SSIM {similarity:.3f}"
    if ratios is None:
        return line
    held = ratios.coverage(1.0)
    shares = ", ".join(f"{level} %: {100 * held[str(level)]:.1f}" for level in LEVELS)
    return f"{line}; voxels in the interval of {shares}; 90 % with {ratios.temperature():.2f} times the deviation"


def main(argv: Sequence[str] | None = None) -> int:
    """Build, run and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.examination", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where data set, output and work folder are made, or lie")
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder of sharp scans")
    parser.add_argument("--splits", type=Path, required=True, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation", help="(default: validation)")
    parser.add_argument("--participant", required=True, help="of the role")
    parser.add_argument("--other", metavar="NAME", help="participant of the role whose stack is the foreign one")
    parser.add_argument("--case", choices=list(SETTINGS), default="three5", help="(default: three5)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--options", default="", metavar="WORDS", help="further options of moesr-bids")
    options = parser.parse_args(argv)
    people = [options.participant, *([options.other] if options.other else [])]
    truths = {
        t.participant.removeprefix("sub-"): t for t in load_truths(options.data, options.splits, options.role, people)
    }
    folder, truth = options.folder.absolute(), trimmed(truths[options.participant])
    positions = build(folder, truth, truths.get(options.other), SETTINGS[options.case])
    command = [*APP, str(folder / "bids"), str(folder / "out"), "participant", "--work-dir", str(folder / "work")]
    command += ["--nprocs", str(options.threads), *shlex.split(options.options)]
    before, start = children_seconds(), time.monotonic()
    code = subprocess.run(command, check=False).returncode
    seconds, used = time.monotonic() - start, children_seconds() - before
    print(f"{cpu_name()}: {seconds:.0f} s, {used:.0f} CPU-seconds, exit code {code}")
    for line in report(folder, Judge(truth, positions)):
        print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
