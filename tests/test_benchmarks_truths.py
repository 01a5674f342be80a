"""Known truth of the benchmark of quality: in which voxels and along which axes a scan is a truth."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.degrade import Case, all_cases, crop_kspace, degrade, other_cases
from benchmarks.tables import Row, groups, summary
from benchmarks.truths import Truth, clamped, load_truths

CASES = {case.name: case for case in (*all_cases(), *other_cases())}


def truth_of(volume: np.ndarray, detail: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Truth:
    image = nib.Nifti1Image(volume.astype(np.float32), np.eye(4))
    return Truth("sub-01", "T1w", image, volume > 0, 1.0, detail)


def row(person: str, case: str, gain: float) -> Row:
    return Row(person, "T1w", case, "student", 30.0, 0.9, gain, 0.01, 1.0)


def test_cut_off_intensities_are_found_and_common_ones_are_not() -> None:
    values = np.random.default_rng(0).normal(100, 15, size=(30, 30, 30)).round().clip(1, 254)
    inside = np.ones(values.shape, dtype=bool)
    assert not clamped(values, inside).any()
    saturated = values.clip(max=110)
    np.testing.assert_array_equal(clamped(saturated, inside), saturated == 110)
    plateau = np.where((values > 118) & (values < 132), 125, values)
    np.testing.assert_array_equal(clamped(plateau, inside), plateau == 125)
    assert not clamped(np.random.default_rng(1).random((20, 20, 20)), np.ones((20, 20, 20), dtype=bool)).any()


def test_scans_are_coarsened_along_their_sharp_axes_alone() -> None:
    truth = truth_of(np.ones((60, 60, 60)), detail=(1.0, 1.4, 2.2))
    assert truth.degradation(CASES["kspace2"]).factors == (2, 2, 1)
    assert truth.degradation(CASES["slices4j"]).factors == (1, 4, 1)
    assert truth.degradation(CASES["slices4k"]) is None
    assert truth_of(np.ones((60, 60, 60))).degradation(CASES["slices4k"]) == CASES["slices4k"]


def test_what_a_truth_does_not_know_does_not_count() -> None:
    fine = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)
    truth = truth_of(np.ones((60, 60, 60)), detail=(1.0, 1.0, 2.2))
    along_k = np.broadcast_to(fine, (60, 60, 60))
    assert np.abs(truth.known(along_k)).max() < 1e-6
    along_i = np.moveaxis(along_k, 2, 0)
    np.testing.assert_allclose(truth.known(along_i), along_i, atol=1e-6)
    slow = np.broadcast_to(np.cos(2 * np.pi * np.arange(60) / 6), (60, 60, 60))
    np.testing.assert_allclose(truth.known(slow), slow, atol=1e-6)


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_kspace_is_cropped_by_any_factor_and_keeps_places(factor: float) -> None:
    """A slow wave is sampled at the centres of the coarse voxels."""
    positions = np.arange(60.0)
    volume = np.broadcast_to(np.sin(2 * np.pi * positions / 20), (2, 2, 60)).astype(np.float32)
    coarse = crop_kspace(volume, 2, factor)
    centres = np.arange(60 / factor) * factor + (factor - 1) / 2
    np.testing.assert_allclose(coarse[0, 0], np.sin(2 * np.pi * centres / 20), atol=1e-5)
    low = degrade(nib.Nifti1Image(np.ones((60, 60, 60), np.float32), np.eye(4)), CASES["kspace1.5"], 0.0, 0)
    assert low.shape == (40, 40, 40)
    np.testing.assert_allclose(low.affine[:3, 3], 0.25)


def test_people_count_alike_and_their_standard_error_is_given() -> None:
    rows = [row("sub-01", "slices4i", 1.0), row("sub-01", "slices4j", 3.0), row("sub-02", "slices4i", 3.0)]
    line = next(line for line in summary(rows).splitlines() if line.startswith("| slices4 |"))
    assert line == "| slices4 | 2 | +2.50 +- 0.50 [+1.00], +0.010 |"
    assert set(groups()) == set(CASES)
    assert len({(case.factors, case.profile, case.share, case.noise) for case in CASES.values()}) == len(CASES)
    assert isinstance(CASES["kspace3"], Case)


def test_a_whole_scan_is_degraded_and_its_brain_judged(shared_data: Path) -> None:
    truth = next(load_truths(shared_data / "bids", shared_data / "splits.tsv", "validation", ["seeg"]))
    values = np.asanyarray(truth.image.dataobj)
    labels = next((shared_data / "labels/aparcaseg/sub-seeg").glob("**/*_dseg.nii.gz"))
    brain = int((np.asanyarray(nib.load(labels).dataobj) > 0).sum())
    # Most of its white matter has one value.
    assert 0.2 * brain < truth.mask.sum() < 0.6 * brain
    assert all(n % 60 == 0 for n in truth.mask.shape)
    assert (values > 0).sum() == (
        nib.load(shared_data / "bids/sub-seeg/anat/sub-seeg_T1w.nii.gz").get_fdata() > 0
    ).sum()
