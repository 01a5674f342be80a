"""The plugin survives workers that are killed, as the kernel does when memory runs out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from nipype.interfaces.utility import Function, Merge
from nipype.pipeline.engine import Node, Workflow

from moesr_bids.config import Settings
from moesr_bids.interfaces.processes import end_with
from moesr_bids.workflows.execution import configure_nipype, read_plugin
from moesr_bids.workflows.plugin import RobustMultiProc, Workers


def die(marker: str, times: int, seconds: float) -> int:
    import os
    import signal
    import time
    from pathlib import Path

    path = Path(marker)
    tries = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (tries + 1))
    time.sleep(seconds)
    if tries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries + 1


def make_workflow(folder: Path, times: int) -> Workflow:
    """Put a step that dies beside one that takes longer than both of its tries."""
    workflow = Workflow(name="wf", base_dir=str(folder))
    workflow.config["execution"] = {
        "crashdump_dir": str(folder / "crash"),
        "crashfile_format": "txt",
        "poll_sleep_duration": "0.1",
        "stop_on_first_crash": "false",
        "create_report": "false",
    }
    folder.mkdir(exist_ok=True)
    for name, deaths, seconds in (("killed", times, 0.3), ("innocent", 0, 3.0)):
        node = Node(Function(function=die, output_names=["tries"]), name=name)
        node.inputs.trait_set(marker=str(folder / name), times=deaths, seconds=seconds)
        workflow.add_nodes([node])
    return workflow


def run(workflow: Workflow) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    arguments = {
        "n_procs": 2,
        "memory_gb": 2,
        "n_gpu_procs": 0,
        "status_callback": lambda node, status: seen.append((node.name, status)),
    }
    workflow.run(plugin=RobustMultiProc(plugin_args=arguments))
    return seen


@pytest.mark.timeout(180)
def test_images_are_taken_one_after_the_other(tmp_path: Path) -> None:
    workflow = Workflow(name="wf", base_dir=str(tmp_path))
    workflow.config["execution"] = {"poll_sleep_duration": "0.1", "create_report": "false"}
    for image in ("one", "two", "three"):
        # The parts of an image are workflows of their own, as in the app.
        chain = Workflow(name=image)
        early, late = Workflow(name="a_part"), Workflow(name="b_part")
        nodes = [Node(Merge(1), name=name) for name in ("a", "b", "c")]
        nodes[0].inputs.in1 = image
        early.connect([(nodes[0], nodes[1], [("out", "in1")])])
        late.add_nodes([nodes[2]])
        chain.connect([(early, late, [("b.out", "c.in1")])])
        participant = Workflow(name=f"of_{image}")
        participant.add_nodes([chain])
        workflow.add_nodes([participant])
    ended: list[str] = []
    arguments = {
        "n_procs": 1,
        "memory_gb": 1,
        "n_gpu_procs": 0,
        "status_callback": lambda node, status: ended.append(node.fullname.split(".")[2]) if status == "end" else None,
    }
    workflow.run(plugin=RobustMultiProc(plugin_args=arguments))
    # By participant, of_one before of_three before of_two, and each to its end.
    assert ended == ["one"] * 3 + ["three"] * 3 + ["two"] * 3


@pytest.mark.timeout(180)
def test_a_step_whose_worker_died_once_is_run_again(tmp_path: Path) -> None:
    seen = run(make_workflow(tmp_path, times=1))
    assert ("killed", "end") in seen
    assert ("innocent", "end") in seen
    assert (tmp_path / "killed").read_text() == "xx"
    assert (tmp_path / "innocent").read_text() == "x", "it lost its worker, or was run again"


@pytest.mark.timeout(180)
def test_a_step_that_always_dies_fails_alone_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lack of memory"):
        run(make_workflow(tmp_path, times=99))
    assert (tmp_path / "killed").read_text() == "xx"
    assert (tmp_path / "innocent").read_text() == "x", "it lost its worker, or was run again"
    crashes = list((tmp_path / "crash").glob("crash-*killed*.txt"))
    assert len(crashes) == 1
    assert "a worker process was killed" in crashes[0].read_text()


class UnreadableError(Exception):
    """It can be pickled, but not be read again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)


def give_back_what_cannot_be_read() -> object:
    from tests.test_plugin import UnreadableError

    return UnreadableError(1, 2)


@pytest.mark.timeout(180)
def test_a_result_that_cannot_be_read_is_not_told_as_lack_of_memory(tmp_path: Path) -> None:
    workflow = make_workflow(tmp_path, times=0)
    workflow.add_nodes([Node(Function(function=give_back_what_cannot_be_read, output_names=["it"]), name="unread")])
    with pytest.raises(RuntimeError, match="missing 1 required positional argument"):
        run(workflow)
    assert (tmp_path / "innocent").read_text() == "x"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("context", [None, "forkserver", "spawn"])
def test_a_worker_that_dies_with_nothing_to_do_costs_no_step(context: str | None) -> None:
    workers = Workers(str(Path.cwd()), context)
    first = workers.submit(os.getpid).result()
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)], timeout=30)
    time.sleep(0.5)  # the pool has noticed
    assert workers.submit(os.getpid).result() != first
    workers.shutdown()


def _start_sleeping(path: str) -> None:
    """Start a process that outlasts this one, as a step starts the super-resolution."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, preexec_fn=partial(end_with, os.getpid())) as child:
        Path(path).write_text(f"{os.getpid()} {child.pid}")
        child.wait()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["worker", "run"])
def test_nothing_outlives_what_was_killed(tmp_path: Path, victim: str) -> None:
    """What a killed step or run leaves running would write beside the next one, in the same folder."""
    pids = tmp_path / "pids"
    code = (
        "from moesr_bids.workflows.plugin import Workers\n"
        "from tests.test_plugin import _start_sleeping\n"
        f"Workers({str(tmp_path)!r}).submit(_start_sleeping, {str(pids)!r}).exception()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1]) as run:
        while not pids.exists() or len(pids.read_text().split()) < 2:
            time.sleep(0.05)
        worker, child = (psutil.Process(int(pid)) for pid in pids.read_text().split())
        os.kill(worker.pid if victim == "worker" else run.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs([worker, child], timeout=30)
        assert not alive
        run.wait(timeout=60)


@pytest.mark.timeout(180)
def test_a_percent_sign_in_a_path_does_no_harm(tmp_path: Path) -> None:
    """Nipype's configuration would take it for the beginning of a variable."""
    folder = tmp_path / "out 50%(x)s"
    places = {"bids_dir": tmp_path, "output_dir": folder / "out", "work_dir": folder / "work"}
    configure_nipype(Settings(**places, analysis_level="participant"))
    with pytest.raises(RuntimeError, match="lack of memory"):
        run(make_workflow(folder, times=99))
    assert len(list((folder / "crash").glob("crash-*killed*.txt"))) == 1


def test_plugin_file(tmp_path: Path) -> None:
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: Linear\nplugin_args: {x: 1}\n")
    plugin, arguments = read_plugin(path)
    assert plugin.__name__ == "LinearPlugin"
    assert arguments == {"x": 1}
    path.write_text("plugin: MultiProc")
    assert read_plugin(path) == (RobustMultiProc, {})
    for text in ("plugin: NoSuch", "[]", "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match="plugin file"):
            read_plugin(path)
