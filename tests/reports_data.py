"""A small output folder, as the participant level writes it, for the tests of the reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import nibabel as nb
import numpy as np
import numpy.typing as npt

from moesr_bids import __version__
from moesr_bids.bids.record import Record, SRRecord, record_of
from moesr_bids.bids.schema import SCHEMA_VERSION, json_key


def quality(**changes: float | None) -> dict[str, float | None]:
    """Return MRIQC's metrics of an image."""
    values = {"cnr": 2.5, "snr_csf": 1.5, "snr_gm": 8.0, "snr_wm": 14.0, "snr_total": 7.8333, "efc": 0.6, "fber": None}
    widths = {"fwhm_x": 2.4, "fwhm_y": 2.6, "fwhm_z": 2.8, "fwhm_avg": 2.6}
    return {**values, **widths, "inu_range": 0.31, "inu_med": 1.02, **changes}


def brain_mask(**changes: Any) -> dict[str, Any]:
    """Return what the mask step records."""
    facts = {"Method": "segmentation", "SkullStripped": False, "VolumeML": 1432.7, "Certainty": 0.912, "MisfitMM": 2.1}
    return {**facts, "InView": 1.0, **changes}


def segmentation() -> dict[str, Any]:
    """Return what the segmentation of the output records."""
    volumes = {"left cortex": (258.25, 262.5, 3.01), "brain": (1430.5, 1432.7, 1.56)}
    keys = ("VolumeML", "InputVolumeML", "StandardDeviationML")
    return {"Volumes": {name: dict(zip(keys, values, strict=True)) for name, values in volumes.items()}}


def registration(dice: float) -> dict[str, Any]:
    """Return what a registration records."""
    return {"Template": "MNI152NLin2009aSym", "Transform": "SyN", "Dice": dice, "MutualInformation": 0.6}


def data_consistency(**of_the_model: Any) -> dict[str, Any]:
    """Return what is recorded of the agreement with the scan."""
    model = {"ResidualStd": 1.04, "FractionBeyond3": 0.0031, "StructureStd": 1.3, "StructureLargest": 6.2}
    return {
        "ResidualStd": 1.01,
        "FractionBeyond3": 0.0029,
        "Model": {**model, "StructurePlace": [10.0, -20.0, 30.0], **of_the_model},
        "Projection": {
            "MoveNoiseStd": 0.12,
            "MovePredictedStd": 0.2,
            "LargestMove": 0.9,
            "LargestMovePlace": [-12.0, 3.0, 40.0],
        },
    }


def joined(**of_the_last: Any) -> dict[str, Any]:
    """Return what is recorded of an image that was joined from two scans; of the second with changes."""
    scan = {
        "Source": "sub-01/anat/sub-01_acq-ax_T1w.nii.gz",
        "Used": True,
        "Position": np.eye(4).tolist(),
        "RotationDegrees": 0.0,
        "TranslationMM": 0.0,
        "LastMoveMM": 0.0,
        "Agreement": 0.9,
        "PSF": [{"Kind": "kspace", "FWHM": 1.0}] * 3,
        "NoiseStd": 12.5,
        "Gain": {"Median": 1.0, "Low": 0.95, "High": 1.05},
        "SliceAxis": "k",
        "Slices": 36,
        "SliceWeights": {},
        "Mean": data_consistency()["Model"],
        "Output": data_consistency()["Model"],
    }
    last = {**scan, "Source": "sub-01/anat/sub-01_acq-cor_T1w.nii.gz", **of_the_last}
    return {"Reference": 0, "Turns": 2, "Prior": {"Tau": 0.2, "Rho": 0.05}, "Scans": [scan, last]}


def moesr(**changes: Any) -> dict[str, Any]:
    """Return the ``Moesr`` block of a finished image."""
    block: dict[str, Any] = {
        "SchemaVersion": SCHEMA_VERSION,
        "Version": __version__,
        "Model": "classical",
        "WeightsSHA256": "n/a",
        "RandomSeed": 0,
        "Device": "cpu",
        "Precision": "float32",
        "Threads": 1,
        "PSF": [
            {"Kind": "kspace", "FWHM": 1.0},
            {"Kind": "kspace", "FWHM": 1.0},
            {"Kind": "gaussian", "FWHM": 5.0},
        ],
        "PSFReason": "slices of 5 mm",
        "InputZooms": [1.0, 1.0, 5.0],
        "InputShape": [200, 240, 36],
        "OutputZooms": [0.7, 0.7, 0.7],
        "OutputShape": [286, 343, 258],
        "NoiseStd": 12.5,
        "NoisePercent": 2.13,
        "Lambda": 0.01,
        "DataConsistency": data_consistency(),
        "Software": {"nibabel": "5.3"},
        "GradientNonlinearity": {"Action": "none", "Reason": "no --gradient-coefficients were given"},
        "SessionReference": {},
        "Warnings": ["sform and qform differ by 0.3 mm: the sform is used"],
        "BrainMask": brain_mask(),
        "Segmentation": segmentation(),
        "BiasField": {"RangePercent": [-12.5, 14.0]},
        "ImageQuality": {
            "Definitions": "MRIQC 24.0",
            "Input": quality(),
            "Output": quality(fwhm_avg=6.5),
            "EffectiveResolutionMM": {"Input": [1.0, 1.1, 5.0], "Output": [0.7, 0.7, None]},
        },
        "Registration": {"MNI152NLin2009aSym": registration(0.957)},
        "Steps": [
            {"Step": "conform", "Seconds": 1.2, "PeakMemoryGB": 0.4},
            {"Step": "brain_mask", "Seconds": 41.0, "PeakMemoryGB": 1.4},
            {"Step": "n4", "Seconds": 22.5, "PeakMemoryGB": 1.1},
            {"Step": "super_resolve", "Seconds": 95.3, "PeakMemoryGB": 3.9},
        ],
        "Stages": [{"Stage": "reconstruction", "Seconds": 80.1, "PeakMemoryGB": 3.9}],
        "Seconds": 160.0,
        "PeakMemoryGB": 3.9,
        "Settings": {"resolution": 0.7},
        "SettingsHash": "0" * 64,
        "InputSHA256": "1" * 64,
        "OutputSHA256": "2" * 64,
        "Outputs": [],
    }
    return {**block, **changes}


def record(**changes: Any) -> Record:
    """Return the record of a finished image."""
    return record_of({"Moesr": moesr(**changes)}, "sidecar")


def sr_record() -> dict[str, Any]:
    """Return what ``moesr sr`` recorded of a scan with voxels of 1 mm."""
    facts = moesr(PSF=[{"Kind": "kspace", "FWHM": 1.0}] * 3)
    return {key: value for key, value in facts.items() if key in {json_key(f.name) for f in attrs.fields(SRRecord)}}


def add_finished(out_dir: Path, key: str, **changes: Any) -> Path:
    """Write the main output (an empty file), its sidecar and its status; return the sidecar."""
    stem, _, suffix = key.rpartition("_")
    parts = dict(part.split("-", 1) for part in stem.split("_"))
    folder = out_dir / f"sub-{parts['sub']}" / (f"ses-{parts['ses']}" if "ses" in parts else "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = folder / f"{stem}_res-0p7mm_desc-moesr_{suffix}.json"
    sidecar.write_text(json.dumps({"SpatialReference": "orig", "Moesr": moesr(**changes)}), encoding="utf-8")
    sidecar.with_suffix(".nii.gz").touch()
    add_status(out_dir, key, state="done", step="publish", seconds=160.0, peak_memory_gb=3.9)
    return sidecar


def add_status(out_dir: Path, key: str, **content: Any) -> None:
    """Write ``logs/status/<key>.json``."""
    folder = out_dir / "logs" / "status"
    folder.mkdir(parents=True, exist_ok=True)
    status = {
        "participant_id": key.split("_", 1)[0],
        "session_id": "n/a",
        "image": f"{key.split('_', 1)[0]}/anat/{key}.nii.gz",
        "state": "running",
        "schema_version": SCHEMA_VERSION,
    }
    (folder / f"{key}.json").write_text(json.dumps({**status, **content}), encoding="utf-8")


def add_failed(out_dir: Path, key: str, crash_text: str, **content: Any) -> Path:
    """Write the status and the crash file of an image that failed; return the crash file."""
    participant = key.split("_", 1)[0]
    crash = out_dir / "logs" / participant / f"crash-{key.replace('_', '')}-conform.txt"
    crash.parent.mkdir(parents=True, exist_ok=True)
    crash.write_text(crash_text, encoding="utf-8")
    status = {"state": "failed", "step": "conform", "reason": "the file is cut short", **content}
    add_status(out_dir, key, crash_file=str(crash.relative_to(out_dir)), **status)
    return crash


def save(path: Path, data: npt.NDArray[Any], affine: npt.NDArray[Any]) -> Path:
    """Write a NIfTI file."""
    nb.save(nb.Nifti1Image(data, affine), path)
    return path


def write_volumes(folder: Path) -> dict[str, Path]:
    """Write a small phantom: thick-slice input, sharp output, mask, log field, residual, template.

    The phantom is a ball with a plane of bars; input voxels are 2 x 2 x 6 mm (stored left-handed), output 2 mm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    shape = (40, 44, 36)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    ball = (radius < 15).astype(np.float32)
    sharp = (100 * ball * (1 + 0.5 * ((grid[2] // 2) % 2)) + 20 * (radius < 18)).astype(np.float32)
    fine = np.diag([2.0, 2.0, 2.0, 1.0])
    thick = np.diag([-2.0, 2.0, 6.0, 1.0])
    thick[:3, 3] = (2.0 * (shape[0] - 1), 0.0, 2.0)
    coarse = sharp.reshape(40, 44, 12, 3).mean(axis=3)[::-1]
    mask = (ball.reshape(40, 44, 12, 3).mean(axis=3)[::-1] > 0.5).astype(np.uint8)
    x = np.linspace(-0.2, 0.2, 40, dtype=np.float32)[:, None, None]
    return {
        "preproc": save(folder / "preproc.nii.gz", coarse.astype(np.float32), thick),
        "sr": save(folder / "sr.nii.gz", sharp, fine),
        "mask": save(folder / "mask.nii.gz", mask, thick),
        "field": save(folder / "field.nii.gz", np.broadcast_to(x, coarse.shape).astype(np.float32), thick),
        "residual": save(folder / "residual.nii.gz", rng.normal(size=coarse.shape).astype(np.float32), thick),
        "template": save(folder / "template.nii.gz", 50 * ball, fine),
        "template_mask": save(folder / "template_mask.nii.gz", ball.astype(np.uint8), fine),
    }
