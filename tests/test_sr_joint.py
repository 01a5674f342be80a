"""Several scans on one grid: turns, operators, the common least squares."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from moesr_bids.sr.grid import Grid
from moesr_bids.sr.joint.operator import Scan, ScanOperator
from moesr_bids.sr.joint.resampling import Resampling, nearest_permutation, shears_of
from moesr_bids.sr.joint.solve import Prior, agree_with_scans, conjugate_gradients
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.psf import PSF, AxisPSF

WIDTHS = np.array([3.0, 4.0, 5.0])
BLOB = np.array([2.0, -1.0, 3.0])
quaternions = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
shifts = st.tuples(*[st.floats(-4, 4)] * 3)


def _rigid(quaternion, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    return nib.affines.from_matvec(Rotation.from_quat(quaternion).as_matrix(), shift)


def _grid(shape, turn, zooms=(1.0, 1.0, 1.0), mirrored=False) -> Grid:
    """Grid around the origin of the world."""
    axes = turn[:3, :3] @ np.diag([*zooms]) @ np.diag([-1 if mirrored else 1, 1, 1])
    return Grid(shape, nib.affines.from_matvec(axes, -axes @ ((np.array(shape) - 1) / 2)))


def _blob(grid: Grid, position: np.ndarray | None = None, widths=WIDTHS) -> np.ndarray:
    """Gaussian of a world, on a grid of another world that `position` leads to."""
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    world = nib.affines.apply_affine(grid.affine, index)
    if position is not None:
        world = nib.affines.apply_affine(np.linalg.inv(position), world)
    return np.exp(-0.5 * (((world - BLOB) / widths) ** 2).sum(axis=-1)).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(quaternions, quaternions, shifts, st.booleans())
def test_resampling_finds_positions_keeps_constants_and_has_its_adjoint(turn, position, shift, mirrored):
    source = _grid((46, 50, 48), _rigid(turn), mirrored=mirrored)
    onto = _grid((38, 40, 36), np.eye(4))
    moved = _rigid(position, shift)
    resampling = Resampling(source, onto, moved)
    found = resampling.forward(torch.from_numpy(_blob(source))).numpy()
    assert np.abs(found - _blob(onto, moved)).max() < 0.01
    constant = resampling.forward(torch.full(source.shape, 2.0)).numpy()
    np.testing.assert_allclose(constant, 2.0, atol=1e-4)
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(source.shape, generator=random), torch.rand(onto.shape, generator=random)
    left = float((resampling.forward(x).double() * y).sum())
    assert left == pytest.approx(float((x.double() * resampling.adjoint(y)).sum()), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(quaternions, shifts)
def test_shears_make_the_rotation_and_stay_small(quaternion, shift):
    matrix = _rigid(quaternion)[:3, :3]
    matrix = nearest_permutation(matrix).T @ matrix
    if np.abs(matrix - np.eye(3)).max() < 1e-5:
        return
    points = np.random.default_rng(0).normal(size=(3, 7)) * 50
    moved = points
    for shear in reversed(shears_of(matrix, np.array(shift))):
        moved = shear.matrix() @ moved
        moved[shear.axis] += shear.shift
    np.testing.assert_allclose(moved, matrix @ points + np.array(shift)[:, None], atol=1e-5)
    assert max(abs(s) for shear in shears_of(matrix, np.array(shift)) for s in shear.slopes) < 1.6


def test_one_voxel_size_is_needed():
    with pytest.raises(ValueError, match="one size"):
        Resampling(_grid((8, 8, 8), np.eye(4)), _grid((8, 8, 8), np.eye(4), (1.0, 1.0, 2.0)), np.eye(4))


def test_a_scan_on_the_targets_axes_keeps_its_exact_operator():
    grid = _grid((20, 22, 6), _rigid((0.1, 0.2, -0.1, 1.0)), (1.0, 1.0, 4.0))
    psf = PSF.from_acquisition(grid.zooms)
    target = grid.isotropic(1.0)
    alone, among = AcquisitionOperator(grid, target, psf), ScanOperator(grid, target, psf)
    x = torch.rand(target.shape)
    assert not among.turned
    assert torch.allclose(alone.forward(x), among.forward(x), atol=1e-5)
    assert bool(among.seen().all())


@pytest.mark.parametrize("axis", range(3))
def test_a_turned_thick_scan_sees_the_blurred_blob_at_its_position(axis):
    zooms = np.ones(3)
    zooms[axis] = 4.0
    shape = tuple(int(n) for n in 48 / zooms)
    grid, target = _grid(shape, np.eye(4), zooms), _grid((50, 48, 50), np.eye(4))
    profiles = tuple(AxisPSF("gaussian" if z > 1 else "kspace", z) for z in zooms)
    position = _rigid((0.04, -0.03, 0.05, 1.0), (1.5, -2.0, 0.7))
    operator = ScanOperator(grid, target, PSF(profiles), position)
    found = operator.forward(torch.from_numpy(_blob(target)))
    # The blob on a fine grid of the scan's axes, blurred by the matrix of the thick axis alone.
    fine = grid.isotropic(1.0)
    wanted = AcquisitionOperator(grid, fine, PSF(profiles)).forward(torch.from_numpy(_blob(fine, position)))
    assert operator.turned
    assert float((found - wanted).abs().max()) < 2e-3
    x, y = torch.rand(target.shape), torch.rand(grid.shape)
    left = float((operator.forward(x).double() * y).sum())
    assert left == pytest.approx(float((x.double() * operator.adjoint(y)).sum()), rel=1e-5)


def test_voxels_outside_of_the_target_are_known():
    grid = _grid((20, 20, 20), np.eye(4))
    seen = ScanOperator(grid, grid, PSF.from_acquisition(grid.zooms), _rigid((0, 0, 0, 1), (5.0, 0, 0))).seen()
    assert seen.sum() == 15 * 20 * 20
    assert not seen[:5].any() or not seen[15:].any()


def _three_stacks() -> tuple[torch.Tensor, list[Scan]]:
    target = _grid((32, 32, 32), np.eye(4))
    truth = torch.from_numpy(_blob(target, widths=np.array([1.5, 2.0, 2.5])))
    scans = []
    for axis in range(3):
        zooms = np.ones(3)
        zooms[axis] = 4.0
        grid = _grid(tuple(int(n) for n in 32 / zooms), np.eye(4), zooms)
        position = _rigid((0.02 * axis, 0.01, 0.0, 1.0), (0.5 * axis, 0.0, 0.3))
        operator = ScanOperator(grid, target, PSF.from_acquisition(grid.zooms), position)
        gain = torch.tensor(1.0 + 0.2 * axis)
        scans.append(Scan(operator.forward(truth) * gain, operator, 0.01, gain))
    return truth, scans


def test_three_stacks_measure_what_none_of_them_does():
    truth, scans = _three_stacks()
    errors = [
        float((agree_with_scans(torch.zeros_like(truth), some, Prior(1.0), iterations=40) - truth).square().mean())
        for some in ([scans[0]], [scans[1]], [scans[2]], scans)
    ]
    assert errors[3] < 0.2 * min(errors[:3])


def test_what_has_no_weight_has_no_say():
    truth, scans = _three_stacks()
    spoilt = scans[0].acquired.clone()
    spoilt[2] = 5.0
    weight = torch.ones(spoilt.shape[0], 1, 1)
    weight[2] = 0
    start = torch.zeros_like(truth)
    clean = Scan(scans[0].acquired, scans[0].operator, 0.01, scans[0].gain, weight)
    broken = Scan(spoilt, scans[0].operator, 0.01, scans[0].gain, weight)
    images = [agree_with_scans(start, [scan, *scans[1:]], Prior(0.5), iterations=5) for scan in (clean, broken)]
    assert torch.allclose(*images, atol=1e-4)


def test_conjugate_gradients_solve_and_the_prior_is_positive():
    prior, generator = Prior(0.5, 0.2), torch.Generator().manual_seed(0)
    wanted = torch.rand((6, 5, 4), generator=generator)
    found, count = conjugate_gradients(prior.precision, prior.precision(wanted), iterations=200, tolerance=1e-6)
    assert count < 200
    assert torch.allclose(found, wanted, atol=1e-4)
    other = torch.rand((6, 5, 4), generator=generator)
    left, right = (prior.precision(wanted) * other).sum(), (wanted * prior.precision(other)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-4)
