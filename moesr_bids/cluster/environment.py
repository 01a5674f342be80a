"""Check of a machine, a job or a container: CPUs, memory, GPU, folders, templates, weights."""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from moesr_bids.config import EMBEDDED_TEMPLATE
from moesr_bids.resources import (
    GIB,
    available_cpus,
    available_memory_gb,
    cpu_limits,
    cpu_name,
    memory_limits,
    semaphore_problem,
)

LEAST_MEMORY_GB = 4.0  # a head at 0.7 mm needs at least this
LEAST_WORK_GB, LEAST_OUTPUT_GB, LEAST_TEMPORARY_GB = 2.0, 0.5, 0.03
_LINKS_READ = 200  # participants whose links are followed: enough to find a disk that is not bound
_DRIVER = Path("/proc/driver/nvidia/version")


@frozen
class Finding:
    """Finding about one subject.

    Attributes
    ----------
    subject : str
        What was checked.
    told : str
        What was found.
    fault : str
        One sentence that says what is wrong and what to do; empty if nothing is.

    """

    subject: str
    told: str
    fault: str = ""


def container(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """Return the kind of container that this process runs in; empty if in none that is known.

    Parameters
    ----------
    environment : Mapping
        Environment variables.
    root : pathlib.Path
        Root of the file system.

    """
    if (root / ".singularity.d").exists() or "APPTAINER_CONTAINER" in environment:
        return "Apptainer"
    if "CH_RUNNING" in environment:
        return "Charliecloud"
    if (root / "run/.containerenv").exists():
        return "Podman"
    return "Docker" if (root / ".dockerenv").exists() else ""


def machine() -> Finding:
    """Find the CPUs and what limits them."""
    cpus = available_cpus()
    source = min(cpu_limits(), key=lambda limit: limit[1])[0]
    return Finding("CPUs", f"{cpus} ({source}), {cpu_name()}")


def memory() -> Finding:
    """Find the memory and where its limit comes from."""
    amount = available_memory_gb()
    source = min(memory_limits(), key=lambda limit: limit[1])[0]
    fault = ""
    if amount < LEAST_MEMORY_GB:
        fault = (
            f"{amount:.1f} GB is less than a head needs at 0.7 mm; ask for at least {LEAST_MEMORY_GB:g} GB, better 8"
        )
    return Finding("memory", f"{amount:.1f} GB ({source})", fault)


def gpu(device: str, environment: Mapping[str, str]) -> Finding:
    """Find out whether there is a GPU and it can be used.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu`` or ``cuda``, as ``--device``. Only with ``cuda`` a missing GPU is a fault.
    environment : Mapping
        Environment variables.

    """
    if device == "cpu":
        return Finding("GPU", "not asked for")
    import torch

    from moesr_bids.interfaces.gpus import gpu_problem, visible_gpus

    gpus = visible_gpus()
    problem = gpu_problem()
    if problem is None:
        return Finding("GPU", f"{len(gpus)} ({_gpu_names()}), PyTorch {torch.__version__} can use it")
    hidden = driver_hidden(environment)
    if hidden:
        return Finding("GPU", "the machine has the driver, nothing of it is seen here", hidden)
    if gpus and torch.version.cuda is None:
        return Finding(
            "GPU", f"{len(gpus)} seen", "PyTorch here is built for CPUs only; take the CUDA variant of the image"
        )
    if gpus:
        return Finding("GPU", f"{len(gpus)} seen", f"{problem}; update the driver, or run with --device cpu")
    asked = "no GPU is here; ask the scheduler for one, or run with --device cpu" if device == "cuda" else ""
    return Finding("GPU", "none", asked)


def driver_hidden(environment: Mapping[str, str], *, driver: Path = _DRIVER) -> str:
    """Return what to do if the kernel has NVIDIA's driver, but this process does not see its tools and libraries.

    Parameters
    ----------
    environment : Mapping
        Environment variables.
    driver : pathlib.Path
        File that exists if the kernel has the driver, in containers too.

    """
    if not driver.exists() or (shutil.which("nvidia-smi") and ctypes.util.find_library("cuda")):
        return ""
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""  # a job without GPU on a node that has one
    ways = {
        "Apptainer": "start the container with --nv",
        "Docker": "start the container with --gpus all",
        "Podman": "start the container with --device nvidia.com/gpu=all",
        "Charliecloud": "put the driver's files into the image with ch-fromhost --nvidia",
    }
    way = ways.get(container(environment), "install the driver's nvidia-smi and libcuda")
    return f"the GPU of this machine cannot be reached; {way}, or run with --device cpu"


def _gpu_names() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return "; ".join(line.replace(", ", ", free ") for line in listed.strip().splitlines())
    return "unnamed"


def folder(subject: str, path: Path, least_gb: float) -> Finding:
    """Find out whether a folder, or its nearest existing parent, can be written to, and how much space there is.

    Parameters
    ----------
    subject : str
        Purpose of the folder, for messages.
    path : pathlib.Path
        The folder; it need not exist yet.
    least_gb : float
        Space in GiB below which a run would fail.

    """
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(b"moesr")
    except OSError as error:
        return Finding(
            subject, str(path), f"{subject} {path} cannot be written to ({error.strerror}); name another one"
        )
    free = shutil.disk_usage(there).free / GIB
    fault = f"{subject} {path} has {free:.2f} GB left, at least {least_gb:g} are needed; name another one"
    return Finding(subject, f"{path}, {free:.1f} GB free", fault if free < least_gb else "")


def temporary_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the folders that programs use by themselves: temporary files, shared memory, HOME."""
    try:
        yield folder("temporary folder", Path(tempfile.gettempdir()), LEAST_TEMPORARY_GB)
    except FileNotFoundError:
        yield Finding("temporary folder", "none", "no temporary folder can be written to; set TMPDIR to one that can")
    shared = Path("/dev/shm")
    told = f"{shutil.disk_usage(shared).free / GIB:.3f} GB free" if shared.is_dir() else "not here"
    yield Finding("/dev/shm", told, semaphore_problem())
    home = environment.get("HOME", "")
    writable = bool(home) and os.access(home, os.W_OK)
    yield Finding("HOME", home + ("" if writable else " (not writable; nothing is kept there)") if home else "not set")


def links(bids_dir: Path) -> Finding:
    """Find out whether the data set can be read, and whether its links lead to existing files."""
    if not bids_dir.is_dir():
        return Finding("data set", str(bids_dir), f"data set {bids_dir} is not here; in a container, bind it")
    if not os.access(bids_dir, os.R_OK | os.X_OK):
        return Finding("data set", str(bids_dir), f"data set {bids_dir} cannot be read by user {os.getuid()}")
    participants = sorted(path for path in bids_dir.glob("sub-*") if path.is_dir())
    images = [path for one in participants[:_LINKS_READ] for path in one.glob("**/anat/*.nii*")]
    dangling = [path for path in images if not path.exists()]
    told = f"{bids_dir}, {len(participants)} participants, {len(images)} images of the first {_LINKS_READ}"
    if not dangling:
        return Finding("data set", told)
    target = Path(os.path.realpath(dangling[0]))
    missing = next((parent for parent in target.parents if not parent.exists() and parent.parent.exists()), target)
    what = "annexed content: get it (datalad get)" if ".git/annex" in str(target) else f"bind {missing} as well"
    return Finding(
        "data set", told, f"{len(dangling)} images are links to files that are not here ({dangling[0].name}); {what}"
    )


def templates() -> Iterator[Finding]:
    """Find the templates."""
    from moesr_bids.preproc.template import load_template, templateflow_home

    try:
        shape = load_template(EMBEDDED_TEMPLATE).image.shape
    except (OSError, ValueError) as error:
        yield Finding("template", EMBEDDED_TEMPLATE, f"the packaged template cannot be read ({error}); install again")
        return
    home = templateflow_home()
    others = sorted(path.name.removeprefix("tpl-") for path in home.glob("tpl-*")) if home.is_dir() else []
    told = f"{EMBEDDED_TEMPLATE} ({' x '.join(map(str, shape))}), comes with the package"
    yield Finding("templates", f"{told}; in {home}: {', '.join(others) or 'none'}")


def weights() -> Iterator[Finding]:
    """Find the packaged weights, and check them against their cards."""
    from moesr_bids.sr.models import model_names, weights_path
    from moesr_bids.sr.weights import Weights

    for name in model_names():
        path = weights_path(name)
        if path is None:
            continue
        try:
            read = Weights.read(path)
        except ValueError as error:
            yield Finding(f"weights of {name}", str(path), f"{error}; install moesr-bids again")
        else:
            yield Finding(f"weights of {name}", f"SHA-256 {read.sha256}")


def software(environment: Mapping[str, str]) -> Finding:
    """Find versions and container, and environment variables that could load other libraries than the package's."""
    from moesr_bids import __version__

    inside = container(environment)
    where = f"in {inside}" if inside else "in no container"
    told = f"moesr-bids {__version__}, Python {platform.python_version()}, {where}"
    hostile = [name for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD") if environment.get(name)]
    loaded = Path(sys.modules["moesr_bids"].__file__ or "").parent
    return Finding("software", f"{told}, from {loaded}" + (f"; set outside: {', '.join(hostile)}" if hostile else ""))
