"""Positions, gains and slice weights of scans of a head, and the command that joins them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make
from moesr_bids.cli.moesr import main
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.joint.alternate import Given, place
from moesr_bids.sr.joint.combine import believed_by, measured_share, trusted_mean
from moesr_bids.sr.joint.engine import prepare
from moesr_bids.sr.joint.operator import ScanOperator
from moesr_bids.sr.joint.positions import distance, motion
from moesr_bids.sr.joint.robust import gain_field, slice_weights
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.psf import PSF
from tests.test_sr_student import brainlike

CENTRE = np.zeros(3)
NOISE = 0.02
SIZE = 72
POSITIONS = (np.eye(4), motion([3, -2, 2, 0.06, -0.05, 0.03], CENTRE), motion([-2, 1, 3, -0.04, 0.05, 0.05], CENTRE))


def _head(seed: int) -> tuple[Grid, np.ndarray]:
    """Ellipsoid with a texture of its own, 1 mm voxels around the origin of the world."""
    grid = Grid((SIZE,) * 3, nib.affines.from_matvec(np.eye(3), [-(SIZE - 1) / 2] * 3))
    places = np.indices(grid.shape) - (SIZE - 1) / 2
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=grid.shape), 2.0)
    inside = (places[0] / 26) ** 2 + (places[1] / 30) ** 2 + (places[2] / 24) ** 2 < 1
    head = np.where(inside, 0.6 + 0.15 * texture / texture.std(), 0).clip(0)
    return grid, ndimage.gaussian_filter(head, 0.7).astype(np.float32)


def _stack(seed: int, axis: int, position: np.ndarray, gain: float = 1.0) -> Given:
    grid, head = _head(seed)
    zooms = np.ones(3)
    zooms[axis] = 4.0
    affine = grid.affine @ np.diag([*zooms, 1.0])
    affine[:3, 3] = grid.affine[:3, 3] + (zooms - 1) / 2
    own = Grid(tuple(int(n) for n in SIZE / zooms), affine)
    psf = PSF.from_acquisition(zooms)
    seen = ScanOperator(own, grid, psf, position).forward(torch.from_numpy(head)).numpy()
    noise = np.random.default_rng(axis).normal(scale=NOISE, size=own.shape)
    data = (gain * seen + noise).astype(np.float32)
    return Given(data, own, psf, ndimage.gaussian_filter(data, 1) > 0.25, NOISE)


@pytest.fixture(scope="module")
def stacks() -> list[Given]:
    return [_stack(1, axis, POSITIONS[axis], gain=1 + 0.1 * axis) for axis in range(3)]


def _spoilt(stack: Given) -> Given:
    """Return a stack with a slice that lost its signal, and one that moved."""
    data = np.moveaxis(stack.data.copy(), stack.slice_axis, 2)
    data[:, :, 8] *= 0.3
    data[:, :, 10] = np.roll(data[:, :, 10], (4, -3), axis=(0, 1))
    return Given(np.moveaxis(data, 2, stack.slice_axis), stack.grid, stack.psf, stack.inside, NOISE)


@pytest.mark.parametrize("bad", [0, 2], ids=["first", "last"])
def test_three_stacks_find_each_other_and_a_spoilt_slice_is_not_believed(stacks, bad):
    found = place([_spoilt(stack) if number == bad else stack for number, stack in enumerate(stacks)])
    assert found.used == [0, 1, 2]
    assert found.reference == 0
    for placed, position in zip(found.placed, POSITIONS, strict=True):
        assert distance(placed.position, position, CENTRE) < 0.2
    weights = found.placed[bad].weights
    assert weights[8] < 0.3
    assert weights[10] < 0.3
    assert np.delete(weights, [8, 10]).min() > 0.5
    assert found.placed[bad].agreement > 0.8, "two bad slices of 18 say nothing of whose head it is"
    assert np.median(found.placed[1].gain[stacks[1].inside]) == pytest.approx(1.1, rel=0.03)


def test_a_stack_of_another_head_is_left_out(stacks):
    found = place([stacks[0], stacks[1], _stack(2, 2, POSITIONS[2])])
    assert found.used == [0, 1]
    assert "another contrast or head" in found.placed[2].reason


def test_most_scans_decide_which_one_is_foreign(stacks):
    found = place([_stack(2, 2, POSITIONS[2]), stacks[0], stacks[1]])
    assert found.used == [1, 2]
    assert found.placed[0].reason


def test_motion_and_distance():
    moved = motion([3.0, 0, 0, 0, 0, 0], CENTRE)
    assert distance(np.eye(4), moved, CENTRE) == pytest.approx(3.0)
    turned = motion([0, 0, 0, 0, 0, 0.1], CENTRE)
    # A turn of 0.1 moves a point by 0.1 times its distance from the axis: sqrt(2 / 5) of the radius.
    assert distance(np.eye(4), turned, CENTRE) == pytest.approx(0.1 * 60 * np.sqrt(2 / 5), rel=1e-3)


def test_gain_field_follows_a_coil_and_not_the_anatomy():
    _, head = _head(3)
    coil = np.linspace(0.9, 1.1, SIZE, dtype=np.float32)[:, None, None]
    field = gain_field(1.3 * coil * head, head, head > 0.25, (1.0, 1.0, 1.0))
    inside = head > 0.25
    ratio = (field / coil)[inside]
    assert np.median(ratio) == pytest.approx(1.3, rel=0.02)
    assert np.ptp(np.percentile(ratio, (5, 95))) < 0.12


def test_slices_that_are_alike_are_all_believed():
    _, head = _head(4)
    noisy = head + np.random.default_rng(0).normal(scale=NOISE, size=head.shape).astype(np.float32)
    weights, excess = slice_weights(noisy, head, head > 0.25, 2, NOISE)
    assert weights.min() == 1
    assert np.abs(excess).max() < 3


def test_a_scan_is_trusted_along_its_sharp_axes(stacks):
    target, head = _head(1)
    operators = [ScanOperator(stacks[axis].grid, target, stacks[axis].psf, np.eye(4)) for axis in (0, 2)]
    share = measured_share(operators[0])
    assert float(share[SIZE // 3, 0, 0]) < 0.1
    assert float(share[0, SIZE // 3, 0]) > 0.9
    truth = torch.from_numpy(head)
    blurred = [torch.from_numpy(ndimage.gaussian_filter1d(head, 1.7, axis=axis)) for axis in (0, 2)]
    everywhere = [torch.ones(target.shape, dtype=torch.bool)] * 2
    joined = trusted_mean(blurred, operators, everywhere)
    plain = (blurred[0] + blurred[1]) / 2
    assert float((joined - truth).square().mean()) < 0.75 * float((plain - truth).square().mean())


def test_what_lies_around_a_bad_slice_is_left_to_the_other_scans(stacks):
    target, _ = _head(1)
    operator = ScanOperator(stacks[2].grid, target, stacks[2].psf, np.eye(4))
    weights = np.ones(SIZE // 4, dtype=np.float32)
    assert bool(believed_by(operator, 2, weights).all())
    weights[8] = 0
    believed = believed_by(operator, 2, weights)
    # Slice 8 has its middle at voxel 33.5; its neighbours are 4 voxels away.
    assert not bool(believed[:, :, 30:38].any())
    assert bool(believed[:, :, :29].all())
    assert bool(believed[:, :, 39:].all())


@pytest.fixture
def files(stacks, tmp_path):
    paths = []
    for number, stack in enumerate(stacks[:2]):
        paths.append(tmp_path / f"scan{number}.nii.gz")
        nib.save(nib.Nifti1Image(np.abs(stack.data) * 1000, stack.grid.affine), paths[-1])
    return paths


def test_the_command_joins_files_and_tells_what_it_did(files, tmp_path, capsys):
    out, record, seen = tmp_path / "out.nii.gz", tmp_path / "out.json", tmp_path / "seen.nii.gz"
    argv = ["join", *map(str, files), str(out), "--model", "cubic", "--resolution", "2"]
    argv += ["--record", str(record), "--seen", str(seen), "--residuals", str(tmp_path)]
    assert main(argv) == 0, capsys.readouterr().err
    facts = json.loads(record.read_text())
    scans = facts["Joined"]["Scans"]
    assert [scan["Used"] for scan in scans] == [True, True]
    position = np.array(scans[1]["Position"])
    assert distance(position, POSITIONS[1], CENTRE) < 0.3
    assert 0.5 < scans[0]["Output"]["ResidualStd"] < 2.5
    assert scans[0]["Output"]["ResidualStd"] < scans[0]["Mean"]["ResidualStd"]
    assert facts["DataConsistency"]["ResidualStd"] == max(scan["Output"]["ResidualStd"] for scan in scans)
    make(SRRecord, facts)
    image = nib.load(out)
    assert image.header.get_zooms() == pytest.approx((2, 2, 2))
    assert nib.load(seen).get_fdata().max() == 2
    assert nib.load(tmp_path / "residual-2.nii.gz").shape == nib.load(files[1]).shape


def test_what_was_made_of_each_scan_before_is_used(files, tmp_path, capsys):
    """With the images of the scans alone given, the joined image is the same as without them, or nearly so."""
    options = ["--model", "cubic", "--resolution", "2"]
    given = {"--estimates": [], "--estimate-records": []}
    for number, file in enumerate(files):
        alone = tmp_path / f"alone{number}.nii.gz", tmp_path / f"alone{number}.json"
        assert main(["sr", str(file), str(alone[0]), *options, "--record", str(alone[1])]) == 0
        given["--estimates"].append(str(alone[0]))
        given["--estimate-records"].append(str(alone[1]))
    outs = [tmp_path / "out0.nii.gz", tmp_path / "out1.nii.gz"]
    for out, more in zip(outs, (given, {}), strict=True):
        arguments = [part for flag, paths in more.items() for part in (flag, *paths)]
        assert main(["join", *map(str, files), str(out), *options, *arguments]) == 0, capsys.readouterr().err
    one, other = (nib.load(out).get_fdata() for out in outs)
    assert np.abs(one - other).max() < 0.01 * other.max()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["a.nii", "out.nii"], "two images at least"),
        (["a.nii", "a.nii", "out.nii"], "named twice"),
        (["a.nii", "b.nii", "a.nii"], "may not replace"),
        (["a.nii", "b.nii", "out.png"], "ends in .nii.gz"),
        (["a.nii", "b.nii", "out.nii", "--psf", "kspace,kspace,kspace"], "of its own"),
        (["a.nii", "b.nii", "out.nii", "--masks", "m.nii"], "one for each"),
        (["a.nii", "b.nii", "out.nii", "--estimates", "c.nii", "d.nii"], "go together"),
    ],
)
def test_wrong_usage_is_told(argv, told, capsys):
    assert main(["join", *argv]) == 2
    assert told in capsys.readouterr().err


def test_one_scan_that_fits_nothing_is_an_error(stacks, tmp_path, capsys):
    paths = []
    for number, stack in enumerate((stacks[0], _stack(2, 2, POSITIONS[2]))):
        paths.append(str(tmp_path / f"scan{number}.nii.gz"))
        nib.save(nib.Nifti1Image(np.abs(stack.data) * 1000, stack.grid.affine), paths[-1])
    out = tmp_path / "out.nii.gz"
    assert main(["join", *paths, str(out), "--model", "cubic", "--resolution", "2"]) == 1
    assert "no two scans fit together" in capsys.readouterr().err
    assert not out.exists()


def test_scans_are_prepared_without_their_faults(tmp_path):
    """An offset and a hot voxel weigh on the joint data as little as on the scan alone."""
    clean = brainlike((48, 48, 24), noise=1.0)
    voxels = np.asarray(clean.dataobj, dtype=np.float32)
    faulty = voxels + np.float32(500)
    faulty[1, 1, 1] = 1e6
    paths = []
    for name, data in (("clean", voxels), ("faulty", faulty)):
        paths.append(tmp_path / f"{name}.nii.gz")
        nib.Nifti1Image(data, clean.affine).to_filename(paths[-1])
    first, second = prepare(paths, SROptions(resolution=1.0, model="cubic", threads=1)).given
    assert np.abs(second.data - first.data).max() < 0.02
    assert second.sigma == pytest.approx(first.sigma, rel=0.05)
    assert (second.inside == first.inside).mean() > 0.99
