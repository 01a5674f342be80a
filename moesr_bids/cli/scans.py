"""Participants and scans of a BIDS folder, for the commands that train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..config import SUFFIXES


def label_of(name: str) -> str:
    """Return the label of a participant, given with or without ``sub-``."""
    return name.removeprefix("sub-")


def are_folders(names: Iterable[str]) -> bool:
    """Whether all names are folders."""
    return all(Path(name).is_dir() for name in names)


def unknown_participant(data: Path, names: Iterable[str]) -> str | None:
    """Return a message about a participant who is not in the data set; None if all are."""
    known = {label_of(path.name) for path in data.glob("sub-*")}
    missing = sorted(set(map(label_of, names)) - known)
    return f"{data}: there is no participant {missing[0]}" if missing else None


def find_scans(data: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the T1w, T2w and FLAIR scans of the participants whose label is wanted."""
    for folder in sorted(data.glob("sub-*")):
        if wanted(label_of(folder.name)):
            yield from sorted(path for s in SUFFIXES for path in folder.rglob(f"*_{s}.nii.gz"))
