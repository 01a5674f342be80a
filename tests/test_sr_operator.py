"""Algebra of grids, point-spread functions and the acquisition operator."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesr_bids.sr.grid import Grid
from moesr_bids.sr.interpolation import cubic_spline
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.psf import PSF, AxisPSF

KINDS = ("gaussian", "rect", "kspace")
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.1), [12.0, -34.0, 5.0])


def _grid(shape: tuple[int, int, int], zooms: tuple[float, float, float], frame: np.ndarray = OBLIQUE) -> Grid:
    return Grid(shape, frame @ np.diag([*zooms, 1.0]))


def _problem(
    zooms: tuple[float, float, float] = (1.0, 1.2, 3.0), kinds: tuple[str, str, str] = ("kspace", "rect", "gaussian")
) -> AcquisitionOperator:
    grid = _grid((30, 26, 14), zooms)
    axes = tuple(AxisPSF(kind, zoom) for kind, zoom in zip(kinds, zooms, strict=True))
    return AcquisitionOperator(grid, grid.isotropic(0.9), PSF(axes))


@settings(max_examples=25, deadline=None)
@given(
    zooms=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
    resolution=st.floats(0.6, 1.6),
    seed=st.integers(0, 2**31),
)
def test_forward_and_adjoint_are_transposes(zooms, kinds, resolution, seed):
    grid = _grid((9, 11, 8), zooms)
    axes = tuple(AxisPSF(kind, zoom) for kind, zoom in zip(kinds, zooms, strict=True))
    operator = AcquisitionOperator(grid, grid.isotropic(resolution), PSF(axes))
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(operator.target_grid.shape, generator=random)
    y = torch.rand(grid.shape, generator=random)
    left = float((operator.forward(x).double() * y).sum())
    right = float((x.double() * operator.adjoint(y)).sum())
    assert left == pytest.approx(right, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    zooms=st.tuples(*[st.floats(0.4, 6.0)] * 3),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
    resolution=st.floats(0.5, 2.0),
)
def test_constant_stays_constant(zooms, kinds, resolution):
    grid = _grid((10, 9, 7), zooms)
    axes = tuple(AxisPSF(kind, zoom) for kind, zoom in zip(kinds, zooms, strict=True))
    operator = AcquisitionOperator(grid, grid.isotropic(resolution), PSF(axes))
    seen = operator.forward(torch.full(operator.target_grid.shape, 7.0))
    np.testing.assert_allclose(seen.numpy(), 7.0, rtol=1e-4)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.43, 1.1, 5.0), (3.3, 0.9, 0.7)])
def test_blob_keeps_its_place_in_the_world(zooms, kind, flip):
    """Centre of mass in world coordinates survives A and cubic interpolation: no half-voxel shift at any factor."""
    frame = OBLIQUE @ np.diag([*flip, 1.0])
    grid = _grid(tuple(int(np.ceil(45 / z)) for z in zooms), zooms, frame)
    target = grid.isotropic(0.7)
    world = grid.centre + np.array([1.3, -0.8, 2.1])
    blob = torch.from_numpy(_blob(target, world).astype(np.float32))
    axes = tuple(AxisPSF(kind, zoom) for zoom in zooms)
    seen = AcquisitionOperator(grid, target, PSF(axes)).forward(blob)
    np.testing.assert_allclose(_centre_of_mass(seen.numpy(), grid), world, atol=0.02 * max(1.0, *zooms))
    back = cubic_spline(torch.from_numpy(_blob(grid, world).astype(np.float32)), grid, target)
    np.testing.assert_allclose(_centre_of_mass(back.numpy(), target), world, atol=0.05 * max(zooms))


def test_ramp_is_sampled_at_the_input_positions():
    operator = _problem()
    axis = operator.target_grid.axis_positions(2).astype(np.float32)
    ramp = torch.from_numpy(np.broadcast_to(axis, operator.target_grid.shape).copy())
    seen = operator.forward(ramp).numpy()[15, 13, 3:-3]
    np.testing.assert_allclose(seen, operator.input_grid.axis_positions(2)[3:-3], atol=0.02)


def test_svd_reproduces_the_operator_and_its_box():
    operator = _problem()
    x = torch.rand(operator.target_grid.shape)
    factors = operator.factors()
    again = factors.from_left(factors.values * factors.to_right(x))
    torch.testing.assert_close(again, operator.forward(x), rtol=1e-4, atol=1e-5)
    box = (slice(5, 25), slice(4, 30), slice(8, 40))
    inside = torch.zeros_like(x)
    inside[box] = x[box]
    part = operator.factors(box)
    near = part.from_left(part.values * part.to_right(x[box]))
    torch.testing.assert_close(near, operator.forward(inside)[operator.input_box(box)], rtol=1e-4, atol=1e-5)


def test_input_finer_than_the_target_is_interpolated_not_aliased():
    """A wave that the target can represent arrives unchanged on a finer input grid."""
    grid = _grid((200, 3, 3), (0.43, 1.0, 1.0), np.eye(4))
    target = grid.isotropic(0.7)
    operator = AcquisitionOperator(grid, target, PSF.parse("kspace,kspace,kspace", grid.zooms))
    wave = np.cos(2 * np.pi * target.axis_positions(0) / 4.0)
    seen = operator.forward(torch.from_numpy(wave.astype(np.float32))[:, None, None].expand(target.shape).clone())
    expected = np.cos(2 * np.pi * grid.axis_positions(0) / 4.0)
    np.testing.assert_allclose(seen.numpy()[30:-30, 1, 1], expected[30:-30], atol=0.02)


def test_isotropic_grid_divides_exactly_and_keeps_centre_and_axes():
    grid = _grid((96, 128, 127), (2.0, 2.0, 2.0), OBLIQUE @ np.diag([-1.0, 1, 1, 1]))
    target = grid.isotropic(1.0)
    assert target.shape == (192, 256, 254)
    np.testing.assert_allclose(target.centre, grid.centre, atol=1e-9)
    np.testing.assert_allclose(target.affine[:3, :3] * 2, grid.affine[:3, :3])
    first_corner = [nib.affines.apply_affine(g.affine, [-0.5] * 3) for g in (grid, target)]
    np.testing.assert_allclose(*first_corner, atol=1e-9)
    assert grid.isotropic(0.7).shape == (275, 366, 363)
    assert all(t >= f - 0.02 for t, f in zip(grid.isotropic(0.7).fov_mm, grid.fov_mm, strict=True))
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="resolution"):
            grid.isotropic(wrong)


def test_psf_from_acquisition():
    assert [p.kind for p in PSF.from_acquisition((1, 1, 1)).axes] == ["kspace"] * 3
    thick = PSF.from_acquisition((0.5, 5.5, 0.5), {"SliceThickness": 5.0, "SpacingBetweenSlices": 5.5})
    assert [p.kind for p in thick.axes] == ["kspace", "gaussian", "kspace"]
    assert thick.axes[1].fwhm == 5.0
    assert "slice axis j" in thick.reason
    assert PSF.from_acquisition((0.5, 0.5, 4), {"SliceThickness": "broken"}).axes[2] == AxisPSF("gaussian", 4.0)
    assert PSF.from_acquisition((0.5, 0.5, 4), {"SliceThickness": 0.01}).axes[2].fwhm == 4.0
    assert PSF.from_acquisition((1, 1, 1), {"MRAcquisitionType": "2D"}).axes[2].kind == "gaussian"
    assert PSF.from_acquisition((0.9, 0.9, 1.8), {"MRAcquisitionType": "3D"}).axes[2].kind == "kspace"


def test_psf_parse():
    psf = PSF.parse("gaussian:5.0, kspace,rect:2", (4.0, 1.0, 3.0))
    assert psf.record() == [
        {"Kind": "gaussian", "FWHM": 5.0},
        {"Kind": "kspace", "FWHM": 1.0},
        {"Kind": "rect", "FWHM": 2.0},
    ]
    for wrong in ("gaussian", "a,b,c", "gaussian:x,kspace,kspace", "gaussian:-1,kspace,kspace"):
        with pytest.raises(ValueError, match=r"PSF|width"):
            PSF.parse(wrong, (1.0, 1.0, 1.0))


def _blob(grid: Grid, world: np.ndarray, sigma: float = 4.0) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    distance = nib.affines.apply_affine(grid.affine, index) - world
    return np.exp(-0.5 * (distance**2).sum(-1) / sigma**2)


def _centre_of_mass(volume: np.ndarray, grid: Grid) -> np.ndarray:
    weights = volume.astype(np.float64)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    mean = (index * weights[..., None]).sum((0, 1, 2)) / weights.sum()
    return nib.affines.apply_affine(grid.affine, mean)
