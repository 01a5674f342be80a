"""A SLURM of one node, for tests and measurements: munge, slurmctld and slurmd of this machine.

It is the real SLURM (Debian's ``slurm-wlm`` and ``munge``) and has to be started by root. Control groups limit the
memory, so a task that takes too much is killed as on a cluster.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIGURATION = """\
ClusterName=moesr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,sched_min_interval=100000
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=10
MaxArraySize={largest_array}
MaxJobCount=20000
MpiDefault=none
ReturnToService=2
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb}
PartitionName=main Nodes={node} Default=YES MaxTime=UNLIMITED State=UP
"""
_CGROUPS = """\
CgroupPlugin=cgroup/{version}
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""


def missing() -> str:
    """Return why no SLURM can be started here; empty if it can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"{lacking[0]} is not installed"
    return "" if os.getuid() == 0 else "only root can start SLURM"


@contextmanager
def slurm_site(folder: Path, *, cpus: int, memory_mb: int, largest_array: int = 1001) -> Iterator[dict[str, str]]:
    """Start SLURM; at the end of the block stop it and all jobs.

    Parameters
    ----------
    folder : pathlib.Path
        New folder for its state and logs; a short path, for sockets.
    cpus, memory_mb : int
        CPUs and memory of the node; they may be more than the machine has.
    largest_array : int
        ``MaxArraySize``.

    Yields
    ------
    dict
        Environment for SLURM's commands.

    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = _free_port(), _free_port()
    node = f"node{os.getpid()}"  # control groups are named after it: two on one machine would end each other's jobs
    text = _CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        port=ports[0],
        node_port=ports[1],
        folder=folder,
        node=node,
        cpus=cpus,
        memory_mb=memory_mb,
        largest_array=largest_array,
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    (folder / "cgroup.conf").write_text(_CGROUPS.format(version=version), encoding="utf-8")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", node]):
            with (folder / f"{command[0]}.out").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        _wait_for_node(folder, environment)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, timeout=60)
        _wait_for_empty_queue(environment, seconds=30)
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def jobs(environment: dict[str, str]) -> dict[str, str]:
    """Return the state of each job in the queue, by ``<job>_<task>`` or job."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    return dict(line.split() for line in told.splitlines())


def _wait_for_node(folder: Path, environment: dict[str, str]) -> None:
    for _ in range(60):
        told = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, check=False)
        if told.stdout.strip() == b"idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"SLURM does not start: {told.stdout!r} {told.stderr!r}\n{logs}")


def _wait_for_empty_queue(environment: dict[str, str], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and jobs(environment):
        time.sleep(0.5)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
