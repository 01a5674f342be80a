"""Scans of a session that are joined: which, their names, the run from raw files to the report, and a second run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest

from benchmarks.phantom import Acquisition, acquire
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.crashes import Crash
from moesr_bids.bids.joining import FIRST_APART, joined_image, with_joined, without_failed
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.resume import known_apart, settings_hash
from moesr_bids.bids.sessions import with_references
from moesr_bids.bids.status import write_status
from moesr_bids.cli.rerun import check, read_recipe
from moesr_bids.config import Settings
from moesr_bids.interfaces.join import JoinScans
from moesr_bids.run.outcomes import forget_what_is_gone, outcome
from moesr_bids.run.timeleft import TimeLeft
from moesr_bids.run.workflow import _join_again
from moesr_bids.sr.joint import APART
from moesr_bids.workflows.base import init_single_subject_wf
from tests.app import (
    expected_files,
    image_files,
    outputs_of,
    plans_of,
    run_app,
    run_here,
    statuses,
    validation_errors,
)
from tests.scans import new_data_set, rigid, save_scan

OPTIONS = ("--device", "cpu", "--sloppy", "--resolution", "2")
JOINED = "sub-01_rec-joined_T1w"


# Of each scan: the axis across its slices, and where the head lies.
STACKS = {"acq-ax": (2, np.eye(4)), "acq-cor": (1, rigid((3, -2, 2), (3, -2, 1)))}


@pytest.fixture(scope="module")
def stacks(shared_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a data set of two orthogonal stacks of a head."""
    folder = tmp_path_factory.mktemp("stacks")
    anat = new_data_set(folder, "stacks")
    truth = nib.load(shared_phantom / "truth/sub-01_T1w.nii.gz")
    for name, (across, position) in STACKS.items():
        zooms = tuple(5.0 if axis == across else 2.0 for axis in range(3))
        metadata = {"MRAcquisitionType": "2D", "SliceThickness": 5.0}
        scan = acquire(truth, Acquisition(participant="01", zooms=zooms, metadata=metadata, seed=3))  # type: ignore[arg-type]
        save_scan(scan, anat / f"sub-01_{name}_T1w", metadata, position)
    return folder


@pytest.fixture(scope="module")
def finished(stacks: Path) -> Path:
    """Output folder of a run of the joined image alone."""
    done = run_app(stacks / "bids", stacks / "out", *OPTIONS, "--join", "only", "--nprocs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return stacks / "out"


def _record(out: Path) -> dict:
    return json.loads((out / f"sub-01/anat/{JOINED.replace('_T1w', '_res-2mm_desc-moesr_T1w')}.json").read_text())


def test_outputs_of_a_joined_image(stacks: Path, finished: Path) -> None:
    plans = plans_of(stacks / "bids", finished, *OPTIONS, "--join", "only")
    assert [plan.image.stem for plan in plans] == [JOINED]
    assert outputs_of(finished) == expected_files(plans)
    assert _record(finished)["Moesr"]["Outputs"] == image_files(plans[0])
    assert validation_errors(finished) == []


def test_scans_are_found_where_they_lie(finished: Path) -> None:
    sidecar = _record(finished)
    assert [source.rpartition("/")[2] for source in sidecar["Sources"]] == [
        f"sub-01_{name}_T1w.nii.gz" for name in STACKS
    ]
    block = sidecar["Moesr"]
    centre = np.zeros(4)
    centre[3] = 1
    for scan in block["Joined"]["Scans"]:
        name = scan["Source"].rpartition("/")[2].removeprefix("sub-01_").removesuffix("_T1w.nii.gz")
        assert scan["Used"], scan
        # The joint image lies as the first scan does, where the head was at the origin.
        apart = np.array(scan["Position"]) @ centre - STACKS[name][1] @ centre
        assert np.linalg.norm(apart) < 0.5, scan
        assert scan["Output"]["ResidualStd"] < 1.5
    assert "desc-scans_T1w.png" in (finished / "sub-01.html").read_text()


def test_the_joined_image_is_nearer_to_the_truth_than_a_scan_alone(
    stacks: Path, shared_phantom: Path, finished: Path
) -> None:
    from nibabel.processing import resample_from_to

    image = nib.load(finished / f"sub-01/anat/{JOINED.replace('_T1w', '_res-2mm_desc-moesr_T1w')}.nii.gz")
    truth = nib.load(shared_phantom / "truth/sub-01_T1w.nii.gz")
    # As a scanner with voxels of 2 mm would see the head: the mean of its eight voxels.
    sharp = truth.get_fdata().reshape(100, 2, 120, 2, 100, 2).mean(axis=(1, 3, 5))
    affine = truth.affine @ nib.affines.from_matvec(np.diag([2, 2, 2]), [0.5, 0.5, 0.5])
    grid = (sharp.shape, affine)
    inside = sharp > 100

    def error(volume: np.ndarray) -> float:
        # N4 leaves a smooth field and a scale: detail is compared.
        from scipy import ndimage

        detail = [np.where(inside, v - ndimage.gaussian_filter(v, 4), 0) for v in (sharp, volume)]
        gain = (detail[0] * detail[1]).sum() / (detail[1] ** 2).sum()
        return float(np.sqrt(np.mean((detail[0] - gain * detail[1])[inside] ** 2)))

    joined = error(resample_from_to(image, grid, order=3).get_fdata())
    scan = nib.load(stacks / "bids/sub-01/anat/sub-01_acq-ax_T1w.nii.gz")
    assert joined < 0.9 * error(resample_from_to(scan, grid, order=3).get_fdata())


def test_a_second_run_does_nothing_and_the_sidecar_tells_how_to_repeat_it(
    stacks: Path, finished: Path, tmp_path: Path
) -> None:
    before = _record(finished)
    done = run_app(stacks / "bids", finished, *OPTIONS, "--join", "only", "--nprocs", "2")
    assert done.returncode == 0
    assert "0 to process, 1 already complete" in done.stdout + done.stderr
    assert _record(finished) == before
    assert statuses(finished)[JOINED]["state"] == "skipped"
    dry = run_here(stacks / "bids", finished, *OPTIONS, "--join", "auto", "--dry-run")
    assert f"{JOINED}: complete, would be skipped" in dry.stdout
    assert "sub-01_acq-cor_T1w: 100 x 48 x 100" in dry.stdout  # the scans alone are not there yet
    recipe = read_recipe(finished / f"sub-01/anat/{JOINED.replace('_T1w', '_res-2mm_desc-moesr_T1w')}.json", None)
    plan = recipe.plan(tmp_path / "out", tmp_path / "work")
    check(plan, recipe.record)
    assert [scan.image.stem for scan in plan.scans] == [f"sub-01_{name}_T1w" for name in STACKS]
    assert str(plan.main.path) in _record(finished)["Moesr"]["Outputs"]


def _image(stem: str, **metadata: object) -> RawImage:
    session = f"ses-{stem.split('ses-')[1].split('_')[0]}/" if "ses-" in stem else ""
    return RawImage(path=Path(f"/data/sub-1/{session}anat/{stem}.nii.gz"), root=Path("/data"), metadata=metadata)


def _joined(*images: RawImage, mode: str = "auto") -> dict[str, list[str]]:
    found, _ = with_joined(images, mode)
    return {image.stem: [scan.stem for scan in image.scans] for image in found if image.scans}


def test_scans_that_differ_in_acquisition_or_repeat_are_joined() -> None:
    images = [_image(f"sub-1_acq-{name}_T2w") for name in ("ax", "cor")] + [_image("sub-1_acq-ax_run-2_T2w")]
    assert list(_joined(*images)) == ["sub-1_rec-joined_T2w"]
    assert _joined(*images, mode="off") == {}
    kept, _ = with_joined([*images, _image("sub-1_T1w")], "only")
    assert [image.stem for image in kept] == ["sub-1_T1w", "sub-1_rec-joined_T2w"]


def test_common_entities_stay_in_the_name() -> None:
    runs = [_image(f"sub-1_ses-a_acq-x_rec-norm_run-{n}_T1w") for n in (1, 2)]
    assert list(_joined(*runs)) == ["sub-1_ses-a_acq-x_rec-normjoined_T1w"]


@pytest.mark.parametrize(
    "stems",
    [
        ("sub-1_ses-a_T1w", "sub-1_ses-b_T1w"),
        ("sub-1_T1w", "sub-1_T2w"),
        ("sub-1_rec-a_T1w", "sub-1_rec-b_T1w"),
        ("sub-1_ce-gd_T1w", "sub-1_T1w"),
        ("sub-1_echo-1_T2w", "sub-1_echo-2_T2w"),
    ],
    ids=["sessions", "contrasts", "reconstructions", "contrast agent", "echoes"],
)
def test_other_scans_are_not_joined(stems: tuple[str, ...]) -> None:
    assert _joined(*map(_image, stems)) == {}


def test_scans_whose_sidecars_tell_of_another_contrast_stay_apart() -> None:
    names = [("a", 0.1), ("b", 0.11), ("c", 0.02)]
    images = [_image(f"sub-1_acq-{name}_T2w", EchoTime=echo) for name, echo in names]
    found, notes = with_joined(images, "auto")
    assert [scan.stem for image in found for scan in image.scans] == ["sub-1_acq-a_T2w", "sub-1_acq-b_T2w"]
    assert notes == [
        "sub-1_acq-c_T2w is not joined with sub-1_acq-a_T2w: EchoTime of 0.1 and 0.02 s is another contrast"
    ]


def test_a_name_that_is_taken_is_left_alone() -> None:
    images = [_image(f"sub-1{name}_T2w") for name in ("_run-1", "_run-2", "_rec-joined")]
    found, notes = with_joined(images, "auto")
    assert not any(image.scans for image in found)
    assert notes == ["sub-1_rec-joined_T2w is not joined: there is an image of this name"]


@pytest.fixture
def scans(tmp_path: Path) -> list[RawImage]:
    """Four scans of which the headers alone are read."""
    anat = tmp_path / "bids/sub-01/anat"
    anat.mkdir(parents=True)
    paths = [anat / f"sub-01_{name}_T1w.nii.gz" for name in ("acq-ax_run-1", "acq-ax_run-2", "acq-cor", "acq-sag")]
    for path in paths:
        nib.Nifti1Image(np.zeros((40, 48, 8), dtype=np.int16), np.diag([5, 5, 25, 1])).to_filename(path)
    return with_references([RawImage(path=path, root=tmp_path / "bids") for path in paths])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        analysis_level="participant",
    )


def test_a_scan_that_failed_is_left_out_under_the_same_name(scans: list[RawImage], settings: Settings) -> None:
    image = joined_image(scans)
    fewer = without_failed(image, {scans[0]: "it is broken"})
    assert fewer == image
    assert fewer.scans == tuple(scans[1:])
    assert [scan.problem for scan in fewer.failed] == ["it is broken"]
    assert without_failed(image, dict.fromkeys(scans[1:], "broken")).scans == image.scans
    whole, part = plan_image(image, settings), plan_image(fewer, settings)
    assert whole.main.path == part.main.path
    assert settings_hash(whole, "0") != settings_hash(part, "0")


def test_scans_serve_a_joined_image_whether_or_not_they_are_images_of_the_run(
    scans: list[RawImage], settings: Settings
) -> None:
    plan = plan_image(joined_image(scans), settings)
    alone = init_single_subject_wf(participant="01", plans=[plan], use_gpu=False)
    names = alone.list_node_names()
    assert sum(name.endswith(".publish") for name in names) == 1
    assert sum(name.endswith("sr_wf.super_resolve") for name in names) == 5
    assert sum("register_" in name for name in names) == 1
    assert "Scans of one contrast" in alone.visit_desc()
    assert "N4" in alone.visit_desc()
    beside = init_single_subject_wf(
        participant="01", plans=[*(plan_image(scan, settings) for scan in scans), plan], use_gpu=False
    )
    assert sum(name.endswith(".publish") for name in beside.list_node_names()) == 5
    assert beside.visit_desc().count("N4") == alone.visit_desc().count("N4")


def test_what_scans_take_counts_for_the_image_that_is_joined_from_them_alone(
    scans: list[RawImage], settings: Settings
) -> None:
    image = joined_image(scans)
    plan = plan_image(image, attrs.evolve(settings, join="only"))
    costs = plan.costs_of_scans()
    assert list(costs) == [scan.workflow_name for scan in scans]
    assert plan.seconds == pytest.approx(plan.cost.seconds + sum(cost.seconds for cost in costs.values()))
    assert plan.memory_gb == max(cost.memory_gb for cost in (plan.cost, *costs.values()))
    first = scans[0].workflow_name
    assert costs[first].seconds_of("brain_mask") > 0
    assert costs[first].seconds_of("quality") == plan.cost.seconds_of("brain_mask") == 0
    left = TimeLeft([plan], now=lambda: 0.0)
    left.ended(first, "brain_mask", ran=False)
    assert left.seconds() == pytest.approx(plan.seconds - costs[first].seconds_of("brain_mask"))
    assert plan_image(image, attrs.evolve(settings, join="auto")).costs_of_scans() == {}


def test_outputs_of_a_joined_image_are_named_by_it_or_by_its_scans(scans: list[RawImage], settings: Settings) -> None:
    paths = {output.key: Path(output.path).name for output in plan_image(joined_image(scans), settings).outputs}
    assert paths["moesr"] == "sub-01_rec-joined_res-0p7mm_desc-moesr_T1w.nii.gz"
    assert paths["seen"] == "sub-01_rec-joined_res-0p7mm_desc-seen_T1w.nii.gz"
    key = "residual-sub-01_acq-ax_run-2_T1w"
    assert paths[key] == "sub-01_acq-ax_rec-joined_run-2_desc-residual_T1w.nii.gz"
    assert not {"corrected", "preproc", "residual"} & set(paths)
    assert paths["mask"] == "sub-01_rec-joined_space-joinedT1w_res-0p7mm_desc-brain_mask.nii.gz"
    assert attrs.evolve(settings, join="off").join == "off"


def test_outputs_of_the_step_come_back_from_a_worker(tmp_path: Path) -> None:
    residual = tmp_path / "residual-1.nii.gz"
    residual.touch()
    outputs = JoinScans(sources=["a", "b"])._outputs()
    outputs.residual_1 = str(residual)
    assert pickle.loads(pickle.dumps(outputs)).residual_1 == str(residual)


def _crash(settings: Settings, image: RawImage, step: str, reason: str) -> Crash:
    path = settings.output_dir / "logs/sub-01/crash.txt"
    return Crash(node=f"moesr_wf.sub_01_wf.{image.workflow_name}.{step}", reason=reason, path=path)


def test_scans_that_stay_apart_are_no_failure_and_are_not_compared_again(
    scans: list[RawImage], settings: Settings
) -> None:
    plan = plan_image(joined_image(scans), settings)
    assert known_apart(plan) is None
    crash = _crash(settings, plan.image, "super_resolve", f"super-resolution failed: moesr join: {APART} (why)")
    status = outcome(plan, crash, None)
    assert status.state == "apart"
    write_status(settings.output_dir, status)
    assert known_apart(plan) == status
    forget_what_is_gone(settings, [*scans, plan.image])
    assert known_apart(plan) == status, "its own file is nowhere, those of its scans are there"
    assert known_apart(plan_image(joined_image(scans[:3]), settings)) is None
    assert outcome(plan, attrs.evolve(crash, reason="no memory"), None).state == "failed"


def test_a_scan_that_fails_or_does_not_fit_as_the_first_costs_itself_alone(
    scans: list[RawImage], settings: Settings
) -> None:
    plan = plan_image(joined_image(scans), settings)
    replanned = {scan: scan for scan in scans}
    broken = _crash(settings, scans[2], "conform", "the file is cut short")
    image = _join_again(plan, replanned, {scans[2]: broken}, {scans[2]: broken.reason})
    assert image is not None
    assert image.scans == (*scans[:2], scans[3])
    assert [scan.problem for scan in image.failed] == ["the file is cut short"]
    apart = _crash(settings, plan.image, "super_resolve", f"x: {FIRST_APART}")
    image = _join_again(plan, replanned, {plan.image: apart}, {})
    assert image is not None
    assert image.scans == tuple(scans[1:])
    lost = _crash(settings, plan.image, "super_resolve", "no memory")
    assert _join_again(plan, replanned, {plan.image: lost}, {}) is None
