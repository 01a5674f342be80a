"""The student: its weights, independence of windows, guidance, uncertainty, and sharp input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks.degrade import all_cases, degrade
from benchmarks.truths import load_truths
from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.sr import windows
from moesr_bids.sr.calibration import LEVELS, ErrorRatios
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.metrics import psnr
from moesr_bids.sr.models import get_model, model_names, weights_sha256
from moesr_bids.sr.models.acquisition import CONDITIONS, GUIDANCE, acquisition_vector, axis_order, typical_acquisitions
from moesr_bids.sr.models.inputs import head_weight
from moesr_bids.sr.models.layers import FACTOR, depth_to_space, space_to_depth
from moesr_bids.sr.models.network import INPUTS, NetworkShape, ResidualNetwork, network_output
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.weights import PACKAGED, Weights, write_weights


def brainlike(shape: tuple[int, int, int] = (54, 60, 48), noise: float = 0.0) -> nib.Nifti1Image:
    """Folded layers in an ellipsoid: background, cortex, white matter, ventricle."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(i**2 + j**2 + k**2) + 0.06 * np.sin(9 * i + 5 * j) * np.cos(8 * k - 3 * j)
    truth = 70.0 * (radius < 0.85) + 40.0 * (radius < 0.68) - 80.0 * (radius < 0.22)
    data = ndimage.gaussian_filter(truth, 0.6)
    random = np.random.default_rng(0)
    data = np.hypot(data + random.normal(scale=noise, size=shape), random.normal(scale=noise, size=shape))
    return nib.Nifti1Image(data.astype(np.float32), np.diag([-1.0, 1.0, 1.0, 1.0]))


def thick(noise: float = 2.0, shape: tuple[int, int, int] = (54, 60, 48)) -> nib.Nifti1Image:
    case = next(case for case in all_cases() if case.name == "slices4k")
    return degrade(brainlike(shape=shape), case, noise, seed=0)


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """Weights of a small network with random output: whatever it says must not depend on windows or flips."""
    torch.manual_seed(0)
    network = ResidualNetwork(NetworkShape(channels=8, blocks=2, embedding=8, kernels=2, expansion=1.5))
    for layer in (network.tail, *(block.modulate for block in network.body)):
        torch.nn.init.normal_(layer.weight, std=0.05)
    path = tmp_path / "weights.safetensors"
    write_weights(path, network, {"temperature": {"all": 1.5, "T1w": 2.0}, "guidance": ["log_bias"]})
    return path


def test_the_student_comes_with_weights_and_a_card() -> None:
    assert "student" in model_names()
    weights = Weights.read(PACKAGED / "student.safetensors")
    assert weights_sha256("student") == get_model("student").card.weights_sha256 == weights.sha256
    parameters = sum(p.numel() for p in weights.network(torch.device("cpu")).parameters())
    assert parameters < 4_000_000
    card = weights.card
    assert not {"sub-bert_T1w", "sub-seeg_T1w", "sub-ljubms07_FLAIR"} & set(card["data"]["scans"])
    assert set(card["coverage"]["T1w"]) == {str(level) for level in LEVELS}
    assert card["training"]["steps"] > 0
    assert set(card["validation"]) == {"kspace2", "slices3", "slices4", "slices5"}


def test_weights_that_are_not_what_their_card_says_are_refused(learned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(learned, other)
    with pytest.raises(ValueError, match="card"):
        get_model(str(other))
    shutil.copy(learned.with_suffix(".json"), other.with_suffix(".json"))
    assert get_model(str(other)).card.uncertainty
    other.write_bytes(other.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="not the file that its card"):
        Weights.read(other)
    facts = json.loads(learned.with_suffix(".json").read_text())
    facts["network"]["channels"] = 16
    learned.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="not of the network"):
        Weights.read(learned).network(torch.device("cpu"))
    facts["network"]["of the future"] = 1
    learned.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="this version does not know"):
        get_model(str(learned))


def test_space_to_depth_is_undone() -> None:
    volume = torch.randn(2, 3, 8, 6, 10)
    cells = space_to_depth(volume)
    assert cells.shape == (2, 24, 4, 3, 5)
    torch.testing.assert_close(depth_to_space(cells), volume, rtol=0, atol=0)


def test_network_sees_no_further_than_it_says() -> None:
    shape = NetworkShape(channels=8, blocks=1, embedding=8)
    network = ResidualNetwork(shape)
    torch.nn.init.normal_(network.tail.weight)
    reach = shape.receptive_field
    n = 4 * reach
    channels = torch.zeros(1, INPUTS + len(GUIDANCE), n, n, n)
    changed = channels.clone()
    changed[..., n // 2, n // 2, n // 2] = 1.0
    vector = torch.zeros(1, CONDITIONS)
    with torch.no_grad():
        moved = (network(changed, vector).residual - network(channels, vector).residual)[0, 0].abs() > 0
    touched = torch.nonzero(moved)
    assert len(touched) > 0
    assert int((touched - n // 2).abs().max()) <= reach


def test_a_network_grows_without_changing_what_it_says() -> None:
    torch.manual_seed(0)
    small = ResidualNetwork(NetworkShape(channels=8, blocks=2, embedding=8))
    torch.nn.init.normal_(small.tail.weight, std=0.1)
    torch.nn.init.normal_(small.body[0].modulate.weight, std=0.1)
    large = small.grown(NetworkShape(channels=12, blocks=4, embedding=8, kernels=2, expansion=1.5))
    channels, vector = torch.randn(1, 4, 12, 12, 12), torch.randn(1, CONDITIONS)
    for one, other in zip(small(channels, vector), large(channels, vector), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in large.parameters())
    large(channels, vector).residual.square().mean().backward()
    assert float(large.body[3].second.weight.grad.abs().max()) > 0
    # What is new within a block and in the stream will be read: its weights have gradients.
    assert float(large.body[0].second.weight.grad[:8, 8:].abs().min()) > 0
    assert float(large.body[0].first.weight.grad[:8, 8:].abs().max()) > 0
    assert float(large.tail.weight.grad[:, 8:].abs().max()) > 0
    for smaller in ({"blocks": 1}, {"channels": 4}, {"expansion": 0.5}, {"embedding": 16}):
        with pytest.raises(ValueError, match="cannot grow"):
            small.grown(attrs.evolve(small.shape, **smaller))


def test_the_predicted_scale_is_bounded() -> None:
    """Whatever the network says, the error is at most as large as the brightest tissue: no exp overflows."""
    features = torch.randn(1, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e6
    output = network_output(features, torch.nn.Conv3d(4, 2 * FACTOR**3, 1))
    assert output.log_scale.abs().max() > 0
    assert output.log_scale.exp().max() == 1
    assert output.log_scale.exp().min() > 0


def test_kernels_are_copies_that_come_to_differ() -> None:
    torch.manual_seed(0)
    small = ResidualNetwork(NetworkShape(channels=8, blocks=2, embedding=8))
    torch.nn.init.normal_(small.tail.weight, std=0.1)
    several = small.grown(NetworkShape(channels=8, blocks=2, embedding=8, kernels=4))
    deeper = several.grown(NetworkShape(channels=8, blocks=3, embedding=8, kernels=4))
    channels, vectors = torch.randn(2, 4, 12, 12, 12), torch.randn(2, CONDITIONS)
    for network in (several, deeper):
        for one, other in zip(small(channels, vectors), network(channels, vectors), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="cannot grow"):
        several.grown(NetworkShape(channels=8, blocks=2, embedding=8, kernels=8))
    # An isotropic scan trains the kernels that start for isotropic scans.
    voxel = (2.0, 2.0, 2.0)
    vector = acquisition_vector(PSF.from_acquisition(voxel), voxel, (1, 1, 1), 0.02, (False, False))
    several(channels[:1], vector[None]).residual.square().mean().backward()
    of_kernel = several.body[0].second.weight.grad.unflatten(0, (4, -1)).flatten(1).norm(dim=1)
    assert float(of_kernel[:2].min()) > 10 * float(of_kernel[2:].max())


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_examples_of_a_batch_have_kernels_of_their_own(seed: int) -> None:
    torch.manual_seed(seed)
    network = ResidualNetwork(NetworkShape(channels=8, blocks=1, embedding=8, kernels=3))
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    channels, vectors = torch.randn(3, 4, 8, 8, 8), torch.randn(3, CONDITIONS)
    together = network(channels, vectors)
    for n in range(3):
        for one, other in zip(network(channels[n : n + 1], vectors[n : n + 1]), together, strict=True):
            torch.testing.assert_close(one[0], other[n], rtol=1e-4, atol=1e-5)


def test_typical_acquisitions_are_as_scans_are_described() -> None:
    found = typical_acquisitions(6)
    for number, zooms in ((1, [2**0.9] * 3), (4, [1.0, 1.0, 2**1.9])):
        psf = PSF.from_acquisition(zooms)
        vector = acquisition_vector(psf, zooms, (1, 1, 1), 0.02, (False, False))
        torch.testing.assert_close(found[number, :9], vector[:9], rtol=0, atol=1e-5)


@given(angles=st.tuples(*[st.floats(-40, 40)] * 3))
@settings(deadline=None)
def test_the_angle_of_the_head_decides_nothing(angles: tuple[float, float, float]) -> None:
    for zooms in ((1.0, 1.0, 1.0), (1.0, 1.0, 1.5), (0.9, 3.0, 0.9)):
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(zooms)
        seen = nib.affines.voxel_sizes(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), turned.astype(np.float32)).affine)
        assert axis_order(seen, (0.7,) * 3) == axis_order(zooms, (0.7,) * 3)
        assert PSF.from_acquisition(seen) == PSF.from_acquisition(zooms)


@given(zooms=st.permutations([0.6, 1.0, 3.0]), target=st.floats(0.5, 1.2))
def test_the_slice_axis_comes_last_and_fine_axes_keep_their_order(zooms: list[float], target: float) -> None:
    order = axis_order(zooms, (target,) * 3)
    assert zooms[order[2]] == 3.0
    if target >= 1.0:
        assert order[0] < order[1]
    vector = acquisition_vector(PSF.from_acquisition(zooms), zooms, (target,) * 3, 0.02, (False, False))
    assert float(vector[6]) == pytest.approx(np.log2(3.0 / target))


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])  # in-plane axes keep their order
def test_slices_along_another_axis_have_the_same_result(order: tuple[int, int, int], learned: Path) -> None:
    image = thick(shape=(36, 40, 32))
    turned = nib.Nifti1Image(np.transpose(image.get_fdata(dtype=np.float32), order), image.affine[:, [*order, 3]])
    one, other = (
        super_resolve(scan, SROptions(resolution=1.0, model=str(learned), contrast="T1w")) for scan in (image, turned)
    )
    for wanted, found in ((one.image, other.image), (one.uncertainty, other.uncertainty)):
        np.testing.assert_allclose(
            np.transpose(wanted.get_fdata(), order), found.get_fdata(), atol=1e-3 * float(wanted.get_fdata().max())
        )


@pytest.mark.parametrize("model", ["student", "random"])
def test_result_does_not_depend_on_the_windows(model: str, learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(learned) if model == "random" else model
    image = thick(shape=(108, 60, 48))
    whole = super_resolve(image, SROptions(resolution=1.0, model=name, threads=1))
    monkeypatch.setattr(windows, "CPU_WINDOW_VOXELS", 270_000)
    cut = super_resolve(image, SROptions(resolution=1.0, model=name, threads=1))
    monkeypatch.undo()
    monkeypatch.setattr(windows, "LEAST_CPU_WINDOW_VOXELS", 270_000)
    assert "MemoryLimitGB" not in whole.record
    fitted = super_resolve(image, SROptions(resolution=1.0, model=name, threads=1, memory_gb=0.1))
    assert fitted.record["MemoryLimitGB"] == 0.1
    assert fitted.record["Windows"] == cut.record["Windows"] > whole.record["Windows"] == 1
    assert cut.uncertainty is not None
    assert whole.uncertainty is not None
    for one, other in ((whole.image, cut.image), (whole.uncertainty, cut.uncertainty)):
        difference = np.abs(one.get_fdata() - other.get_fdata()).max()
        assert difference < 1e-3 * np.percentile(whole.image.get_fdata(), 99)


def test_averaging_makes_the_model_equivariant_to_flips(learned: Path) -> None:
    image = thick()
    flipped = nib.Nifti1Image(np.ascontiguousarray(image.get_fdata(dtype=np.float32)[::-1]), image.affine)
    results = [
        super_resolve(scan, SROptions(resolution=1.0, model=str(learned), averaged=True, threads=1))
        for scan in (image, flipped)
    ]
    one, other = (result.image.get_fdata() for result in results)
    inside = brainlike().get_fdata() > 20  # where the network's part is blended out, cells are not symmetric
    np.testing.assert_allclose(one[inside], other[::-1][inside], atol=1e-3 * one.max())
    assert [result.record["Flips"] for result in results] == [8, 8]


def test_guidance_reaches_the_network_and_is_checked(learned: Path) -> None:
    image = thick()
    field = nib.Nifti1Image(np.full(image.shape, 0.2, np.float32), image.affine)
    plain = super_resolve(image, SROptions(resolution=1.0, model=str(learned), threads=1))
    guided = super_resolve(
        image, SROptions(resolution=1.0, model=str(learned), threads=1), guidance={"log_bias": field}
    )
    assert plain.record["Guidance"] == []
    assert guided.record["Guidance"] == ["log_bias"]
    assert np.abs(plain.image.get_fdata() - guided.image.get_fdata()).max() > 0
    # A map of zeros says that there is no field; a missing map says nothing: the network can tell them apart.
    empty = nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine)
    even = super_resolve(image, SROptions(resolution=1.0, model=str(learned), threads=1), guidance={"log_bias": empty})
    assert np.abs(plain.image.get_fdata() - even.image.get_fdata()).max() > 0
    same = ("PSF", "NoisePercent", "OutputShape", "Windows", "UncertaintyCalibration", "RandomSeed")
    for key in same:
        assert plain.record.get(key) == guided.record.get(key) == even.record.get(key)
    with pytest.raises(ValueError, match="no map"):
        super_resolve(image, SROptions(resolution=1.0, model="classical"), guidance={"log_bias": field})
    with pytest.raises(ValueError, match="not trained with the guidance map 'log_jacobian' but with log_bias"):
        super_resolve(image, SROptions(resolution=1.0, model=str(learned)), guidance={"log_jacobian": field})
    shifted = nib.Nifti1Image(field.get_fdata(), nib.affines.from_matvec(image.affine[:3, :3], [3, 0, 0]))
    with pytest.raises(ImageError, match="not on the grid"):
        super_resolve(image, SROptions(resolution=1.0, model=str(learned)), guidance={"log_bias": shifted})


def test_uncertainty_is_calibrated_by_contrast_and_has_the_images_units(learned: Path) -> None:
    image = thick()
    unknown, t1w = (
        super_resolve(image, SROptions(resolution=1.0, model=str(learned), contrast=contrast, threads=1))
        for contrast in ("", "T1w")
    )
    assert unknown.uncertainty is not None
    assert t1w.uncertainty is not None
    std = unknown.uncertainty.get_fdata()
    assert unknown.uncertainty.shape == unknown.image.shape
    assert std.min() > 0
    head = brainlike().get_fdata() > 20
    np.testing.assert_allclose(t1w.uncertainty.get_fdata()[head], std[head] * 2.0 / 1.5, rtol=1e-3)
    brighter = nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 10, image.affine)
    scaled = super_resolve(brighter, SROptions(resolution=1.0, model=str(learned), threads=1))
    assert scaled.uncertainty is not None
    np.testing.assert_allclose(scaled.uncertainty.get_fdata(), 10 * std, rtol=1e-2)


def test_command_takes_the_contrast_from_the_name(learned: Path, tmp_path: Path) -> None:
    used = {}
    for name, options in (("sub-1_T1w", []), ("scan", []), ("sub-1_FLAIR", ["--contrast", "T1w"])):
        nib.save(thick(), tmp_path / f"{name}.nii.gz")
        outputs = [str(tmp_path / "out.nii.gz"), "--record", str(tmp_path / "out.json")]
        arguments = [str(tmp_path / f"{name}.nii.gz"), *outputs, "--model", str(learned), "--resolution", "1", *options]
        assert main(["sr", *arguments]) == 0
        used[name] = json.loads((tmp_path / "out.json").read_text())["UncertaintyCalibration"]
    assert [used[name]["Temperature"] for name in used] == [2.0, 1.5, 2.0]
    assert [used[name]["Contrasts"] for name in used] == [["T1w"]] * 3


def test_error_ratios_find_the_factor_and_the_coverage() -> None:
    random = np.random.default_rng(0)
    std = random.uniform(1, 3, size=(40, 40, 40))
    error, mask = random.normal(size=std.shape) * std * 1.7, np.ones(std.shape, dtype=bool)
    ratios = ErrorRatios.of(error, std, mask)
    assert ratios.temperature() == pytest.approx(1.7, rel=0.02)
    for level, share in ratios.coverage(1.7).items():
        assert share == pytest.approx(int(level) / 100, abs=0.01)
    again = ErrorRatios.of(error, 1.7 * std, mask, temperature=1.7)
    np.testing.assert_allclose(again.counts, ratios.counts, atol=1e-4)


@pytest.mark.parametrize("model", ["student", "moediff"])
def test_sharp_input_is_left_alone(model: str) -> None:
    sigma = 2.0
    truth, scan = brainlike().get_fdata(), brainlike(noise=sigma)
    result = super_resolve(scan, SROptions(resolution=1.0, model=model, threads=1))
    out = result.image.get_fdata()
    inside = ndimage.binary_erosion(truth > 20, iterations=2)
    change = out[inside] - scan.get_fdata()[inside]
    assert np.sqrt(np.mean(change**2)) < 1.2 * sigma
    assert psnr(truth, out, inside) > psnr(truth, scan.get_fdata(), inside)
    assert result.record["DataConsistency"]["Model"]["ResidualStd"] <= 1.1


@pytest.mark.parametrize("name", ["kspace2", "slices4k"])
def test_student_beats_classical_and_cubic_on_a_real_scan(shared_data: Path, name: str) -> None:
    truth = next(load_truths(shared_data / "bids", shared_data / "splits.tsv", "validation", ["bert"]))
    truth = truth.cropped(96)
    case = next(case for case in all_cases() if case.name == name)
    low = degrade(truth.image, case, 0.02 * truth.level, seed=0)
    found = {
        model: psnr(
            truth.image.get_fdata(),
            super_resolve(low, SROptions(resolution=1.0, model=model, threads=1)).image.get_fdata(),
            truth.mask,
        )
        for model in ("student", "classical", "cubic")
    }
    assert found["student"] > found["classical"] + 0.1
    assert found["student"] > found["cubic"] + 1.0


def test_acquisition_vector_is_about_octaves_and_ignores_finer_input() -> None:
    psf = PSF.parse("kspace,kspace,gaussian:5.6", (0.35, 1.4, 5.6))
    vector = acquisition_vector(psf, (0.35, 1.4, 5.6), (0.7, 0.7, 0.7), 0.04, (True, False))
    assert vector.shape == (CONDITIONS,)
    assert vector.tolist() == pytest.approx([0, 0, 1, 1, 1, 1, 3, 3, -1, 1, 1, -1])


def test_head_weight_keeps_the_head_and_drops_specks() -> None:
    image = torch.zeros(64, 64, 64)
    image[24:40, 24:40, 24:40] = 1.0
    image[60, 60, 60] = 1.0
    weight = head_weight(image)
    assert float(weight[24:40, 24:40, 24:40].min()) == 1.0
    assert float(weight[56:, 56:, 56:].max()) == 0.0
    assert float(weight[:8].max()) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "classical", "--uncertainty", "std.nii.gz"], "no use for --uncertainty"),
        (["--model", "cubic", "--test-time-averaging"], "no use for --test-time-averaging"),
        (["--model", "missing.safetensors"], "cannot be read"),
        (["--uncertainty", "std.txt"], "ends in"),
    ],
)
def test_command_refuses_what_a_model_cannot_do(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    nib.save(thick(), "scan.nii.gz")
    assert main(["sr", "scan.nii.gz", "out.nii.gz", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_command_writes_the_uncertainty(tmp_path: Path, learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nib.save(thick(), "scan.nii.gz")
    options = ["sr", "scan.nii.gz", "out.nii.gz", "--resolution", "1", "--model", str(learned), "--omp-nthreads", "1"]
    assert main([*options, "--uncertainty", "std.nii.gz"]) == 0
    assert nib.load("std.nii.gz").shape == nib.load("out.nii.gz").shape


def test_models_are_listed_with_their_figures_and_checked(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(learned)]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{said}" for name in model_names())
    assert weights_sha256("student")[:12] in said
    assert "kspace2: +" in said
    assert f"{learned}: one-step residual network" in said
    assert f"{learned}: one-step" in said
    assert said.count("uncertainty: calibrated on") == 3
    learned.write_bytes(learned.read_bytes()[:-1] + b"x")
    assert main(["models", str(learned)]) == 1
    assert "not the file that its card" in capsys.readouterr().err
