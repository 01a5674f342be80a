"""CPUs and memory that a process may use, and time and peak memory that it used."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
from threadpoolctl import threadpool_limits

GIB = 1024**3
_CGROUPS = Path("/sys/fs/cgroup")
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@attrs.define
class Measurement:
    """Wall time and peak memory of a block of code.

    Attributes
    ----------
    seconds : float
        Wall time in seconds.
    peak_memory_gb : float
        Peak resident memory in GiB of this process, without its children.

    """

    seconds: float = 0.0
    peak_memory_gb: float = 0.0


def _reset_peak_memory() -> None:
    # Workers of Nipype's pool run many nodes; without the reset, each would report the peak of all nodes before it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory_gb() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measure a block: ``with measured() as m: ...``, then read ``m.seconds`` and ``m.peak_memory_gb``."""
    measurement = Measurement()
    _reset_peak_memory()
    start = time.monotonic()
    try:
        yield measurement
    finally:
        measurement.seconds = round(time.monotonic() - start, 3)
        measurement.peak_memory_gb = round(_peak_memory_gb(), 3)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy and SciPy multiply with one thread inside the context, and in the processes that it starts.

    The number of threads decides the order of sums, and would depend on the user's environment. With one thread, the
    same image gives the same result everywhere.
    """
    before = {name: os.environ.get(name) for name in _BLAS_VARIABLES}
    # The variables are for libraries that are loaded later, and for child processes.
    os.environ.update(dict.fromkeys(_BLAS_VARIABLES, "1"))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def available_cpus() -> int:
    """Return the number of CPUs this process may use: affinity, SLURM and cgroup limits included."""
    return max(1, min(count for _, count in cpu_limits()))


def cpu_limits() -> list[tuple[str, int]]:
    """Return the limits of this process's CPUs: the source of each in words, and the count."""
    counts = [
        ("cores of its affinity", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0),
        ("cores of the machine", os.cpu_count() or 1),
    ]
    with suppress(KeyError, ValueError):
        counts.append(("SLURM_CPUS_PER_TASK", int(os.environ["SLURM_CPUS_PER_TASK"])))
    counts += [("quota of its control group", count) for count in cpu_quotas(_CGROUPS)]
    return [(source, count) for source, count in counts if count > 0]


def cpu_quotas(root: Path) -> list[int]:
    """Return the CPUs that the control group of a container may use, versions 2 and 1; empty without a limit."""
    found = []
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join((root / name).read_text(encoding="ascii") for name in files).split()
            if int(quota) > 0:  # version 1 says -1 for no limit, version 2 max
                found.append(max(1, int(quota) // int(period)))
    return found


def cpu_name() -> str:
    """Return the name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def semaphore_problem() -> str:
    """Return what to do if semaphores cannot be made (Python keeps them in /dev/shm); empty if they can."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        return (
            f"/dev/shm, which parallel processes need, cannot be written ({error.strerror}); mount it writable, e.g. "
            "`--tmpfs /dev/shm` of Docker, or `--bind` of a writable folder to /dev/shm of Apptainer"
        )
    return ""


def available_memory_gb() -> float:
    """Return the memory in GiB that this process may use: what is free, within the limits of SLURM and cgroups."""
    return min(limit for _, limit in memory_limits())


def memory_limits() -> list[tuple[str, float]]:
    """Return the limits of this process's memory: the source of each in words, and GiB."""
    import psutil

    limits = [("free on this machine", float(psutil.virtual_memory().available))]
    limits += [(f"limit of {file}", float(limit)) for file, limit in _cgroup_limits()]
    with suppress(KeyError, ValueError):
        limits.append(("SLURM_MEM_PER_NODE", float(os.environ["SLURM_MEM_PER_NODE"]) * 1024**2))
    with suppress(KeyError, ValueError):
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        limits.append(("SLURM_MEM_PER_CPU", float(os.environ["SLURM_MEM_PER_CPU"]) * cpus * 1024**2))
    # SLURM says 0 for no limit.
    return [(source, limit / GIB) for source, limit in limits if limit > 0]


def _cgroup_limits() -> list[tuple[Path, int]]:
    """Return the memory limits in bytes of this process's control group and of those above it, versions 1 and 2."""
    root = _CGROUPS
    groups = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                base, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
                group = base / path.lstrip("/")
                groups += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(base)]
    limits = []
    for file in dict.fromkeys(groups):
        with suppress(OSError, ValueError):
            limits.append((file, int(file.read_text(encoding="ascii"))))
    return limits


def speed_of(threads: int) -> float:
    """Return how many times as fast as one thread so many are: they wait for each other now and then."""
    return 1.0 if threads <= 1 else threads**0.8
