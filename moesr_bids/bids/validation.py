"""BIDS validation of the input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path


def count_errors(bids_dir: Path) -> dict[str, int]:
    """Run ``bids-validator-deno`` and count its errors.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Root of the data set.

    Returns
    -------
    dict
        Error code to number of files, most frequent first.

    Raises
    ------
    RuntimeError
        If the validator is not installed or fails; the message names ``--skip-bids-validation``.

    """
    beside_python = Path(sys.executable).with_name("bids-validator-deno")
    command = str(beside_python) if beside_python.exists() else shutil.which("bids-validator-deno")
    if command is None:
        raise RuntimeError("bids-validator-deno is not installed; install it or use --skip-bids-validation")
    done = subprocess.run(
        [command, str(bids_dir), "--format", "json", "--ignoreWarnings"], capture_output=True, text=True, check=False
    )
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (ValueError, KeyError, TypeError):
        message = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"bids-validator-deno failed on {bids_dir}: {message}; use --skip-bids-validation") from None
    wrong = {(issue["code"], issue.get("location")) for issue in issues if issue["severity"] == "error"}
    return dict(Counter(code for code, _ in wrong).most_common())
