"""The GPUs of this machine, each for one process at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

_WAIT_SECONDS = 0.5


def visible_gpus() -> dict[str, str]:
    """Find the NVIDIA GPUs that the driver and ``CUDA_VISIBLE_DEVICES`` show to this process.

    Returns
    -------
    dict
        From the name that ``CUDA_VISIBLE_DEVICES`` takes to the UUID of the device; empty without a driver.

    """
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    uuids = re.findall(r"^GPU .*\(UUID: (\S+)\)", listed.stdout, re.MULTILINE)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return {uuid: uuid for uuid in uuids}
    # CUDA ignores all entries after the first one that is no device.
    names = takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(",")))
    known = {str(number): uuid for number, uuid in enumerate(uuids)}
    return {name: known.get(name, name) for name in names} if uuids else {}


def gpu_problem() -> str | None:
    """Return why no GPU can be used here; None if one can."""
    if not visible_gpus():
        return "nvidia-smi lists no GPU that CUDA_VISIBLE_DEVICES shows"
    # In a process of its own: the question starts CUDA, and processes that are forked after that cannot use it.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return "PyTorch cannot use the GPU: built without CUDA, or the driver is too old" if asked.returncode else None


@contextmanager
def one_gpu(gpus: Mapping[str, str]) -> Iterator[str]:
    """Hold a GPU that no other process of this user holds; wait if all are held.

    The locks are files in the folder ``moesr-bids-gpus-<user id>`` in the folder for temporary files.

    Parameters
    ----------
    gpus : Mapping
        Result of `visible_gpus`, with at least one GPU.

    Yields
    ------
    str
        Name of the GPU for ``CUDA_VISIBLE_DEVICES``.

    """
    folder = Path(tempfile.gettempdir()) / f"moesr-bids-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        for name, uuid in gpus.items():
            lock = FileLock(folder / f"{uuid.replace(os.sep, '_')}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield name
            finally:
                lock.release()
            return
        time.sleep(_WAIT_SECONDS)
