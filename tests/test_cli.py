"""The command line of moesr-bids: which options it refuses, which settings it saves, how fast it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from moesr_bids.arguments import memory_gb
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import plan_image
from moesr_bids.cli.main import main
from moesr_bids.cli.parser import build_parser, parse_settings
from moesr_bids.config import OutputSpace, Settings
from moesr_bids.run.progress import Progress
from moesr_bids.sr.options import SROptions


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("sub-01/ses-a/anat", "sub-control02/ses-b/anat"):
        (root / name).mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    return root


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_settings(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{data}/out", "participant"], "lies inside the input"),
        (["{data}/derivatives/out", "participant"], "lies inside the input"),
        (["{out}", "participant", "-w", "{data}/work"], "work folder"),
        (["{out}", "participant", "-w", "{out}"], "work folder and output folder are both"),
        (["{out}", "participant", "--participant-label", "control2"], "did you mean control02?"),
        (["{out}", "participant", "--session-label", "c"], "session c is not in"),
        (["{out}", "participant", "--model", "clasical"], "did you mean classical?"),
        (["{out}", "participant", "--samples", "2"], "model student has no use for --samples"),
        (["{out}", "participant", "--model", "cubic", "--estimate", "sample"], "model cubic has no use for --estimate"),
        (["{out}", "participant", "--resolution", "7"], "between 0.3 and 3 mm"),
        (["{out}", "participant", "--mem", "lots"], "is no amount of memory"),
        (["{out}", "participant", "--mem", "16"], "'16' is 0.0156 GiB, too little; write 16G for gigabytes"),
        (["{out}", "participant", "--mem", "10M"], "too little"),
        (["{out}", "participant", "-w", "{data}/../a, b"], "ANTs cannot use the ',' of"),
        (["{out}", "participant", "--nprocs", "0"], "whole number above zero"),
        (["{out}", "participant", "--output-spaces", "MNI152NoSuch"], "MNI152NoSuch"),
        (["{out}", "participant", "--use-plugin", "{data}/none.yml"], "cannot be read"),
        (["{out}", "participant", "--config-file", "{data}/none.toml"], "No such file or directory"),
        (["{out}", "participant", "--no-such-option"], "unrecognized arguments"),
        (["{out}", "group"], "run the participant level first"),
    ],
)
def test_refusals_are_one_clear_sentence(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    filled = [argument.format(data=dataset, out=tmp_path / "out") for argument in arguments]
    message = refusal([str(dataset), *filled], capsys)
    assert words in message
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_data_set_is_no_output_folder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    description = other / "dataset_description.json"
    description.write_text(json.dumps({"Name": "precious", "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "x"}]}))
    assert "holds another data set (precious)" in refusal([str(dataset), str(other), "participant"], capsys)
    assert list(other.iterdir()) == [description]


def test_an_entity_that_does_not_exist_is_named(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "filter.json"
    path.write_text('{"T1w": {"acq": "mprage"}}')
    (dataset / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz").touch()
    arguments = [str(dataset), str(tmp_path / "out"), "participant", "--bids-filter-file", str(path), "--dry-run"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"{path}: 'acq' is not a recognized entity" in message
    assert "invalid_filters" not in message


def test_nothing_to_do_is_no_success(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "filter.json"
    path.write_text('{"T1w": {"acquisition": "typo"}}')
    (dataset / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz").touch()
    arguments = [str(dataset), str(tmp_path / "out"), "participant"]
    assert main([*arguments, "--suffixes", "T1w", "--bids-filter-file", str(path)]) == 2
    assert f"{path} leaves no image" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert main([*arguments, "--reports-only"]) == 2
    assert "has nothing of the selected participants to report" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("option", [["--dry-run"], ["--participant-label", "99"], ["--reports-only"]])
def test_the_group_level_refuses_what_it_has_no_use_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    base = [str(dataset), str(tmp_path / "out"), "group"]
    assert f"has no use for {option[0]}" in refusal([*base, *option], capsys)
    # It has no use for a work folder either, wherever that is.
    assert parse_settings([*base, "-w", str(dataset / "work")]).analysis_level == "group"


def test_progress_tells_begin_and_end_of_own_images_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def image(name: str) -> RawImage:
        return RawImage(path=tmp_path / f"sub-1/anat/sub-1_{name}.nii.gz", root=tmp_path)

    own, other, reference = image("FLAIR"), image("T2w"), image("T1w")
    told: list[tuple[str, RawImage]] = []
    settings = Settings(bids_dir=tmp_path, output_dir=tmp_path, analysis_level="participant", work_dir=tmp_path)
    progress = Progress(
        [plan_image(attrs.evolve(image, reference=reference), settings) for image in (own, other)],
        began=lambda plan: told.append(("began", plan.image)),
        ended=lambda plan: told.append(("ended", plan.image)),
    )

    def node(image: RawImage, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, fullname=f"moesr_wf.{image.workflow_name}.{name}")

    for step, status in (("n4", "start"), ("n4", "exception"), ("publish", "start")):
        progress(node(reference, step), status)
    progress(node(own, "conform"), "start")
    progress(node(own, "conform"), "end")
    progress(node(own, "n4"), "start")
    progress(node(other, "publish"), "start")
    progress(node(other, "publish"), "end")
    assert told == [("began", own), ("began", other), ("ended", other)]
    progress(node(own, "n4"), "exception")
    assert len(told) == 3  # Nipype has not written why
    progress(node(other, "conform"), "start")
    assert told[3:] == [("ended", own)]
    told_lines = capsys.readouterr().out
    assert "sub-1_T1w, for the others: bias field started" in told_lines
    assert "sub-1_FLAIR, image 1 of 2: header check done in 0 s; about" in told_lines
    assert "sub-1_FLAIR, image 1 of 2: bias field failed" in told_lines
    assert "sub-1_T2w, image 2 of 2: writing of the outputs done" in told_lines


def test_input_that_is_no_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refusal([str(tmp_path / "none"), str(tmp_path / "out"), "participant"], capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no participant" in refusal([str(tmp_path / "empty"), str(tmp_path / "out"), "participant"], capsys)


def test_broken_filter_and_configuration_files_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    path = tmp_path / "file"
    path.write_text('{"T1w": {"datatype": "anat", "suffix": "T2w"}}')
    assert "the suffix of T1w is T1w, not T2w" in refusal([*base, "--bids-filter-file", str(path)], capsys)
    path.write_text('{"anat": {"datatype": "func"}}')
    assert "the datatype of anat is anat, not func" in refusal([*base, "--bids-filter-file", str(path)], capsys)
    path.write_text('{"T1W1": {}}')
    assert "T1W1 is none of" in refusal([*base, "--bids-filter-file", str(path)], capsys)
    path.write_text("{")
    assert "not valid JSON" in refusal([*base, "--bids-filter-file", str(path)], capsys)
    path.write_text("no-such-option = 1")
    assert "no-such-option is no option" in refusal([*base, "--config-file", str(path)], capsys)


def test_filters_of_other_data_are_left_aside_with_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in files that were written for fMRIPrep."""
    path = tmp_path / "filter.json"
    filters = {
        "fmap": {"datatype": "fmap"},
        "bold": {"datatype": "func", "suffix": "bold"},
        "sbref": {"datatype": "func", "suffix": "sbref"},
        "flair": {"datatype": "anat", "suffix": "FLAIR"},
        "t1w": {"datatype": "anat", "suffix": ["T1w"], "acquisition": "*", "reconstruction": None},
        "roi": {"datatype": "anat", "suffix": "roi"},
    }
    path.write_text(json.dumps(filters))
    settings = parse_settings([str(dataset), str(tmp_path / "out"), "participant", "--bids-filter-file", str(path)])
    assert settings.bids_filters == {"FLAIR": {}, "T1w": {"acquisition": "*", "reconstruction": None}}
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1
    assert f"{path}: filters of other data are left aside: fmap, bold, sbref, roi" in told[0]


def test_a_derivative_data_set_is_no_input(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = {"Name": "fMRIPrep", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (dataset / "dataset_description.json").write_text(json.dumps(description))
    told = refusal([str(dataset), str(tmp_path / "out"), "participant"], capsys)
    assert f"{dataset} is a derivative data set (fMRIPrep)" in told
    assert not (tmp_path / "out").exists()


def test_a_machine_without_semaphores_is_told_before_anything_is_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    code = f"import sys\nfrom moesr_bids.cli.main import main\nsys.exit(main({base!r}))\n"
    mount = "mount -t tmpfs -o ro,size=4k none /dev/shm && exec"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"{mount} true"], capture_output=True, check=False).returncode:
        pytest.skip("a read-only /dev/shm needs the right to mount")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "/dev/shm, which parallel processes need, cannot be written (Read-only file system); mount it" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()


def test_underscores_and_prefixes_are_accepted(dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    dashes = parse_settings([*base, "--participant-label", "01", "--work-dir", str(tmp_path / "w_1"), "--mem", "4G"])
    underscores = parse_settings(
        [*base, "--participant_label", "sub-01", f"--work_dir={tmp_path / 'w_1'}", "--mem_mb", "4096"]
    )
    assert dashes == underscores
    assert dashes.participant_label == ("01",)
    assert dashes.work_dir.name == "w_1"


def test_saved_settings_repeat_the_run_and_the_command_line_wins(dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    first = parse_settings(
        [*base, "--participant-label", "01", "--resolution", "0.8", "--suffixes", "T1w", "--mem", "4G", "-v"]
    )
    saved = tmp_path / "run.toml"
    saved.write_text(first.to_toml())
    again = parse_settings([*base, "--config-file", str(saved)])
    assert again == first
    changed = parse_settings([*base, "--config-file", str(saved), "--resolution", "1", "-vv"])
    assert changed == attrs.evolve(first, sr=attrs.evolve(first.sr, resolution=1.0), verbose=2)


def test_every_option_reaches_the_settings(dataset: Path, tmp_path: Path) -> None:
    settings = parse_settings([str(dataset), str(tmp_path / "out"), "participant"])
    known = {field.name for field in attrs.fields(type(settings))}
    known |= {name.replace("-", "_") for name in settings.sr.by_flag()}
    destinations = {action.dest for action in build_parser()._actions} - {"help", "version", "config_file"}
    assert destinations <= known


def test_output_hash_ignores_where_and_how_fast() -> None:
    here = Path("/x")
    base = Settings(bids_dir=here, output_dir=here, analysis_level="participant", work_dir=here)
    same = attrs.evolve(base, nprocs=8, mem_gb=1.0, sr=SROptions(device="cpu"), work_dir=Path("/y"), verbose=2)
    assert base.output_hash({"input": "a"}) == same.output_hash({"input": "a"})
    assert base.output_hash({"input": "a"}) != base.output_hash({"input": "b"})
    for change in (
        {"sr": SROptions(resolution=0.8)},
        {"sr": SROptions(model="cubic")},
        {"sr": SROptions(samples=2)},
        {"sr": SROptions(estimate="sample")},
        {"sr": SROptions(random_seed=1)},
        {"output_spaces": (OutputSpace("X"),)},
    ):
        assert base.output_hash({"input": "a"}) != attrs.evolve(base, **change).output_hash({"input": "a"})


@pytest.mark.parametrize(
    ("text", "expected"), [("8G", 8), ("512M", 0.5), ("1T", 1024), ("2048", 2), ("1gb", 1), ("100M", 0.0977)]
)
def test_memory_units(text: str, expected: float) -> None:
    assert memory_gb(text) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("module", ["moesr_bids.cli.main", "moesr_bids.cli.moesr"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_heavy_library(module: str, option: str) -> None:
    code = (
        f"import sys\nfrom {module} import main\n"
        f"try:\n    main(['{option}'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'ants', 'nipype', 'bids', 'nilearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "moesr" in done.stdout
