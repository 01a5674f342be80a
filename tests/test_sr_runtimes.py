"""The runtimes of the convolutions: folded weights, PyTorch, OpenVINO."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from moesr_bids.cli.moesr import main
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.models.acquisition import CONDITIONS, GUIDANCE
from moesr_bids.sr.models.network import (
    INPUTS,
    FoldedNetwork,
    NetworkShape,
    ResidualNetwork,
    network_cells,
    network_output,
)
from moesr_bids.sr.models.network import _level as level
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.runtimes import RUNTIMES, features_of
from tests.test_sr_student import learned, thick

__all__ = ["learned"]  # a fixture
CPU = torch.device("cpu")


def some_network(seed: int, kernels: int = 1) -> ResidualNetwork:
    torch.manual_seed(seed)
    network = ResidualNetwork(NetworkShape(channels=8, blocks=2, embedding=8, kernels=kernels, expansion=1.5)).eval()
    for layer in (network.tail, *(block.modulate for block in network.body)):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return network


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 2**31 - 1), st.sampled_from(RUNTIMES), st.sampled_from((1, 3)))
def test_every_runtime_computes_what_the_network_says(seed: int, runtime: str, kernels: int) -> None:
    network = some_network(seed, kernels)
    acquisition = torch.randn(CONDITIONS)
    folded = FoldedNetwork(network, acquisition)
    features = features_of(runtime, folded, torch.float32, CPU)
    for size in ((12, 16, 20), (8, 8, 10)):
        channels = torch.randn(1, INPUTS + len(GUIDANCE), *size)
        with torch.inference_mode():
            wanted = network(channels, acquisition[None])
            found = network_output(features(network_cells(channels)), folded.tail)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_network_as_it_was() -> None:
    network = some_network(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FoldedNetwork(network, torch.randn(CONDITIONS))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_level_is_the_mean_over_the_cube_around_a_voxel() -> None:
    image = torch.rand(1, 1, 11, 9, 14)
    wanted = functional.avg_pool3d(image, 7, stride=1, padding=3, count_include_pad=False)
    torch.testing.assert_close(level(image), wanted, rtol=0, atol=1e-6)


def test_runtimes_give_the_same_image_and_say_which_ran(learned: Path) -> None:
    results = [
        super_resolve(thick(), SROptions(resolution=1.0, model=str(learned), runtime=name, threads=1))
        for name in RUNTIMES
    ]
    assert [result.record["Runtime"] for result in results] == list(RUNTIMES)
    one, other = (result.image.get_fdata() for result in results)
    rounding = 1e-4 if results[0].record["Precision"] == "float32" else 1e-3
    np.testing.assert_allclose(one, other, atol=rounding * one.max())


def test_a_runtime_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folded = FoldedNetwork(some_network(0), torch.zeros(CONDITIONS))
    with pytest.raises(ValueError, match="unknown runtime 'onnx': one of torch, openvino"):
        features_of("onnx", folded, torch.float32, CPU)
    with pytest.raises(ValueError, match="for the CPU"):
        features_of("openvino", folded, torch.float32, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install 'moesr-bids\[openvino\]'"):
        features_of("openvino", folded, torch.float32, CPU)


def test_command_refuses_a_runtime_for_models_without_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thick().to_filename(tmp_path / "in.nii.gz")
    argv = ["sr", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz"), "--model", "cubic"]
    assert main([*argv, "--runtime", "openvino"]) == 2
    assert "no use for --runtime" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()
