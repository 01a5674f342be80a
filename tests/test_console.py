"""The console: lines and their log, the time that is left, help, and mistakes of the command line."""

from __future__ import annotations

import itertools
import os
import pty
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from moesr_bids import console
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.steps import step_words
from moesr_bids.cli.moesr import build_parser as moesr_parser
from moesr_bids.cli.parser import build_parser
from moesr_bids.config import Settings
from moesr_bids.run.progress import Progress
from moesr_bids.run.timeleft import TimeLeft
from moesr_bids.workflows.image import steps_of


def plans_of(folder: Path, *names: str) -> list[ImagePlan]:
    settings = Settings(bids_dir=folder, output_dir=folder, analysis_level="participant", work_dir=folder)
    images = [RawImage(path=folder / f"sub-1/anat/sub-1_{name}.nii.gz", root=folder) for name in names]
    return [plan_image(image, settings) for image in images]


def listed(text: str) -> Counter[str]:
    """Count the names of options at the beginning of the lines of a help text."""
    heads = [re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines() if re.match(r"  -", line)]
    return Counter(re.findall(r"(?<![\w-])--[\w-]+", " ".join(heads)))


def commands() -> dict[str, str]:
    """Return the help texts of all commands by name."""
    moesr = moesr_parser()
    (sub,) = [action for action in moesr._actions if hasattr(action, "choices") and isinstance(action.choices, dict)]
    return {"moesr-bids": build_parser().format_help()} | {
        name: parser.format_help() for name, parser in sub.choices.items()
    }


@pytest.mark.parametrize(("name", "text"), commands().items())
def test_help_lists_each_option_once_in_one_spelling(name: str, text: str) -> None:
    found = listed(text)
    assert "--help" in " ".join(found) or "-h" in text
    assert [option for option, count in found.items() if count > 1] == []
    assert [option for option in found if "_" in option] == []


def test_underscores_are_taken_for_dashes_in_both_commands() -> None:
    taken = build_parser().parse_args(["a", "b", "participant", "--participant_label", "x_y", "--random_seed=3"])
    assert (taken.participant_label, taken.random_seed) == (["x_y"], 3)
    options = moesr_parser().parse_args(["sr", "in.nii", "out.nii", "--log_bias", "my_file", "--omp_nthreads", "2"])
    assert (options.log_bias, options.omp_nthreads) == (Path("my_file"), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["moesr_bids.cli.main", "data", "out", "participnt"],
        ["moesr_bids.cli.main"],
        ["moesr_bids.cli.moesr", "sr", "in.nii"],
        ["moesr_bids.cli.moesr", "sr", "in.nii", "out.nii", "--resolution", "x"],
    ],
)
def test_a_mistake_is_one_sentence_without_usage(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ": error: " in line
    assert "usage" not in line


def test_numbers_agree_with_their_nouns() -> None:
    assert [console.counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_every_step_has_a_plain_name(tmp_path: Path) -> None:
    (plan,) = plans_of(tmp_path, "T1w")
    for name, node in steps_of(plan).items():
        assert step_words(name) == step_words(node) != name
        assert "_" not in step_words(name)
        assert plan.cost.seconds_of(name) == plan.cost.seconds_of(node) > 0
    assert sum(map(plan.cost.seconds_of, [*steps_of(plan), "publish"])) == pytest.approx(plan.cost.seconds)


def test_lines_are_kept_in_a_file_once_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    with console.lines_kept() as write_to:
        console.say("before")
        assert not log.exists()
        write_to(log)
        console.say("after")
        console.tell("moesr-bids", "error")
        assert log.read_text().splitlines()[-1] == "moesr-bids: error"  # at once, not at the end
    console.say("later")
    with console.lines_kept():
        console.say("a dry run")
    shown = capsys.readouterr()
    assert log.read_text() == "".join(shown.out.splitlines(keepends=True)[:2]) + shown.err


def test_no_silence_is_longer_than_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.2)
    with console.waiting("something is read"):
        time.sleep(0.5)
    assert capsys.readouterr().out.count("something is read, 0 s so far") == 2
    (plan,) = plans_of(tmp_path, "T1w")
    progress = Progress([plan], began=lambda plan: None, ended=lambda plan: None)
    name = f"moesr_wf.{plan.image.workflow_name}.super_resolve"
    node = SimpleNamespace(name="super_resolve", fullname=name, output_dir=lambda: str(tmp_path))
    progress.beat()
    progress(node, "start")
    progress.beat()
    assert len(capsys.readouterr().out.splitlines()) == 1  # it has just been told
    time.sleep(0.3)
    (tmp_path / "moesr_sr.log").write_text("moesr sr: reconstruct  40% (12 s)\nmoesr sr: note: x\n")
    progress.beat()
    progress.beat()
    (line,) = capsys.readouterr().out.splitlines()
    assert "sub-1_T1w, image 1 of 1: super-resolution, reconstruction 40%, 0 s so far; about" in line
    os.utime(tmp_path / "moesr_sr.log", (1, 1))  # of an earlier run
    time.sleep(0.3)
    progress.beat()
    assert "reconstruction" not in capsys.readouterr().out


def test_lines_do_not_run_into_the_one_at_the_bottom_of_a_terminal() -> None:
    code = (
        "import time; from moesr_bids import console; console._REFRESH_SECONDS = 0; line = console.StandingLine()\n"
        "line.tell(lambda: 'stands'); console.say('said'); line.tell(lambda: 'stands again'); line.close()\n"
        "console.say('end')\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                written += part
    os.close(ours)
    assert process.returncode == 0
    # What a terminal shows in the end: a line that is erased is gone.
    shown = [re.split(rb"\x1b\[2K", line)[-1] for line in written.split(b"\n")]
    plain = [re.sub(rb"\x1b\[[?\d]*[a-zA-Z]|\r", b"", line).decode() for line in shown]
    assert [line.partition("] ")[2] for line in plain if "] " in line] == ["said", "end"]
    assert not any("stands" in line and "said" in line for line in plain)


def test_the_plugin_beats_while_a_step_runs(tmp_path: Path) -> None:
    from nipype.interfaces.utility import Function
    from nipype.pipeline.engine import Node, Workflow

    from moesr_bids.workflows.plugin import RobustMultiProc

    workflow = Workflow(name="wf", base_dir=str(tmp_path))
    workflow.config["execution"] = {"poll_sleep_duration": "0.1", "create_report": "false"}
    node = Node(Function(function=_sleep, input_names=["seconds"], output_names=["out"]), name="sleeps")
    node.inputs.seconds = 1.5
    workflow.add_nodes([node])
    beats: list[float] = []
    arguments = {"n_procs": 1, "memory_gb": 1, "n_gpu_procs": 0, "beat": lambda: beats.append(time.monotonic())}
    workflow.run(plugin=RobustMultiProc(plugin_args=arguments))
    assert len(beats) >= 5
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1


def _sleep(seconds: float) -> int:
    import time

    time.sleep(seconds)
    return 1


def test_time_left_follows_the_plan_and_then_the_pace(tmp_path: Path) -> None:
    plans = plans_of(tmp_path, "T1w", "T2w")
    clock = [0.0]
    left = TimeLeft(plans, now=lambda: clock[0])
    planned = sum(plan.cost.seconds for plan in plans)
    assert left.seconds() == pytest.approx(planned)
    first, second = (plan.image.workflow_name for plan in plans)
    # Every step takes three times as long as planned.
    for step in ("conform", "brain_mask", "n4", "register_X", "super_resolve"):
        clock[0] += 3 * plans[0].cost.seconds_of(step)
        left.ended(first, step)
    left.image_ended(first)
    rest = plans[1].cost.seconds
    assert 1.5 * rest < left.seconds() < 3 * rest
    # A step that runs counts as far as it is, and no further than planned.
    half = plans[1].cost.seconds_of("super_resolve")
    assert left.seconds([(second, "super_resolve", half)]) < left.seconds()
    assert left.seconds([(second, "super_resolve", 99 * half)]) == left.seconds([(second, "super_resolve", half)])
    # What an earlier run had done says nothing of the pace.
    before = left.seconds()
    left.ended(second, "brain_mask", ran=False)
    assert left.seconds() < before
    left.image_ended(second)
    assert left.seconds() == 0
    assert left.words() == "less than 2 min left"
