"""The files in ``containers/`` for other tools, tested with these tools: ``make test-tools``.

The tools need packages of their own, so they are in a separate environment, which MOESR_TOOLS names.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.slurm_site import missing, slurm_site
from containers.descriptor import text
from moesr_bids import __version__
from moesr_bids.cli.parser import parse_settings

CONTAINERS = Path(__file__).resolve().parents[1] / "containers"
PIPELINE = CONTAINERS / "nipoppy" / f"moesr-bids-{__version__}"
TOOLS = os.environ.get("MOESR_TOOLS", "")
needs_tools = pytest.mark.skipif(not TOOLS, reason="make test-tools runs it")


def test_the_descriptor_has_the_options_of_the_parser() -> None:
    written = json.loads((PIPELINE / "descriptor.json").read_text())
    wanted = json.loads(text())
    for each in (written, wanted):
        for option in each["inputs"]:
            option.pop("description")  # words may change between releases
    assert written == wanted, "python -m containers.descriptor writes it anew"
    assert json.loads((CONTAINERS / "boutiques.json").read_text())["tool-version"] == __version__


@pytest.fixture
def tool(tmp_path: Path) -> dict[str, str]:
    """Return an environment with the tools, a HOME of its own, and an Apptainer that does nothing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apptainer", "singularity"):
        (programs / name).symlink_to("/bin/true")
    variables = {**os.environ, "HOME": str(tmp_path), "PATH": f"{programs}:{TOOLS}/bin:{os.environ['PATH']}"}
    for key, value in {"user.name": "x", "user.email": "x@example.org", "init.defaultBranch": "main"}.items():
        subprocess.run(["git", "config", "--global", key, value], env=variables, check=True)
    return variables


def run(tool: dict[str, str], *command: object, cwd: Path | None = None) -> str:
    """Run a command of a tool; return what it said, without line breaks."""
    done = subprocess.run(list(map(str, command)), env=tool, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a data set of two participants with a session."""
    root = tmp_path / "BIDS"
    for label in ("01", "02"):
        anat = root / f"sub-{label}" / "ses-A" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{label}_ses-A_T1w.nii.gz").write_text(label)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


@needs_tools
def test_boutiques_makes_a_command_that_the_parser_takes(tool: dict[str, str], dataset: Path, tmp_path: Path) -> None:
    assert "OK" in run(tool, "bosh", "validate", CONTAINERS / "boutiques.json")
    chosen = {"bids_dir": str(dataset), "output_dir": str(tmp_path / "out"), "analysis_level": "participant"}
    chosen |= {"participant_label": ["01", "02"], "suffixes": ["T1w"], "nprocs": 2, "mem_gb": "8G", "sloppy": True}
    (tmp_path / "invocation.json").write_text(json.dumps(chosen))
    simulate = ("bosh", "exec", "simulate", "-i", tmp_path / "invocation.json", CONTAINERS / "boutiques.json")
    command = run(tool, *simulate).partition("moesr-bids ")[2]
    settings = parse_settings(command.split())
    assert (settings.participant_label, settings.suffixes) == (("01", "02"), ("T1w",))
    assert (settings.nprocs, settings.mem_gb, settings.sloppy) == (2, 8.0, True)


@needs_tools
def test_nipoppy_installs_simulates_and_tracks(tool: dict[str, str], dataset: Path, tmp_path: Path) -> None:
    assert "all valid" in run(tool, "nipoppy", "pipeline", "validate", PIPELINE)
    study = tmp_path / "study"
    run(tool, "nipoppy", "init", "--study", study, "--bids-source", dataset)
    run(tool, "nipoppy", "pipeline", "install", "--study", study, PIPELINE)
    (study / "containers" / f"moesr-bids_{__version__}.sif").touch()
    told = run(tool, "nipoppy", "process", "--study", study, "--pipeline", "moesr-bids", "--simulate")
    assert "--participant-label 02 --session-label A --skip-bids-validation --nprocs 4 --mem 6G" in told
    assert "Ran for 2 out of 2" in told
    output = study / "derivatives" / "moesr-bids" / __version__ / "output" / "sub-01" / "ses-A" / "anat"
    output.mkdir(parents=True)
    (output / "sub-01_ses-A_res-0p7mm_desc-moesr_T1w.json").write_text("{}")
    run(tool, "nipoppy", "track-processing", "--study", study, "--pipeline", "moesr-bids")
    rows = (study / "derivatives" / "processing_status.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[-1] for row in rows] == ["SUCCESS", "FAIL"]


@needs_tools
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_babs_makes_a_project_and_finds_it_well_on_slurm(tool: dict[str, str], dataset: Path, tmp_path: Path) -> None:
    for command in ("create --force -c text2git", "save -m raw"):
        run(tool, "datalad", *command.split(), cwd=dataset)
    (tmp_path / "image.sif").write_text("in place of the image")
    run(tool, "datalad", "create", tmp_path / "images")
    name = f"moesr-bids-{__version__.replace('.', '-')}"
    run(tool, "datalad", "containers-add", "--url", tmp_path / "image.sif", name, cwd=tmp_path / "images")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = (CONTAINERS / "babs.yaml").read_text()
    for theirs, ours in {
        "/path/to/BIDS": dataset,
        "/path/to/scratch": scratch,
        "module load": f". {TOOLS}/bin/activate #",
    }.items():
        assert theirs in config
        config = config.replace(theirs, str(ours))
    (tmp_path / "babs.yaml").write_text(config)
    project = tmp_path / "project"
    options = ["--container-ds", tmp_path / "images", "--container-name", name, "--queue", "slurm"]
    options += ["--container-config", tmp_path / "babs.yaml", "--processing-level", "subject"]
    assert "was successful" in run(tool, "babs", "init", *options, project)
    script = next((project / "analysis" / "code").glob("*_zip.sh"))
    assert f"{name}/image" in script.read_text() and '--participant-label "${subid}"' in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    with slurm_site(tmp_path / "site", cpus=4, memory_mb=16000) as site:
        tool |= {"SLURM_CONF": site["SLURM_CONF"], "PATH": f"{tool['PATH']}:/usr/sbin"}
        assert "check-setup` was successful" in run(tool, "babs", "check-setup", "--job-test", project)
