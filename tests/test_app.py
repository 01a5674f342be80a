"""End to end on a phantom with known truth: the outputs that one command gives a new user."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.demo import compare
from benchmarks.phantom import ACQUISITIONS
from moesr_bids.cli.moesr import main as moesr
from moesr_bids.sr.models import DEFAULT_MODEL, weights_sha256
from tests.app import (
    expected_files,
    files_below,
    image_files,
    outputs_of,
    plans_of,
    run_app,
    run_here,
    statuses,
    validation_errors,
    work_of,
)

TEMPLATE = "MNI152NLin2009aSym"
MAIN_02 = "sub-02/anat/sub-02_res-1mm_desc-moesr_T1w.json"


@pytest.fixture(scope="module")
def phantom(shared_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    shutil.copytree(shared_phantom, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def finished(phantom: Path) -> Path:
    """Output folder of a run at 1 mm on both participants."""
    done = run_app(phantom / "bids", phantom / "out", "--resolution", "1", "--write-graph", "--nprocs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return phantom / "out"


def test_outputs_are_exactly_these(phantom: Path, finished: Path) -> None:
    plans = plans_of(phantom / "bids", finished, "--resolution", "1")
    assert outputs_of(finished) == sorted([*expected_files(plans), "logs/graph.dot"])


def test_tables_have_data_dictionaries(finished: Path) -> None:
    tables = list(finished.rglob("*.tsv"))
    assert {table.name for table in tables} == {"desc-moesr_dseg.tsv", "descriptions.tsv", "status.tsv"}
    for table in tables:
        columns = table.read_text().splitlines()[0].split("\t")
        assert list(json.loads(table.with_suffix(".json").read_text())) == columns
    described = {line.split("\t")[0] for line in (finished / "descriptions.tsv").read_text().splitlines()[1:]}
    used = set(re.findall(r"_(desc-[a-z]+)_", " ".join(name for name in files_below(finished) if "/anat/" in name)))
    assert used <= described


def test_outputs_are_valid_bids(finished: Path) -> None:
    assert validation_errors(finished) == []


def test_uncertainty_comes_with_the_default_model(finished: Path) -> None:
    main = finished / "sub-01/anat/sub-01_res-1mm_desc-moesr_T1w"
    block = json.loads(main.with_suffix(".json").read_text())["Moesr"]
    assert block["Model"] == DEFAULT_MODEL
    image = nib.load(main.with_suffix(".nii.gz"))
    uncertainty = nib.load(str(main.with_suffix(".nii.gz")).replace("moesr", "uncertainty"))
    assert uncertainty.shape == image.shape
    assert float(uncertainty.get_fdata().min()) > 0
    assert block["Guidance"] == ["log_bias"]
    assert block["WeightsSHA256"] == weights_sha256(DEFAULT_MODEL)
    assert 0 < block["Uncertainty"]["MedianPercent"] < 20
    assert block["Software"]["nibabel"] == nib.__version__
    page = (finished / "sub-01.html").read_text()
    assert f"nibabel {nib.__version__}" in page
    assert "sub-01_desc-uncertainty_T1w.png" in page
    assert "on others of this contrast the 50, 80, 90, 95 % intervals held" in page


@pytest.mark.parametrize("acquisition", ACQUISITIONS, ids=lambda acquisition: acquisition.participant)
def test_output_is_nearer_to_the_truth_than_cubic_interpolation(phantom: Path, finished: Path, acquisition) -> None:  # type: ignore[no-untyped-def]
    ours, cubic, ours_ssim, cubic_ssim = compare(finished, phantom / "truth", acquisition.participant, acquisition.seed)
    assert ours > cubic + 0.5
    assert ours_ssim > cubic_ssim


@pytest.mark.parametrize("participant", ["01", "02"])
def test_sidecar_tells_the_truth(phantom: Path, finished: Path, participant: str) -> None:
    anat = finished / f"sub-{participant}" / "anat"
    sidecar = json.loads((anat / f"sub-{participant}_res-1mm_desc-moesr_T1w.json").read_text())
    block = sidecar["Moesr"]
    assert sidecar["Sources"][0] == f"bids:raw:sub-{participant}/anat/sub-{participant}_T1w.nii.gz"
    assert sidecar["SkullStripped"] is True
    raw = nib.load(phantom / "bids" / f"sub-{participant}" / "anat" / f"sub-{participant}_T1w.nii.gz")
    image = nib.load(anat / f"sub-{participant}_res-1mm_desc-moesr_T1w.nii.gz")
    residual = nib.load(anat / f"sub-{participant}_desc-residual_T1w.nii.gz")
    mask = nib.load(anat / f"sub-{participant}_res-1mm_desc-brain_mask.nii.gz")
    assert tuple(block["InputShape"]) == raw.shape == residual.shape
    assert tuple(block["OutputShape"]) == image.shape == mask.shape
    assert np.allclose(image.affine, mask.affine)
    # The phantom's noise is 2 percent of its brightest tissue.
    assert block["NoisePercent"] == pytest.approx(2.0, rel=0.25)
    # Below 1 it explains some of the noise too; above, it would depart from the scan.
    assert 0.6 < block["DataConsistency"]["ResidualStd"] < 1.2
    # Any image agrees with the scan once it is projected: what the model said before that is what may be wrong.
    assert 0.5 < block["DataConsistency"]["Model"]["ResidualStd"] < 1.3
    plans = plans_of(phantom / "bids", finished, "--resolution", "1", "--participant-label", participant)
    assert block["Outputs"] == image_files(plans[0])
    quality = block["ImageQuality"]
    # White matter of the phantom, with the brain stem, varies by its noise of 2 percent and what the bias field leaves.
    assert 12 < quality["Input"]["snr_wm"] < 50
    assert quality["Output"]["snr_wm"] > quality["Input"]["snr_wm"]
    assert quality["Input"]["fber"] > 100  # there is noise outside the brain
    assert {step["Step"] for step in block["Steps"]} >= {"conform", "brain_mask", "n4", "super_resolve", "reportlets"}
    assert all(step["Seconds"] >= 0 and step["PeakMemoryGB"] > 0 for step in block["Steps"])
    expected_psf = {"01": ["kspace"] * 3, "02": ["kspace", "kspace", "gaussian"]}[participant]
    assert [axis["Kind"] for axis in block["PSF"]] == expected_psf


def test_mask_is_the_brain(phantom: Path, finished: Path) -> None:
    for participant in ("01", "02"):
        truth = nib.load(phantom / "truth" / f"sub-{participant}_T1w.nii.gz").get_fdata() > 0
        mask = nib.load(finished / f"sub-{participant}/anat/sub-{participant}_res-1mm_desc-brain_mask.nii.gz")
        found = np.asanyarray(mask.dataobj) > 0
        assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.95


def test_transform_brings_the_brain_into_the_template(phantom: Path, finished: Path) -> None:
    import ants

    from moesr_bids.preproc.images import to_ants
    from moesr_bids.preproc.template import load_template

    mask = load_template().mask
    assert mask is not None
    there = np.asarray(mask.dataobj) > 0
    truth = nib.load(phantom / "truth" / "sub-01_T1w.nii.gz")
    brain = to_ants((truth.get_fdata() > 0).astype(np.float32), truth.affine)
    transform = finished / f"sub-01/anat/sub-01_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5"
    fixed = to_ants(there.astype(np.float32), mask.affine)
    moved = ants.apply_transforms(fixed, brain, [str(transform)], interpolator="linear").numpy() > 0.5
    assert 2 * (moved & there).sum() / (moved.sum() + there.sum()) > 0.95


def test_status_citation_and_settings(finished: Path) -> None:
    rows = statuses(finished)
    assert {name: row["state"] for name, row in rows.items()} == {"sub-01_T1w": "done", "sub-02_T1w": "done"}
    assert all(float(row["seconds"]) > 0 and float(row["peak_memory_gb"]) > 0.1 for row in rows.values())
    citation = (finished / "logs" / "CITATION.md").read_text()
    assert "Tustison" in citation
    assert "1 mm isotropic" in citation
    assert "[@" not in citation
    assert "super_resolve" in (finished / "logs" / "graph.dot").read_text()


def test_second_run_skips_what_is_complete_and_redoes_the_rest(phantom: Path, finished: Path) -> None:
    other = phantom / "again"
    shutil.copytree(finished, other)
    lost = other / "sub-02/anat/sub-02_desc-residual_T1w.nii.gz"
    lost.unlink()
    untouched = other / "sub-01/anat/sub-01_res-1mm_desc-moesr_T1w.nii.gz"
    before = untouched.stat().st_mtime_ns
    done = run_app(phantom / "bids", other, "--resolution", "1", "-w", str(work_of(finished)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: row["state"] for name, row in statuses(other).items()} == {
        "sub-01_T1w": "skipped",
        "sub-02_T1w": "done",
    }
    assert lost.exists()
    assert untouched.stat().st_mtime_ns == before
    assert validation_errors(other) == []


def test_other_settings_are_planned_not_skipped(phantom: Path, finished: Path) -> None:
    same = run_here(phantom / "bids", finished, "--resolution", "1", "--dry-run")
    assert same.stdout.count("would be skipped") == 2
    other = run_here(phantom / "bids", finished, "--resolution", "1", "--random-seed", "5", "--dry-run")
    assert "would be skipped" not in other.stdout
    mixed = run_here(phantom / "bids", finished, "--resolution", "0.8", "--dry-run")
    assert mixed.returncode == 2
    assert "of another resolution; choose another output folder for 0.8 mm" in mixed.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"InputSHA256": "0" * 64}, "it has changed since, give the data set of then by --bids-dir"),
        ({"WeightsSHA256": "0" * 64}, "weights of model student: SHA-256"),
        ({"Version": "0.0.1"}, "made by moesr-bids 0.0.1, this is"),
        ({"SettingsHash": "0" * 16}, "its metadata or the gradient coefficients have changed since"),
        ({"OutputSHA256": None}, "required field missing @ $.output_sha256"),
    ],
)
def test_rerun_refuses_what_has_changed(
    phantom: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    words: str,
) -> None:
    content = json.loads((finished / MAIN_02).read_text())
    content["Moesr"] = {k: v for k, v in {**content["Moesr"], **changes}.items() if v is not None}
    shutil.copy(finished / "dataset_description.json", tmp_path)
    sidecar = tmp_path / "changed.json"
    sidecar.write_text(json.dumps(content))
    data = ["--bids-dir", str(phantom / "bids")]
    assert moesr(["rerun", str(sidecar), *data, "--output-dir", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rerun_says_what_it_does_not_find(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert moesr(["rerun", str(tmp_path / "none.json")]) == 1
    assert "none.json: no such file" in capsys.readouterr().err
    assert moesr(["rerun", str(finished / MAIN_02), "--bids-dir", str(tmp_path)]) == 1
    assert "sub-02_T1w.nii.gz: no such file; give the data set of the input by --bids-dir" in capsys.readouterr().err


def test_dry_run_writes_nothing(phantom: Path, tmp_path: Path) -> None:
    done = run_here(phantom / "bids", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "100 x 120 x 100 voxels of 2 x 2 x 2 mm -> 286 x 343 x 286 of 0.7 mm" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_the_options_leave_out_has_not_failed(phantom: Path, finished: Path) -> None:
    done = run_here(phantom / "bids", finished, "--resolution", "1", "--suffixes", "FLAIR", "--skip-bids-validation")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "select no image of 2 participants: 01, 02" in done.stdout
    assert set(statuses(finished)) == {"sub-01_T1w", "sub-02_T1w"}


def test_reports_only_and_boilerplate_only(phantom: Path, finished: Path, tmp_path: Path) -> None:
    report = finished / "sub-01.html"
    before = report.stat().st_mtime_ns
    done = run_here(phantom / "bids", finished, "--resolution", "1", "--reports-only", "--participant-label", "01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert report.stat().st_mtime_ns > before
    done = run_here(phantom / "bids", tmp_path / "out", "--boilerplate-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_below(tmp_path / "out") == {
        *("dataset_description.json", ".bidsignore", "descriptions.tsv", "descriptions.json", "logs/CITATION.md"),
        *("desc-moesr_dseg.tsv", "desc-moesr_dseg.json"),
        *("logs/sub-01/CITATION.md", "logs/sub-02/CITATION.md"),
    }


def test_group_level(phantom: Path, finished: Path) -> None:
    from moesr_bids.cli.main import main

    copy = phantom / "for-group"
    shutil.copytree(finished, copy)
    assert main([str(phantom / "bids"), str(copy), "group"]) == 0
    assert len((copy / "group_T1w.tsv").read_text().splitlines()) == 3
    assert "sub-02.html" in (copy / "group.html").read_text()
    assert validation_errors(copy) == []


def test_a_command_that_has_finished_lays_its_images_out_as_raw_data(
    phantom: Path, finished: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    options = ("--resolution", "1", "--skip-bids-validation", "--export-raw", str(raw))
    done = run_app(phantom / "bids", finished, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["state"] for row in statuses(finished).values()} == {"skipped"}
    assert validation_errors(raw) == []
    for label in ("01", "02"):
        before = nib.load(finished / f"sub-{label}/anat/sub-{label}_res-1mm_desc-moesr_T1w.nii.gz")
        after = nib.load(raw / f"sub-{label}/anat/sub-{label}_rec-moesr_T1w.nii.gz")
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())
    again = run_here(raw, tmp_path / "out")
    assert again.returncode == 2
    assert "holds super-resolved images (--export-raw); give the scans" in again.stderr


def test_fmriprep_finds_the_sharp_image_and_its_mask_on_one_grid(finished: Path) -> None:
    from smriprep.utils.bids import collect_derivatives

    for label in ("01", "02"):
        found = collect_derivatives(finished, label, [TEMPLATE])
        image, mask = nib.load(found["t1w_preproc"]), nib.load(found["t1w_mask"])
        assert image.shape == mask.shape
        np.testing.assert_allclose(image.affine, mask.affine, atol=1e-5)
        main = finished / f"sub-{label}/anat/sub-{label}_res-1mm_desc-moesr_T1w.nii.gz"
        assert Path(found["t1w_preproc"]).samefile(main), "two names, one file"
        told = json.loads(Path(found["t1w_preproc"].replace(".nii.gz", ".json")).read_text())
        assert "was not measured; it comes from model student" in told["InferredDetail"]
        assert set(found["transforms"][TEMPLATE]) == {"forward", "reverse"}
