"""Status of every image: one small file per image, and one table made from all of them.

With a file per image, many jobs can write at once without locks. The table is always made from all files.
"""

from __future__ import annotations

import json
import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.atomic import write_text
from moesr_bids.bids.dataset import data_dictionary
from moesr_bids.bids.names import unique_key
from moesr_bids.bids.schema import PLAIN, SCHEMA_VERSION, InnerPath, RecordError, read_object, structured

COLUMNS = {
    "participant_id": "Participant",
    "session_id": "Session; n/a without",
    "image": "Path of the input image below its data set; n/a for a participant without any",
    "state": "waiting: not begun; running: begun and not finished; done; skipped: outputs were complete before; "
    "failed; apart: no joined image, since its scans do not fit together",
    "step": "Step that failed, or the last one finished",
    "reason": "Why it failed or was skipped",
    "seconds": "Processing time, sum over the steps, in seconds",
    "peak_memory_gb": "Largest peak memory of a step, in GiB",
}
NO_PATH = InnerPath("n/a")
_STATES = ("waiting", "running", "done", "skipped", "failed", "apart")
_LOG = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class ImageStatus:
    """State of one image.

    Attributes
    ----------
    participant_id, session_id : str
        With their prefixes; ``n/a`` where there is no session.
    image : str
        Path of the raw image below its data set, or ``n/a``.
    state : str
        ``waiting``, ``running``, ``done``, ``skipped``, ``failed`` or ``apart``.
    step : str
        Step that failed, or the last one finished.
    reason : str
        Why it failed, or why it was skipped.
    seconds, peak_memory_gb : float or None
        Sum over the steps in seconds, and largest over the steps in GiB.
    crash_file : str
        Path of the crash file below the output folder, or ``n/a``.
    schema_version : int
        Version of this file's keys.
    settings_hash : str or None
        Of scans that stay apart: as long as it is the same, they are not compared again.

    """

    participant_id: str
    session_id: str = "n/a"
    image: InnerPath = NO_PATH
    state: str = attrs.field(default="waiting", validator=attrs.validators.in_(_STATES))
    step: str = "n/a"
    reason: str = "n/a"
    seconds: float | None = None
    peak_memory_gb: float | None = None
    crash_file: InnerPath = NO_PATH
    settings_hash: str | None = None
    schema_version: int = attrs.field(default=SCHEMA_VERSION, validator=attrs.validators.in_((SCHEMA_VERSION,)))

    @property
    def key(self) -> str:
        """Name of the status file without extension; see `moesr_bids.bids.names.unique_key`."""
        return self.participant_id if self.image == NO_PATH else unique_key(self.image)


def status_path(output_dir: Path, image: InnerPath) -> Path:
    """Return the status file of an image, which is named by its path below the data set."""
    return output_dir / "logs" / "status" / f"{unique_key(image)}.json"


def write_status(output_dir: Path, status: ImageStatus) -> None:
    """Write the status file of an image; `write_table` makes the table."""
    folder = output_dir / "logs" / "status"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{status.key}.json", json.dumps(attrs.asdict(status), indent=2) + "\n")


def read_status(path: Path) -> ImageStatus:
    """Read a status file.

    Raises
    ------
    RecordError
        If it cannot be read, or is damaged.

    """
    return structured(ImageStatus, read_object(path), str(path), PLAIN)


def read_statuses(output_dir: Path) -> list[ImageStatus]:
    """Read all status files, sorted by name; those that cannot be read are left out, with a warning in the log."""
    statuses = []
    for path in sorted((output_dir / "logs" / "status").glob("*.json")):
        try:
            statuses.append(read_status(path))
        except RecordError as error:
            _LOG.warning("%s; the image counts as not done", error)
    return statuses


def more_statuses_than(number: int, output_dir: Path) -> bool:
    """Return whether there are more status files than ``number``, without reading them."""
    files = (output_dir / "logs" / "status").glob("*.json")
    return next(islice(files, number, None), None) is not None


def write_table(output_dir: Path, *, unless_younger_s: float = 0.0) -> Path:
    """Write ``logs/status.tsv`` from all status files, with its data dictionary, and return its path.

    Parameters
    ----------
    output_dir : pathlib.Path
        Output folder.
    unless_younger_s : float
        A table younger than this stays as it is, since a new one needs every status file of the data set.

    """
    path = output_dir / "logs" / "status.tsv"
    # The clock of a file server may be ahead.
    if unless_younger_s and path.exists() and abs(time.time() - path.stat().st_mtime) < unless_younger_s:
        return path
    import pandas as pd  # it takes its time, and many commands write no table

    statuses = [attrs.asdict(status) for status in read_statuses(output_dir)]
    rows = [{name: _one_line(status[name]) for name in COLUMNS} for status in statuses]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    write_text(path, table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
    write_text(path.with_suffix(".json"), data_dictionary(COLUMNS))
    return path


def _one_line(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else value
