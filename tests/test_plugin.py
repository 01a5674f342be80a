"""The plugin survives workers that are killed, as the kernel does when memory runs out."""

from __future__ import annotations

from pathlib import Path

import pytest
from nipype.interfaces.utility import Function, Merge
from nipype.pipeline.engine import Node, Workflow

from moesr_bids.workflows.execution import read_plugin
from moesr_bids.workflows.plugin import RobustMultiProc


def die(marker: str, times: int) -> int:
    import os
    import signal
    from pathlib import Path

    path = Path(marker)
    tries = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (tries + 1))
    if tries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries + 1


def make_workflow(folder: Path, times: int) -> Workflow:
    workflow = Workflow(name="wf", base_dir=str(folder))
    workflow.config["execution"] = {
        "crashdump_dir": str(folder / "crash"),
        "crashfile_format": "txt",
        "poll_sleep_duration": "0.1",
        "stop_on_first_crash": "false",
        "create_report": "false",
    }
    killed = Node(Function(function=die, output_names=["tries"]), name="killed")
    killed.inputs.marker = str(folder / "killed")
    killed.inputs.times = times
    innocent = Node(Function(function=die, output_names=["tries"]), name="innocent")
    innocent.inputs.marker = str(folder / "innocent")
    innocent.inputs.times = 0
    workflow.add_nodes([killed, innocent])
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


@pytest.mark.timeout(60)
def test_images_are_taken_one_after_the_other(tmp_path: Path) -> None:
    workflow = Workflow(name="wf", base_dir=str(tmp_path))
    workflow.config["execution"] = {"poll_sleep_duration": "0.1", "create_report": "false"}
    for image in ("one", "two", "three"):
        chain = Workflow(name=image)
        nodes = [Node(Merge(1), name=name) for name in ("a", "b", "c")]
        chain.connect([(nodes[0], nodes[1], [("out", "in1")]), (nodes[1], nodes[2], [("out", "in1")])])
        nodes[0].inputs.in1 = image
        workflow.add_nodes([chain])
    ended: list[str] = []
    arguments = {
        "n_procs": 1,
        "memory_gb": 1,
        "n_gpu_procs": 0,
        "status_callback": lambda node, status: ended.append(node.fullname.split(".")[1]) if status == "end" else None,
    }
    workflow.run(plugin=RobustMultiProc(plugin_args=arguments))
    assert ended == sorted(ended)
    assert len(ended) == 9


@pytest.mark.timeout(60)
def test_a_step_whose_worker_died_once_is_run_again(tmp_path: Path) -> None:
    seen = run(make_workflow(tmp_path, times=1))
    assert ("killed", "end") in seen
    assert ("innocent", "end") in seen
    assert (tmp_path / "killed").read_text() == "xx"


@pytest.mark.timeout(60)
def test_a_step_that_always_dies_fails_alone_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="lack of memory"):
        run(make_workflow(tmp_path, times=99))
    assert (tmp_path / "killed").read_text() == "xx"
    assert (tmp_path / "innocent").read_text() in {"x", "xx"}
    crashes = list((tmp_path / "crash").glob("crash-*killed*.txt"))
    assert len(crashes) == 1
    assert "a worker process was killed" in crashes[0].read_text()


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
