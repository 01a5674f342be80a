"""Gradient nonlinearity: coefficients, displacement, Jacobian, inverse, and the corrected image."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.interfaces.gradients import GradientUnwarp
from moesr_bids.preproc.gradients import (
    INVERSE_TOLERANCE_MM,
    PATIENT_POSITIONS,
    DisplacementField,
    evaluate,
    field_around,
    load_field,
    read_coefficients,
    slice_normal,
    unwarp,
)

HEADER = (
    "0.25 m = R0, lnorm = 4? A(1,0) = B(1,1) = A(1,1) = 0;\n\nNO. TYPE            SPECTRUM                     AXIS\n\n"
)
LINES = [
    " 1  A( 3, 0)           -0.1500000                   z",
    " 2  A( 5, 0)            0.05000000                  z",
    "101 A( 3, 1)            0.1200000                   x",
    "102 A( 3, 3)           -0.03000000                  x",
    "201 B( 3, 1)            0.09000000                  y",
    "202 B( 3, 3)            0.06000000                  y",
]


@pytest.fixture(scope="module")
def grad_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gradients") / "scanner.grad"
    path.write_text(HEADER + "\n".join(LINES) + "\n")
    return path


@pytest.fixture(scope="module")
def coefficients(grad_file: Path):
    return read_coefficients(grad_file)


def grid_phantom(affine: np.ndarray, shape: tuple[int, int, int], period: float = 24.0) -> nib.Nifti1Image:
    """Smooth balls at the points of a lattice in world space."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return nib.Nifti1Image(_pattern(apply_affine(affine, index), period).astype(np.float32), affine)


def _pattern(points: np.ndarray, period: float = 24.0) -> np.ndarray:
    waves = np.cos(2 * np.pi * points / period)
    return 100 + 30 * waves.sum(axis=-1)


def turned(shape: tuple[int, int, int], zooms: tuple[float, float, float], axes: str) -> np.ndarray:
    """Affine of an image centred near the isocentre, stored along other axes or oblique."""
    if axes == "oblique":
        angle = math.radians(17)
        rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        matrix = rotation @ np.diag(zooms)
    else:
        order = nib.orientations.axcodes2ornt(axes)
        matrix = np.zeros((3, 3))
        for voxel, (world, sign) in enumerate(order):
            matrix[int(world), voxel] = sign * zooms[voxel]
    return from_matvec(matrix, np.array([3.0, -8.0, 11.0]) - matrix @ ((np.array(shape) - 1) / 2))


def acquired(truth_affine: np.ndarray, shape: tuple[int, int, int], field: DisplacementField) -> nib.Nifti1Image:
    """Simulate the scanner: at x + d(x) stands what is at x, brighter where it is squeezed."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = apply_affine(truth_affine, index)
    inverse, left_mm = field.inverse(nib.Nifti1Image(np.empty(shape, np.float32), truth_affine))
    assert left_mm < INVERSE_TOLERANCE_MM
    origin = points + inverse.at(points)
    squeezed = ndimage.map_coordinates(
        inverse.jacobian(), np.moveaxis(apply_affine(np.linalg.inv(inverse.affine), points), -1, 0), order=3
    )
    return nib.Nifti1Image((_pattern(origin) * squeezed).astype(np.float32), truth_affine)


def test_displacement_is_the_sum_of_solid_harmonics(coefficients) -> None:
    random = np.random.default_rng(0)
    points = random.uniform(-120, 120, size=(200, 3))
    x, y, z = (points @ np.array(PATIENT_POSITIONS["HFS"]).T / 250).T
    # r^n P_n^m(cos theta) cos or sin(m phi) with Siemens' normalisation, in Cartesian coordinates.
    r2 = x**2 + y**2 + z**2
    n31, n33 = (math.sqrt(7 * math.factorial(3 - m) / (2 * math.factorial(3 + m))) for m in (1, 3))
    p30, p50 = (5 * z**3 - 3 * z * r2) / 2, (63 * z**5 - 70 * z**3 * r2 + 15 * z * r2**2) / 8
    p31, p33 = 1.5 * (5 * z**2 - r2) * n31, 15 * n33
    cos3, sin3 = x**3 - 3 * x * y**2, 3 * x**2 * y - y**3
    wanted = 250 * np.stack(
        [0.12 * p31 * x - 0.03 * p33 * cos3, 0.09 * p31 * y + 0.06 * p33 * sin3, -0.15 * p30 + 0.05 * p50], axis=-1
    )
    found = evaluate(coefficients, points) @ np.array(PATIENT_POSITIONS["HFS"]).T
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_displacement_obeys_laplaces_equation(coefficients) -> None:
    points = np.random.default_rng(1).uniform(-100, 100, size=(50, 3))
    step = 2.0
    around = sum(
        evaluate(coefficients, points + sign * step * np.eye(3)[axis]) for axis in range(3) for sign in (-1, 1)
    )
    laplacian = (around - 6 * evaluate(coefficients, points)) / step**2
    assert np.abs(laplacian).max() < 1e-4 * np.abs(evaluate(coefficients, points)).max()


def test_reference_output_of_gradunwarp(shared_data: Path) -> None:
    table = read_coefficients(shared_data / "gradients" / "gradunwarp_coeffs.grad")
    reference = np.load(shared_data / "gradients" / "siemens_B_output.npz")
    line = np.linspace(-300, 300, 60, dtype=np.float32)
    scanner = np.stack(np.meshgrid(line, line, line), axis=-1)
    found = evaluate(table, scanner @ np.array(PATIENT_POSITIONS["HFS"], np.float32))
    found = found @ np.array(PATIENT_POSITIONS["HFS"]).T / (1000 * table.R0_m)
    for axis, name in enumerate(("bx", "by", "bz")):
        np.testing.assert_allclose(found[..., axis], reference[name], rtol=0, atol=1e-5 * np.abs(reference[name]).max())


@pytest.mark.parametrize("position", PATIENT_POSITIONS)
def test_the_field_turns_with_the_patient(coefficients, position: str) -> None:
    to_scanner = np.array(PATIENT_POSITIONS[position], dtype=float)
    assert np.linalg.det(to_scanner) == pytest.approx(1)
    scanner = np.random.default_rng(2).uniform(-100, 100, size=(20, 3))
    supine = evaluate(coefficients, scanner @ np.array(PATIENT_POSITIONS["HFS"], dtype=float), "HFS")
    turned_patient = evaluate(coefficients, scanner @ to_scanner, position)
    one = supine @ np.array(PATIENT_POSITIONS["HFS"]).T
    np.testing.assert_allclose(turned_patient @ to_scanner.T, one, atol=1e-9)
    with pytest.raises(ImageError, match="none of HFS, HFP"):
        evaluate(coefficients, scanner, "sitting")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1 A( 3, 0)  -5.0e-02  z\n", "line 5: this coefficient was not read"),
        (HEADER + LINES[0] + "\n2 A( 5, 0)  +0.01  z\n", "line 6: this coefficient was not read"),
        (HEADER + "1 A( 3, 0)  0.01  w\n", "line 5: this coefficient was not read"),
        (HEADER, "no coefficients"),
        ("\n".join(LINES), "no reference radius"),
    ],
)
def test_files_that_are_not_read_whole_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.grad"
    path.write_text(text)
    with pytest.raises(ImageError, match=message):
        read_coefficients(path)


def test_field_does_not_depend_on_the_lattice(coefficients) -> None:
    image = grid_phantom(turned((64, 64, 64), (3, 3, 3), "RAS"), (64, 64, 64))
    points = np.random.default_rng(3).uniform(-90, 90, size=(500, 3))
    coarse, fine = (field_around(image, coefficients, lattice=step) for step in (5.0, 2.5))
    exact = evaluate(coefficients, points)
    for field in (coarse, fine):
        assert np.abs(field.at(points) - exact).max() < 0.02
    there = [
        ndimage.map_coordinates(f.jacobian(), apply_affine(np.linalg.inv(f.affine), points).T, order=3)
        for f in (coarse, fine)
    ]
    np.testing.assert_allclose(*there, atol=1e-3)


def test_jacobian_agrees_with_finite_differences(coefficients) -> None:
    image = grid_phantom(turned((64, 64, 64), (3, 3, 3), "oblique"), (64, 64, 64))
    field = field_around(image, coefficients)
    points = np.random.default_rng(4).uniform(-90, 90, size=(100, 3))
    step = 0.5
    slopes = [
        (evaluate(coefficients, points + step * e) - evaluate(coefficients, points - step * e)) / (2 * step)
        for e in np.eye(3)
    ]
    wanted = np.linalg.det(np.eye(3) + np.stack(slopes, axis=-1))
    found = ndimage.map_coordinates(field.jacobian(), apply_affine(np.linalg.inv(field.affine), points).T, order=3)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert np.ptp(wanted) > 0.02


def lattice_image(field: DisplacementField) -> nib.Nifti1Image:
    """Return an image on the field's lattice: all of it is in the field of view."""
    return nib.Nifti1Image(np.empty(field.vectors.shape[:3], np.float32), field.affine)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1))
@example(9172012)
def test_inverse_undoes_the_field(seed: int) -> None:
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(24, 24, 24, 3)), (4, 4, 4, 0))
    affine = from_matvec(np.diag([5.0, 5.0, 5.0]), [-57, -57, -57])
    field = DisplacementField(4 * smooth / np.abs(smooth).max(), affine)
    inverse, left_mm = field.inverse(lattice_image(field))
    assert left_mm < INVERSE_TOLERANCE_MM
    lattice = inverse.points()[4:-4, 4:-4, 4:-4]
    moved = lattice + inverse.at(lattice)
    assert np.abs(moved + field.at(moved) - lattice).max() < 1e-3
    points = random.uniform(-40, 40, size=(200, 3))
    moved = points + inverse.at(points)
    # Interpolation between voxels of 5 mm leaves some hundredths of a mm, in a hard field.
    assert np.abs(moved + field.at(moved) - points).max() < 0.1


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "oblique"])
def test_a_warped_grid_comes_back(axes: str, coefficients, tmp_path: Path) -> None:
    shape, zooms = (70, 66, 62), (2.0, 2.0, 2.5)
    affine = turned(shape, zooms, axes)
    field = field_around(grid_phantom(affine, shape), coefficients)
    scan = acquired(affine, shape, field)
    result = unwarp(scan, field, tmp_path)
    truth = grid_phantom(affine, shape).get_fdata()
    inner = (slice(8, -8),) * 3
    before = np.abs(scan.get_fdata() - truth)[inner]
    after = np.abs(result.image.get_fdata() - truth)[inner]
    assert result.largest_mm > 2
    assert before.max() > 10
    # The pattern changes by at most 30 * 2 pi / 24 per mm: an error of a tenth of a voxel would show as 1.6.
    assert np.percentile(after, 99.9) < 1.6
    assert np.sqrt(np.mean(after**2)) < 0.03 * np.sqrt(np.mean(before**2))


@pytest.mark.parametrize("offset", [(0.0, 0.0, 70.0), (-40.0, 25.0, 0.0)])
def test_the_isocentre_counts_not_the_centre_of_the_image(
    offset: tuple[float, float, float], coefficients, tmp_path: Path
) -> None:
    """A head off the isocentre, by table position or field of view, is bent as its place in the scanner says."""
    shape = (50, 50, 50)
    centred, shifted = (turned(shape, (2.5, 2.5, 2.5), "RAS") for _ in range(2))
    shifted[:3, 3] += offset
    image = grid_phantom(shifted, shape)
    field = field_around(image, coefficients)
    points = apply_affine(shifted, np.random.default_rng(0).uniform(5, 45, size=(300, 3)))
    np.testing.assert_allclose(field.at(points), evaluate(coefficients, points), atol=0.02)
    other = field_around(grid_phantom(centred, shape), coefficients)
    assert np.abs(other.at(points - offset) - field.at(points)).max() > 1
    scan = acquired(shifted, shape, field)
    inner = (slice(8, -8),) * 3
    error = np.abs(unwarp(scan, field, tmp_path).image.get_fdata() - image.get_fdata())[inner]
    assert np.percentile(error, 99.9) < 2.0  # an eighth of a voxel


def test_storage_does_not_change_the_world(coefficients, tmp_path: Path) -> None:
    shape = (70, 66, 62)
    affine = turned(shape, (2.0, 2.0, 2.5), "RAS")
    field = field_around(grid_phantom(affine, shape), coefficients)
    scan = acquired(affine, shape, field)
    stored = nib.as_closest_canonical(scan).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PSR"))
    )
    results = []
    for image in (scan, stored):
        unwarped = unwarp(image, field_around(image, coefficients), tmp_path).image
        results.append(nib.as_closest_canonical(unwarped).get_fdata())
    np.testing.assert_allclose(*results, atol=0.05)


def test_intensities_follow_the_jacobian_only_if_asked(coefficients, tmp_path: Path) -> None:
    shape = (60, 60, 60)
    affine = turned(shape, (3, 3, 3), "RAS")
    image = nib.Nifti1Image(np.full(shape, 50, np.float32), affine)
    field = field_around(image, coefficients)
    plain = unwarp(image, field, tmp_path, intensity=False)
    scaled = unwarp(image, field, tmp_path)
    inner = (slice(12, -12),) * 3
    np.testing.assert_allclose(plain.image.get_fdata()[inner], 50, atol=1e-3)
    np.testing.assert_allclose(scaled.image.get_fdata()[inner], 50 * scaled.jacobian.get_fdata()[inner], rtol=1e-4)
    assert np.ptp(scaled.jacobian.get_fdata()[inner]) > 0.02


def test_through_plane_moves_nothing_within_the_slices(coefficients) -> None:
    affine = turned((50, 50, 20), (2, 2, 5), "oblique")
    image = grid_phantom(affine, (50, 50, 20))
    normal = slice_normal(affine, 2)
    assert np.linalg.norm(normal) == pytest.approx(1)
    field = field_around(image, coefficients)
    through = field.along(normal)
    for axis in (0, 1):
        assert np.abs(through.vectors @ affine[:3, axis]).max() < 1e-9
    np.testing.assert_allclose(through.vectors @ normal, field.vectors @ normal, atol=1e-9)


def test_a_ready_field_is_read_as_itk_means_it(coefficients, tmp_path: Path) -> None:
    affine = turned((40, 40, 40), (4, 4, 4), "RAS")
    field = field_around(grid_phantom(affine, (40, 40, 40)), coefficients)
    path = tmp_path / "field.nii.gz"
    field.to_image().to_filename(path)
    again = load_field(path)
    np.testing.assert_allclose(again.vectors, field.vectors, atol=1e-5)
    assert nib.load(path).header.get_intent()[0] == "vector"
    nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_filename(path)
    with pytest.raises(ImageError, match=r"shape \(i, j, k, 1, 3\)"):
        load_field(path)


@pytest.mark.parametrize("position", ["HFP", "HFDL", "HFDR", "FFS"])
def test_a_ready_field_turns_with_the_patient(position: str, tmp_path: Path) -> None:
    """A field of the scanner, made once for a supine patient, is for any other what its coefficients are."""
    # Two more, without which a turn by half a circle changes nothing.
    (tmp_path / "skew.grad").write_text(HEADER + "\n".join([*LINES, "203 A( 4, 2)  0.2000  x", "204 B( 4, 1)  0.1  z"]))
    coefficients = read_coefficients(tmp_path / "skew.grad")
    shape = (40, 44, 36)
    image = grid_phantom(turned(shape, (4, 4, 4), "oblique"), shape)
    wide = nib.Nifti1Image(np.empty((64, 64, 64), np.float32), from_matvec(np.diag([4.0, 4, 4]), [-118, -130, -124]))
    path = tmp_path / "field.nii.gz"
    field_around(wide, coefficients, "HFS").to_image().to_filename(path)
    field = load_field(path, position)
    points = np.random.default_rng(5).uniform(-70, 70, size=(200, 3))
    wanted = evaluate(coefficients, points, position)
    np.testing.assert_allclose(field.at(points), wanted, atol=0.02)
    assert np.abs(load_field(path).at(points) - wanted).max() > 0.3
    # ANTs reads it from a file whose header holds the turned lattice; its points are those of the other.
    direct = unwarp(image, field_around(image, coefficients, position), tmp_path)
    found = unwarp(image, field, tmp_path)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(found.image.get_fdata()[inner], direct.image.get_fdata()[inner], atol=1e-3)
    np.testing.assert_allclose(found.jacobian.get_fdata()[inner], direct.jacobian.get_fdata()[inner], atol=1e-5)
    unturned = unwarp(image, load_field(path), tmp_path)
    assert np.abs(unturned.image.get_fdata() - direct.image.get_fdata())[inner].max() > 1
    with pytest.raises(ImageError, match="none of HFS, HFP"):
        load_field(path, "sitting")


def bent(shape: int, *, outside: int) -> DisplacementField:
    """Return a smooth field on a lattice of 5 mm that folds in the ``outside`` outermost points."""
    random = np.random.default_rng(0)
    vectors = ndimage.gaussian_filter(random.normal(size=(shape,) * 3 + (3,)), (4, 4, 4, 0))
    vectors *= 2 / np.abs(vectors).max()
    wild = np.ones((shape,) * 3, bool)
    wild[(slice(outside, -outside or None),) * 3] = False
    vectors[wild] = random.normal(scale=30.0, size=(int(wild.sum()), 3))
    return DisplacementField(vectors, from_matvec(np.eye(3) * 5, np.full(3, -2.5 * (shape - 1))))


def test_folds_count_only_in_the_field_of_view() -> None:
    field = bent(24, outside=3)
    inner = nib.Nifti1Image(np.empty((30, 30, 30), np.float32), from_matvec(np.eye(3) * 2, np.full(3, -29)))
    inverse, left_mm = field.inverse(inner)
    assert left_mm < INVERSE_TOLERANCE_MM
    points = np.random.default_rng(1).uniform(-29, 29, size=(200, 3))
    moved = points + inverse.at(points)
    assert np.abs(moved + field.at(moved) - points).max() < 0.1
    assert field.inverse(lattice_image(field))[1] > 1


@pytest.mark.parametrize("inside", [False, True])
def test_an_image_with_folds_is_corrected_and_told(inside: bool, tmp_path: Path) -> None:
    """Folds beyond the image change nothing; folds within cost only the way back."""
    affine = from_matvec(np.eye(3) * 2, np.full(3, -49 if inside else -29))
    shape = (50, 50, 50) if inside else (30, 30, 30)
    grid_phantom(affine, shape).to_filename(tmp_path / "scan.nii.gz")
    bent(24, outside=3).to_image().to_filename(tmp_path / "scanner.nii.gz")
    interface = GradientUnwarp(
        in_file=str(tmp_path / "scan.nii.gz"), coefficients=str(tmp_path / "scanner.nii.gz"), warnings=["known before"]
    )
    outputs = interface.run(cwd=str(tmp_path)).outputs
    assert nib.load(outputs.inverse_file).shape == (24, 24, 24, 1, 3)
    told = [warning for warning in outputs.record["Warnings"] if "no inverse" in warning]
    assert outputs.record["Warnings"][0] == "known before"
    assert len(told) == inside
    for warning in told:
        assert warning.startswith("the displacement field of scanner.nii.gz has no inverse in the field of view (")
        assert "mm were left): the transform back to the acquired space is only approximate there" in warning


def test_agrees_with_gradunwarp_within_its_lattice_error(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradunwarp.core.unwarp_resample import Unwarper

    monkeypatch.chdir(tmp_path)  # it writes its field into the working folder
    table = read_coefficients(shared_data / "gradients" / "gradunwarp_coeffs.grad")
    scan = nib.load(shared_data / "bids/sub-bch10/anat/sub-bch10_T1w.nii.gz").slicer[::3, ::3, ::3]
    scan = nib.Nifti1Image(scan.get_fdata(dtype=np.float32), scan.affine)
    scan.to_filename("scan.nii")
    theirs = Unwarper(scan.get_fdata(), scan.affine, "siemens", table, "scan.nii")
    theirs.nojac = True
    theirs.run()
    index = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), axis=-1)
    points = apply_affine(scan.affine, index)
    # Its file holds source positions in FSL's millimetres, the first axis flipped for a right-handed image.
    sources = nib.load("fullWarp_abs.nii.gz").get_fdata() / scan.header.get_zooms()
    if np.linalg.det(scan.affine) > 0:
        sources[..., 0] = scan.shape[0] - 1 - sources[..., 0]
    their_displacement = apply_affine(scan.affine, sources) - points
    field = field_around(scan, table)
    difference = np.linalg.norm(field.at(points) - their_displacement, axis=-1)
    assert np.median(difference) < 0.1  # mm; nine times that in the corners
    # Its lattice of 60 points is taken to be 60 steps long, which has 59: so it looks this much too far.
    to_scanner = np.array(PATIENT_POSITIONS["HFS"], dtype=float)
    stretched = (points @ to_scanner.T + 300) * 60 / 59 - 300
    wrong = evaluate(table, stretched @ to_scanner)
    explained = np.linalg.norm(wrong - their_displacement, axis=-1)
    assert explained.max() < 0.03
    moved = unwarp(scan, field, tmp_path, intensity=False).image.get_fdata()
    level = np.percentile(scan.get_fdata(), 99)
    inner = (slice(4, -4),) * 3
    assert np.sqrt(np.mean((moved - theirs.out)[inner] ** 2)) < 0.05 * level
