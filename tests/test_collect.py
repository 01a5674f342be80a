"""Finding images, their metadata, and the names of their outputs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from moesr_bids.bids.collect import RawImage, collect_images
from moesr_bids.bids.crashes import crash_files, crashes_by_image
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.provenance import sidecars
from moesr_bids.bids.resume import settings_hash
from moesr_bids.bids.sessions import with_references
from moesr_bids.bids.sidecars import read_metadata, sidecar_files
from moesr_bids.bids.status import ImageStatus, read_statuses, write_status, write_table
from moesr_bids.config import OutputSpace, Settings
from moesr_bids.run.outcomes import forget_what_is_gone, statuses_without_images
from moesr_bids.sr.models.network import NetworkShape, ResidualNetwork
from moesr_bids.sr.weights import write_weights
from tests.reports_data import record

FILES = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_T2w.nii",
    "sub-01/func/sub-01_task-rest_bold.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_run-01_T1w.nii.gz",
    "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii.gz",
    "derivatives/x/sub-01/anat/sub-01_desc-y_T1w.nii.gz",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    root = tmp_path / "data"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    return Settings(bids_dir=root, output_dir=tmp_path / "out", analysis_level="participant", work_dir=tmp_path / "w")


def names(settings: Settings) -> list[str]:
    return [image.relative for image in collect_images(settings)]


def test_all_contrasts_sessions_and_runs_are_found(settings: Settings) -> None:
    assert names(settings) == [FILES[0], FILES[1], FILES[3], FILES[4]]


def test_selection(settings: Settings) -> None:
    assert names(attrs.evolve(settings, participant_label=("02",))) == [FILES[3], FILES[4]]
    assert names(attrs.evolve(settings, session_label=("b",))) == [FILES[4]]
    assert names(attrs.evolve(settings, suffixes=("T2w",))) == [FILES[1]]
    assert names(attrs.evolve(settings, bids_filters={"T1w": {"acquisition": "mprage"}})) == [FILES[1], *FILES[3:5]]


def test_a_star_is_any_value_and_null_is_none(settings: Settings) -> None:
    """As fMRIPrep reads its filter files."""
    (settings.bids_dir / "sub-01" / "anat" / "sub-01_acq-spgr_T1w.nii.gz").touch()
    t1w = attrs.evolve(settings, suffixes=("T1w",))

    def selected(value: Any) -> list[str]:
        return names(attrs.evolve(t1w, bids_filters={"T1w": {"acquisition": value}}))

    assert selected("*") == ["sub-01/anat/sub-01_acq-spgr_T1w.nii.gz", FILES[3]]
    assert selected(None) == [FILES[0]]
    assert selected([None, "mprage"]) == [FILES[0], FILES[3]]


def test_what_a_mac_leaves_beside_a_file_is_no_anatomy(settings: Settings) -> None:
    folder = settings.bids_dir / "sub-03" / "anat"
    folder.mkdir(parents=True)
    (folder / "._sub-03_T1w.nii.gz").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    chosen = attrs.evolve(settings, participant_label=("03",))
    images = collect_images(chosen)
    assert images == []
    failed = statuses_without_images(images, chosen)
    assert [(status.participant_id, status.state, status.reason) for status in failed] == [
        ("sub-03", "failed", "no T1w, T2w, FLAIR image")
    ]


def crash_file(folder: Path, image: RawImage, name: str, *, seconds_ago: float, reason: str) -> Path:
    path = folder / f"sub-{image.participant}" / f"crash-20260101-120000-user-{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"Node: moesr_wf.sub_01_wf.{image.workflow_name}.conform\nTraceback:\nImageError: {reason}\n")
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


def test_crashes_are_told_from_earlier_ones_by_name_whatever_the_clock_of_the_file_server(settings: Settings) -> None:
    one = collect_images(settings)[0]
    logs = settings.output_dir / "logs"
    crash_file(logs, one, "before", seconds_ago=-3600, reason="of an earlier run")  # a server whose clock is ahead
    earlier = crash_files(logs, [one])
    crash_file(logs, one, "new", seconds_ago=0.5, reason="of this run")  # and one whose clock is behind
    found = crashes_by_image(logs, [one], earlier=earlier)
    assert found[one].reason == "of this run"


def test_the_table_is_made_anew_though_the_last_one_is_of_the_future(tmp_path: Path) -> None:
    write_status(tmp_path, ImageStatus(participant_id="sub-02", state="failed"))
    table = write_table(tmp_path)
    later = time.time() + 5
    os.utime(table, (later, later))
    write_status(tmp_path, ImageStatus(participant_id="sub-01", state="failed"))
    assert "sub-01" in write_table(tmp_path).read_text()


def test_only_magnitude_images_are_selected(settings: Settings) -> None:
    folder = settings.bids_dir / "sub-01" / "anat"
    for part in ("mag", "phase", "real", "imag"):
        (folder / f"sub-01_part-{part}_FLAIR.nii.gz").touch()
    assert names(attrs.evolve(settings, suffixes=("FLAIR",), participant_label=("01",))) == [
        "sub-01/anat/sub-01_part-mag_FLAIR.nii.gz"
    ]


def test_participant_label_is_not_a_prefix(settings: Settings) -> None:
    path = settings.bids_dir / "sub-011" / "anat" / "sub-011_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.touch()
    assert names(attrs.evolve(settings, participant_label=("01",))) == [FILES[0], FILES[1]]


def test_database_serves_later_runs_with_other_selections(settings: Settings, tmp_path: Path) -> None:
    with_database = attrs.evolve(settings, bids_database_dir=tmp_path / "db", participant_label=("01",))
    assert names(with_database) == [FILES[0], FILES[1]]
    (settings.bids_dir / FILES[0]).unlink()
    assert names(with_database) == [FILES[0], FILES[1]], "the second run must read the database"
    assert names(attrs.evolve(with_database, participant_label=("02",))) == [FILES[3], FILES[4]]


def test_database_that_was_never_finished_is_made_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bids.layout import BIDSLayoutIndexer

    with_database = attrs.evolve(settings, bids_database_dir=tmp_path / "db")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BIDSLayoutIndexer, "_index_dir", killed)
        with pytest.raises(KeyboardInterrupt):
            names(with_database)
    assert names(with_database) == [FILES[0], FILES[1], FILES[3], FILES[4]]
    moved = settings.bids_dir.rename(tmp_path / "moved")
    settings.bids_dir.mkdir()
    with pytest.raises(ValueError, match="the database is that of"):
        names(attrs.evolve(with_database, bids_dir=moved))


def problems(settings: Settings, *files: str, **changes: Any) -> dict[str, str]:
    for name in files:
        path = settings.bids_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {image.relative: image.problem for image in collect_images(attrs.evolve(settings, **changes))}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sub-ABC-001/anat/sub-ABC-001_T1w.nii.gz", "letters and digits only"),
        ("sub-3/ses-pre-op/anat/sub-3_ses-pre-op_T1w.nii.gz", "letters and digits only"),
        ("sub-3/anat/sub-3_acq-0.8mm_T1w.nii.gz", "letters and digits only"),
        ("sub-3/anat/sub-4_T1w.nii.gz", "does not repeat the labels of its folders"),
        ("sub-01/anat/sub-01_desc-defaced_T1w.nii.gz", "outputs of another image would have the same names"),
    ],
)
def test_names_that_cannot_be_used_are_told(settings: Settings, name: str, words: str) -> None:
    label = name.split("/", 1)[0].removeprefix("sub-")
    for chosen in ((), (label,)):
        assert words in problems(settings, name, participant_label=chosen)[name]


def test_only_the_anat_folders_of_participants_count(tmp_path: Path, settings: Settings) -> None:
    others = ("old/sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/old/sub-01_T1w.nii.gz", "sub-01/sub-01_T1w.nii.gz")
    others = (*others, "sub-01_T1w.nii.gz", "T1w.json", "anat/sub-01_T1w.nii.gz")
    assert set(problems(settings, *others)) == {FILES[0], FILES[1], FILES[3], FILES[4]}
    # PyBIDS takes the first folder that is named like a data type, wherever it is.
    below = tmp_path / "pet" / "data"
    below.parent.mkdir()
    settings.bids_dir.rename(below)
    assert len(collect_images(attrs.evolve(settings, bids_dir=below))) == 4


def test_dangling_links_and_broken_sidecars_do_not_hide_images(settings: Settings) -> None:
    anat = settings.bids_dir / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").unlink()
    (anat / "sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/none")
    (anat / "sub-01_T2w.json").write_text("{broken")
    images = {image.suffix: image for image in collect_images(attrs.evolve(settings, participant_label=("01",)))}
    assert set(images) == {"T1w", "T2w"}
    assert images["T2w"].metadata == {}
    assert "not readable JSON" in images["T2w"].warnings[0]


def test_a_sidecar_that_was_not_fetched_is_told_as_such(settings: Settings) -> None:
    image = settings.bids_dir / FILES[0]
    image.with_name("sub-01_T1w.json").write_text("/annex/objects/MD5E-s100--1b.json\n")
    (settings.bids_dir / "T1w.json").symlink_to(".git/annex/objects/none")
    metadata, warnings = read_metadata(image, settings.bids_dir)
    assert metadata == {}
    assert len(warnings) == 2
    assert all("was not used: the file's content was not fetched" in warning for warning in warnings)


def test_metadata_is_inherited_and_the_nearer_file_wins(settings: Settings) -> None:
    root = settings.bids_dir
    image = root / FILES[3]
    (root / "T1w.json").write_text('{"SliceThickness": 1, "Manufacturer": "A"}')
    (root / "acq-mprage_T1w.json").write_text('{"SliceThickness": 2}')
    (root / "acq-other_T1w.json").write_text('{"SliceThickness": 9}')
    (root / "T2w.json").write_text('{"SliceThickness": 8}')
    (root / "sub-02" / "sub-02_T1w.json").write_text('{"SliceThickness": 3}')
    image.with_name("sub-02_ses-a_acq-mprage_run-01_T1w.json").write_text('{"SliceThickness": 4}')
    assert read_metadata(image, root) == ({"SliceThickness": 4, "Manufacturer": "A"}, ())
    assert [path.name for path in sidecar_files(image, root)][:2] == ["T1w.json", "acq-mprage_T1w.json"]


def image(relative: str) -> RawImage:
    return RawImage(path=Path("/d") / relative, root=Path("/d"))


def test_names_keep_all_entities_in_schema_order(settings: Settings) -> None:
    raw = image("sub-02/ses-a/anat/sub-02_ses-a_acq-x_run-01_part-mag_chunk-2_T2w.nii.gz")
    paths = {output.key: output.path for output in plan_image(raw, settings).outputs}
    assert paths["moesr"] == (
        "sub-02/ses-a/anat/sub-02_ses-a_acq-x_run-01_part-mag_chunk-2_res-0p7mm_desc-moesr_T2w.nii.gz"
    )
    assert paths["mask"] == (
        "sub-02/ses-a/anat/sub-02_ses-a_acq-x_run-01_part-mag_space-T2w_chunk-2_res-0p7mm_desc-brain_mask.nii.gz"
    )


def test_outputs_of_several_images_never_share_a_name(settings: Settings) -> None:
    stems = ["sub-01_T1w", "sub-01_T2w", "sub-01_FLAIR", "sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_part-mag_T1w"]
    images = with_references([image(f"sub-01/anat/{stem}.nii.gz") for stem in stems])
    paths = [path for one in images for path in (output.path for output in plan_image(one, settings).outputs)]
    # All but the reference have transforms to it and back, and the reference has a name for other software.
    assert len(paths) == 9 * len(stems) + 2 * (len(stems) - 1) + 1
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("relative", "key"),
    [
        ("sub-01/ses-02/anat/sub-01_ses-02_run-1_T1w.nii.gz", "sub-01_ses-02_run-1_T1w"),
        ("sub-01/ses-02/anat/sub-01_ses-01_T1w.nii.gz", "sub-01_ses-02_name-sub01ses01_T1w"),
        ("sub-02/anat/sub-01_T1w.nii.gz", "sub-02_name-sub01_T1w"),
        ("sub-02/anat/T1w.nii", "sub-02_T1w"),
    ],
)
def test_a_misnamed_file_has_a_status_of_its_own(relative: str, key: str) -> None:
    assert ImageStatus(participant_id=relative.split("/", 1)[0], image=relative).key == key


def test_status_of_what_is_gone_is_forgotten(settings: Settings) -> None:
    kept = ImageStatus(participant_id="sub-01", image=FILES[0], state="done")
    gone = ImageStatus(participant_id="sub-01", image="sub-01/anat/sub-01_acq-x_T1w.nii.gz", state="failed")
    other = ImageStatus(participant_id="sub-09", image="sub-09/anat/sub-09_T1w.nii.gz", state="failed")
    for status in (kept, gone, other, ImageStatus(participant_id="sub-01", state="failed")):
        write_status(settings.output_dir, status)
    forget_what_is_gone(settings, collect_images(settings))
    assert read_statuses(settings.output_dir) == [kept, other]


def test_status_table_has_a_row_per_image_and_one_line_reasons(tmp_path: Path) -> None:
    write_status(
        tmp_path,
        ImageStatus(
            participant_id="sub-01",
            image="sub-01/anat/sub-01_T1w.nii.gz",
            state="done",
            step="publish",
            seconds=12.5,
            peak_memory_gb=1.5,
        ),
    )
    write_status(tmp_path, ImageStatus(participant_id="sub-02", state="failed", step="collect", reason="a\tb\nc"))
    lines = write_table(tmp_path).read_text().splitlines()
    assert lines[0].split("\t")[:4] == ["participant_id", "session_id", "image", "state"]
    assert lines[1].split("\t") == [
        "sub-01",
        "n/a",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "done",
        "publish",
        "n/a",
        "12.5",
        "1.5",
    ]
    assert lines[2].split("\t") == ["sub-02", "n/a", "n/a", "failed", "collect", "a b c", "n/a", "n/a"]
    assert len(read_statuses(tmp_path)) == 2


def tiny_weights(path: Path, seed: int) -> Path:
    """Write the weights of a network that nobody trained."""
    torch.manual_seed(seed)
    write_weights(path, ResidualNetwork(NetworkShape(channels=4, blocks=1, embedding=4)), {"kind": "student"})
    return path


def test_the_settings_hash_follows_all_that_decides_an_output(settings: Settings, tmp_path: Path) -> None:
    raw = collect_images(settings)[0]
    path = tiny_weights(tmp_path / "w.safetensors", 0)
    learned = attrs.evolve(settings, sr=attrs.evolve(settings.sr, model=str(path)))
    sr = attrs.evolve(settings.sr, resolution=1.0)
    other_seed = attrs.evolve(settings.sr, random_seed=7)
    hashes = {
        "input": settings_hash(plan_image(raw, settings), "1"),
        **{
            name: settings_hash(plan_image(image, chosen), "0")
            for name, image, chosen in (
                ("as it is", raw, settings),
                ("metadata", attrs.evolve(raw, metadata={"SliceThickness": 5}), settings),
                ("other metadata", attrs.evolve(raw, metadata={"SliceThickness": 4}), settings),
                ("reference", attrs.evolve(raw, reference=collect_images(settings)[1]), settings),
                ("model", raw, learned),
                ("sloppy", raw, attrs.evolve(settings, sloppy=True)),
                ("spaces", raw, attrs.evolve(settings, output_spaces=())),
                ("resolution", raw, attrs.evolve(settings, sr=sr)),
                ("seed", raw, attrs.evolve(settings, sr=other_seed)),
            )
        },
    }
    tiny_weights(path, 1)  # others under the same name
    hashes["weights"] = settings_hash(plan_image(raw, learned), "0")
    assert len(set(hashes.values())) == len(hashes), hashes
    same = attrs.evolve(settings, nprocs=7, mem_gb=3.0, work_dir=tmp_path / "elsewhere", participant_label=("01",))
    assert settings_hash(plan_image(raw, same), "0") == hashes["as it is"]


def test_a_template_that_bids_does_not_list_is_referred_to(settings: Settings) -> None:
    listed, other = OutputSpace("MNI152NLin2009aSym"), OutputSpace("OASIS30ANTs")
    chosen = attrs.evolve(settings, output_spaces=(listed, other))
    image = collect_images(chosen)[0]
    contents = sidecars(plan_image(image, chosen), record())
    assert "SpatialReference" not in contents[f"space-{listed}"]
    assert contents[f"space-{other}"]["SpatialReference"] == "https://github.com/templateflow/tpl-OASIS30ANTs"
