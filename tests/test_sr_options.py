"""Options of super-resolution: one declaration for Python, both commands and saved settings."""

from __future__ import annotations

import argparse

from hypothesis import given
from hypothesis import strategies as st

from moesr_bids.arguments import Parser
from moesr_bids.sr.options import CONTRASTS, DEVICES, SROptions
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.runtimes import RUNTIMES
from moesr_bids.sr.sampling import ESTIMATES

_OPTIONS = st.builds(
    SROptions,
    resolution=st.floats(0.3, 3.0).map(lambda value: round(value, 6)),
    model=st.sampled_from(["student", "cubic", "/a folder/own.safetensors"]),
    psf=st.sampled_from([None, "kspace,kspace,gaussian:5"]),
    contrast=st.sampled_from(["", *CONTRASTS]),
    averaged=st.booleans(),
    runtime=st.sampled_from(RUNTIMES),
    samples=st.integers(1, 9999),
    estimate=st.sampled_from(ESTIMATES),
    device=st.sampled_from(DEVICES),
    threads=st.none() | st.integers(1, 64),
    memory_gb=st.none() | st.floats(0.1, 500.0),
    random_seed=st.integers(-5, 2**31),
)


@given(_OPTIONS)
def test_the_command_line_of_options_gives_them_back(options: SROptions) -> None:
    parser = argparse.ArgumentParser()
    SROptions.add_arguments(parser)
    assert SROptions.from_args(parser.parse_args(options.to_argv())) == options


@given(_OPTIONS)
def test_saved_options_of_the_app_give_them_back(options: SROptions) -> None:
    saved = options.by_flag()
    again = SROptions.from_args({**saved, "omp-nthreads": 3}, of_app=True)
    assert again.by_flag() == saved
    assert again.threads is None
    assert set(saved) - set(options.by_flag(deciding=True)) == {"device"}


def test_defaults_need_no_argument() -> None:
    assert SROptions().to_argv() == []
    parser = Parser()
    SROptions.add_arguments(parser)
    assert SROptions.from_args(parser.parse_args([])) == SROptions()
    assert parser.parse_args(["--random_seed", "3"]).random_seed == 3


def test_a_point_spread_function_is_written_as_it_is_read() -> None:
    psf = PSF.parse("kspace:0.9,kspace,gaussian:5.25", (1.0, 1.1, 5.0))
    assert PSF.parse(str(psf), (1.0, 1.0, 1.0)) == psf
    assert SROptions(psf=psf).to_argv() == ["--psf", "kspace:0.9,kspace:1.1,gaussian:5.25"]
