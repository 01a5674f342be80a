"""The super-resolution command as a Nipype interface: it runs in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, isdefined, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make, read_object, unstructured
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec
from moesr_bids.interfaces.gpus import one_gpu, visible_gpus
from moesr_bids.interfaces.processes import end_with
from moesr_bids.sr.models import EXPERT_MAPS
from moesr_bids.sr.options import SROptions

SR_LOG = "moesr_sr.log"
"""File with the lines that the process prints, in the work folder of the step."""


class _SuperResolveInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected image on its own grid")
    mask_file = File(exists=True, desc="brain mask on the same grid")
    bias_file = File(exists=True, desc="natural logarithm of the bias field, same grid: guidance for the model")
    jacobian_file = File(exists=True, desc="natural logarithm of the Jacobian of the unwarping: guidance for the model")
    metadata_file = File(exists=True, desc="merged sidecars as JSON")
    options = traits.Instance(SROptions, (), usedefault=True, desc="what a user may choose, threads and memory aside")
    experts = traits.List(Str, desc="experts of the model, whose maps are to be written")
    uncertainty = traits.Bool(False, usedefault=True, desc="write the standard deviation of the error")
    weights_sha256 = Str("n/a", usedefault=True, desc="digest of the weights: with others the step runs again")
    omp_nthreads = traits.Int(1, usedefault=True, nohash=True, desc="threads")
    memory_gb = traits.Float(nohash=True, desc="largest memory in GiB; by default the free memory")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="tells the scheduler that this is a GPU node")


class _SuperResolveOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="super-resolved image on the target grid")
    residual_file = File(exists=True, desc="input minus A(output) in units of the noise, on the input grid")
    uncertainty_file = File(desc="standard deviation of the error on the target grid, of models that predict it")
    gate_centrum = File(desc="weight of the expert for deep white matter, target grid")
    gate_cortex = File(desc="weight of the expert for the cortex, target grid")
    gate_junction = File(desc="weight of the expert for the grey-white junction, target grid")
    map_files = traits.List(File, desc="gate-<expert> and difference-<expert>, target grid")


class SuperResolve(RecordedInterface):
    """Run ``moesr sr`` in a process of its own, so that the GPU is free after it and a kill has a clear message."""

    input_spec = _SuperResolveInputSpec
    output_spec = _SuperResolveOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        cwd = Path(runtime.cwd)
        out_file, residual_file, record_file = cwd / "sr.nii.gz", cwd / "residual.nii.gz", cwd / "record.json"
        inputs, memory = self.inputs, self.inputs.memory_gb
        options = attrs.evolve(
            inputs.options, threads=inputs.omp_nthreads, memory_gb=memory if isdefined(memory) else None
        )
        files = {
            "--residual": str(residual_file),
            "--record": str(record_file),
            "--mask": inputs.mask_file,
            "--metadata": inputs.metadata_file,
            "--log-bias": inputs.bias_file,
            "--log-jacobian": inputs.jacobian_file,
        }
        if inputs.uncertainty:
            files["--uncertainty"] = self._results["uncertainty_file"] = str(cwd / "uncertainty.nii.gz")
        if experts := list(inputs.experts or []):
            (cwd / "maps").mkdir(exist_ok=True)
            files["--maps"] = str(cwd / "maps")
        arguments = ["sr", inputs.in_file, str(out_file), *options.to_argv()]
        arguments += [part for flag, file in files.items() if file for part in (flag, file)]
        run_moesr(arguments, cwd, inputs.in_file, gpu=options.device != "cpu")
        self._results.update(out_file=str(out_file), residual_file=str(residual_file))
        record = make(SRRecord, read_object(record_file))
        if options.device == "auto" and record.device == "cpu" and visible_gpus():
            told = "there is a GPU, but PyTorch cannot use it: the super-resolution ran on the CPU"
            record = attrs.evolve(record, warnings=(*record.warnings, told))
        maps = {kind: [str(cwd / "maps" / f"{kind}-{name}.nii.gz") for name in experts] for kind in EXPERT_MAPS}
        self._results.update({f"gate_{name}": path for name, path in zip(experts, maps["gate"], strict=True)})
        self._results["map_files"] = [path for kind in EXPERT_MAPS for path in maps[kind]]
        return unstructured(record)


def run_moesr(arguments: Sequence[str], cwd: Path, source: str, *, gpu: bool = False) -> None:
    """Run a command of ``moesr`` in a process of its own, which ends with this one.

    Parameters
    ----------
    arguments : sequence of str
        Command and options.
    cwd : pathlib.Path
        Where it runs, and where `SR_LOG` is written.
    source : str
        What messages call the input.
    gpu : bool
        Whether it may use a GPU.

    Raises
    ------
    MemoryError, RuntimeError
        If it does not end well.

    """
    log = cwd / SR_LOG  # the run reads the progress from it
    with _environment(gpu=gpu) as environment, log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "moesr_bids.cli.moesr", *arguments],
            cwd=cwd,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment,
            preexec_fn=partial(end_with, os.getpid()),  # a system call, which takes no lock
        )
    _refuse_failure(done.returncode, log.read_text(encoding="utf-8", errors="replace"), source)


def _refuse_failure(code: int, told: str, source: str) -> None:
    """Raise an error for an exit code other than 0, with the last lines that the process printed.

    Raises
    ------
    MemoryError
        If the process was killed.
    RuntimeError
        If it was ended by another signal, or failed.

    """
    if code == -signal.SIGKILL:
        raise MemoryError(
            f"{source}: the super-resolution process was killed, most often for lack of memory; "
            "give more memory to the job or a larger --resolution"
        )
    if code < 0:
        name = signal.Signals(-code).name
        raise RuntimeError(f"super-resolution was ended by signal {name}\n{told.strip()[-2000:]}")
    if code != 0:
        lines = (told.strip() or f"exit code {code}").splitlines()
        raise RuntimeError(f"super-resolution failed: {lines[-1]}\n" + "\n".join(lines[-20:]))


@contextmanager
def _environment(*, gpu: bool) -> Iterator[dict[str, str]]:
    """Yield the environment of the process; with a GPU it names one, which no other process gets meanwhile.

    The GPUs are those of the machine on which the step runs, which may be another one than the scheduler's.
    """
    gpus = visible_gpus() if gpu else {}
    if not gpus:
        yield dict(os.environ)
        return
    with one_gpu(gpus) as one:
        yield {**os.environ, "CUDA_VISIBLE_DEVICES": one}
