"""Segmentation: classes of FreeSurfer maps, synthetic heads, the training, and inference on any grid."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.segmentation import inference
from moesr_bids.segmentation.brain import dice
from moesr_bids.segmentation.labels import from_freesurfer, volumes_ml
from moesr_bids.segmentation.network import Segmenter, SegmenterShape
from moesr_bids.segmentation.structures import BRAIN, CSF, EXTRACEREBRAL, MIRRORED, STRUCTURES
from moesr_bids.segmentation.weights import read_segmenter
from moesr_bids.training.distillation import ONE_STAGE
from moesr_bids.training.head_examples import HeadExamples
from moesr_bids.training.head_images import RandomImage, _sampling
from moesr_bids.training.heads import RandomHead, load_head_map
from moesr_bids.training.recipe import recipe_from
from moesr_bids.training.segmenter import segmentation_parts

ZOOM = 4.0
NAMES = {structure.name: structure.index for structure in STRUCTURES}
SETTINGS = {
    "kind": "segmentation",
    "network": {"features": [4, 4, 8, 8, 8, 4], "zoom": ZOOM},
    "patch": 64,
    "margin": 0,
    "batch": 1,
    "synthetic": 0.5,
    "reuse": 4,
    "learning_rate": 1.0e-2,
    "weight_decay": 0.0,
    "warmup": 2,
    "decay": 0.5,
    "ema": 0.9,
    "clip": 1.0,
    "loss": {},
}


def freesurfer_map() -> np.ndarray:
    """Return a head of ellipsoids with FreeSurfer numbers, RAS, voxels of `ZOOM` mm."""
    x, y, z = (np.arange(n) - (n - 1) / 2 for n in (44, 52, 44))
    x, y, z = np.meshgrid(x, y, z, indexing="ij")
    depth = np.sqrt((x / 19) ** 2 + (y / 23) ** 2 + (z / 19) ** 2)
    labels = np.select([depth < 0.2, depth < 0.55, depth < 0.75, depth < 0.85, depth < 1.0], [4, 2, 3, 24, 507], 0)
    right = {4: 43, 2: 41, 3: 42}
    for left, other in right.items():
        labels[(labels == left) & (x > 0)] = other
    labels[((labels == 2) | (labels == 41)) & (z < -8)] = 16
    return labels.astype(np.int16)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    affine = np.diag([-ZOOM, ZOOM, ZOOM, 1.0])
    for name in ("sub-01", "sub-02"):
        # Stored from right to left: loading turns it round.
        nib.Nifti1Image(freesurfer_map()[::-1], affine).to_filename(folder / f"{name}_dseg.nii.gz")
    return folder


def test_classes_of_a_freesurfer_map() -> None:
    raw = freesurfer_map()
    raw[0, 0, 0] = 24  # fluid far away from the brain
    raw[20, 26, 30] = 251  # corpus callosum, left of the middle
    raw[23, 26, 30] = 251
    classes = from_freesurfer(raw, (ZOOM,) * 3)
    assert classes[0, 0, 0] == EXTRACEREBRAL
    assert STRUCTURES[classes[20, 26, 30]].name == "left white matter"
    assert STRUCTURES[classes[23, 26, 30]].name == "right white matter"
    mirrored = np.asarray(MIRRORED)[from_freesurfer(freesurfer_map(), (ZOOM,) * 3)[::-1]]
    assert np.array_equal(mirrored, from_freesurfer(freesurfer_map(), (ZOOM,) * 3))
    volumes = volumes_ml(classes, ZOOM**3 / 1000)
    assert volumes["brain"] == pytest.approx(np.isin(classes, BRAIN).sum() * ZOOM**3 / 1000)
    with pytest.raises(ValueError, match="no FreeSurfer labels"):
        from_freesurfer(raw - 1, (ZOOM,) * 3)


def test_a_map_with_merged_sides_is_divided_and_its_sulci_are_filled() -> None:
    raw = freesurfer_map()
    for left, right in ((4, 43), (2, 41), (3, 42)):
        raw[raw == right] = left
    raw[(raw == 24) | (raw == 507)] = 0
    raw[22, :, 33] = 0  # a fissure
    classes = from_freesurfer(raw, (ZOOM,) * 3)
    left, right = (np.isin(classes, [s.index for s in STRUCTURES if s.side == side]) for side in ("left", "right"))
    assert left.sum() == pytest.approx(right.sum(), rel=0.05)
    assert np.argwhere(left)[:, 0].max() < np.argwhere(right)[:, 0].min()
    assert classes[22, 26, 33] == CSF


def test_an_example_is_the_same_for_the_same_number(maps: Path) -> None:
    head = load_head_map(maps / "sub-01_dseg.nii.gz")
    recipe = recipe_from(SETTINGS)
    one, other = (HeadExamples([head], recipe, seed=3, device=torch.device("cpu")) for _ in range(2))
    other.batch(0)
    for number in (5, 17):
        first, second = one.batch(number), other.batch(number)
        assert torch.equal(first.channels, second.channels)
        assert torch.equal(first.sharp, second.sharp)
        assert torch.allclose(first.sharp.sum(dim=1), torch.ones(1, 64, 64, 64))
    assert not torch.equal(one.batch(5).channels, one.batch(6).channels)


@pytest.mark.parametrize("wish", ["bare", "defaced", "cut", "cavity", "lesions", "thick", "air"])
def test_what_is_done_to_an_image(maps: Path, wish: str) -> None:
    head = load_head_map(maps / "sub-01_dseg.nii.gz")
    nothing = dict.fromkeys(("bare", "defaced", "cut", "cavity", "lesions", "thick", "air", "shading"), 0.0)
    drawn = RandomHead(turned=0.0).draw(head, 48, ZOOM, np.random.default_rng(0), torch.device("cpu"))
    plain, changed = (
        RandomImage(**{**nothing, **some}).draw(drawn, ZOOM, np.random.default_rng(4)) for some in ({}, {wish: 1.0})
    )
    for example in (plain, changed):
        assert torch.isfinite(example.image).all()
        assert torch.allclose(example.classes.sum(dim=0), torch.ones(48, 48, 48))
    before, after = (example.classes[list(BRAIN)].sum() for example in (plain, changed))
    if wish == "cut":
        assert 0.4 * before < after < before
    else:
        assert torch.isclose(before, after)
    skulls = [example.classes[EXTRACEREBRAL].sum() for example in (plain, changed)]
    if wish == "bare":
        assert skulls[1] < 0.5 * skulls[0]
    if wish == "cavity":
        assert changed.classes[CSF].sum() > plain.classes[CSF].sum()
    assert not torch.equal(plain.image, changed.image)


def test_slices_average_and_are_interpolated() -> None:
    down, up = _sampling(64, 5.0, 4.0, 0.5)
    np.testing.assert_allclose(down.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(up.sum(axis=1), 1, atol=1e-6)
    ramp = np.arange(64.0)
    inner = slice(6, 56)
    np.testing.assert_allclose((up @ (down @ ramp))[inner], ramp[inner], atol=1e-4)


def test_the_loss_falls_on_an_example(maps: Path) -> None:
    recipe, processor = recipe_from({**SETTINGS, "patch": 64}), torch.device("cpu")
    examples, objective = segmentation_parts(
        recipe, [load_head_map(maps / "sub-01_dseg.nii.gz")], seed=0, device=processor
    )
    torch.manual_seed(0)
    network, batch = objective.build(None).train(), examples.batch(0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss, _ = objective.loss(network, batch, (), ONE_STAGE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_training_resumes_and_writes_weights(maps: Path, tmp_path: Path) -> None:
    recipe, data, out = tmp_path / "tiny.yml", tmp_path / "bids", tmp_path / "out"
    (data / "sub-09").mkdir(parents=True)
    recipe.write_text(json.dumps({**SETTINGS, "patch": 64, "kept_out": ["sub-02"]}))
    command = ["train", "--data", str(data), "--labels", str(maps), "--recipe", str(recipe), "--out", str(out)]
    assert main([*command, "--steps", "2"]) == 0
    first = read_segmenter(out / "weights.safetensors")[0].state_dict()
    assert main([*command, "--steps", "4"]) == 0
    network, weights = read_segmenter(out / "weights.safetensors")
    assert not all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
    assert weights.card["data"]["kept_out"] == ["sub-02_dseg"]
    assert weights.card["data"]["participants"] == ["sub-01"]
    assert weights.card["training"]["steps"] == 4
    assert [point["step"] for point in weights.card["learning_curve"]] == [2, 4]
    assert set(weights.card["dice"]) >= {"sub-02_dseg_plain_brain", "sub-02_dseg_slices_cortex"}
    assert network.shape.zoom == ZOOM


def test_a_map_to_be_kept_out_must_be_there(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bids").mkdir()
    recipe = tmp_path / "tiny.yml"
    recipe.write_text(json.dumps({**SETTINGS, "kept_out": ["sub-03"]}))
    command = ["train", "--data", str(tmp_path / "bids"), "--labels", str(maps), "--recipe", str(recipe)]
    assert main([*command, "--out", str(tmp_path / "out"), "--steps", "1"]) != 0
    assert "no label map of 03" in capsys.readouterr().err


class _Knows(Segmenter):
    """A network that tells the brain by its intensity, for what lies around the network."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, len(STRUCTURES), *image.shape[2:]), -30.0)
        logits[:, 0], logits[:, NAMES["left white matter"]] = 0.0, 8 * (image[:, 0] - 0.5)
        return logits


class _Blind(Segmenter):
    """A network that sees background alone."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, len(STRUCTURES), *image.shape[2:]), -30.0)
        logits[:, 0] = 0.0
        return logits


def oblique_ball(shape: tuple[int, int, int], zooms: tuple[float, float, float]) -> tuple[nib.Nifti1Image, np.ndarray]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -10, 95), degrees=True).as_matrix() @ np.diag(zooms)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + (3, -11, 7)
    world = nib.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T)
    soft = 0.5 + (62 - np.linalg.norm(world - (5, -8, 4), axis=1)) / 6
    soft = np.clip(soft, 0, 1).reshape(shape).astype(np.float32)
    return nib.Nifti1Image(100 * soft, affine), soft > 0.5


@pytest.mark.parametrize(
    ("shape", "zooms"), [((150, 160, 140), (1.1, 1.0, 1.2)), ((180, 170, 30), (0.9, 0.9, 5.5))], ids=["thin", "thick"]
)
def test_masks_are_on_the_grid_of_the_image(shape: tuple[int, int, int], zooms: tuple[float, float, float]) -> None:
    image, truth = oblique_ball(shape, zooms)
    network = _Knows(SegmenterShape(features=(4, 4, 4, 4, 4, 4)))
    found = inference.look(image, network)
    assert found.stripped
    assert dice(found.brain, truth) > 0.97
    assert found.head[found.brain].all()
    labels = inference.label(image, network, truth)
    assert np.array_equal(np.isin(labels, BRAIN), truth)
    shares = inference.look_within(image, network, truth)
    np.testing.assert_allclose(shares.values.sum(axis=0), 1, atol=1e-5)
    volume = shares.brain.sum() * abs(np.linalg.det(shares.affine[:3, :3]))
    assert volume == pytest.approx(truth.sum() * abs(np.linalg.det(image.affine[:3, :3])), rel=0.02)


def test_no_brain_is_an_error() -> None:
    image, _ = oblique_ball((40, 40, 40), (4.0, 4.0, 4.0))
    with pytest.raises(ImageError, match="no brain"):
        inference.look(image, _Blind(SegmenterShape(features=(4, 4, 4, 4, 4, 4))))


def test_a_scan_keeps_its_tissue(maps: Path, tmp_path: Path) -> None:
    scan = tmp_path / "sub-01_T1w.nii.gz"
    raw = nib.load(maps / "sub-01_dseg.nii.gz")
    nib.Nifti1Image(100 * np.isin(np.asarray(raw.dataobj), (2, 41)).astype(np.float32), raw.affine).to_filename(scan)
    head = load_head_map(maps / "sub-01_dseg.nii.gz", scan)
    drawn = RandomHead(turned=0.0).draw(head, 48, ZOOM, np.random.default_rng(0), torch.device("cpu"))
    images = RandomImage(cavity=1.0, lesions=1.0, bare=0.0, defaced=0.0, air=0.0, cut=0.0, thick=0.0, shading=0.0)
    example = images.draw(drawn, ZOOM, np.random.default_rng(1), real=1.0)
    white = sum(example.classes[NAMES[f"{side} white matter"]] for side in ("left", "right"))
    assert float(example.image[0][white > 0.99].mean()) > 0.8
    assert float(example.image[0][white < 0.01].mean()) < 0.1
