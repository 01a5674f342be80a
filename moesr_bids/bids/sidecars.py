"""Metadata of raw images by the BIDS inheritance principle.

PyBIDS stops indexing the whole data set at the first broken JSON file. Here only the images that a broken file applies
to lose its metadata, and the reason is kept for the report.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from moesr_bids.bids.names import entities_of, suffix_of
from moesr_bids.errors import ImageError


def _entities(name: str) -> tuple[frozenset[tuple[str, str]], str]:
    return frozenset(entities_of(name).items()), suffix_of(name)


def sidecar_files(image: Path, root: Path) -> list[Path]:
    """Return the JSON files that apply to `image`, from the least to the most specific.

    Parameters
    ----------
    image : pathlib.Path
        Image below `root`.
    root : pathlib.Path
        Root of the BIDS data set.

    Returns
    -------
    list of pathlib.Path
        Files whose suffix is the image's and whose entities are all among the image's.

    """
    entities, suffix = _entities(image.name)
    found: list[Path] = []
    for folder in reversed([parent for parent in image.parents if parent.is_relative_to(root)]):
        here = [path for path in _json_files(folder, folder.stat().st_mtime_ns) if _applies(path, entities, suffix)]
        found += sorted(here, key=lambda path: len(_entities(path.name)[0]))
    return found


@lru_cache(maxsize=8)
def _json_files(folder: Path, mtime_ns: int) -> list[Path]:
    """JSON files of a folder at its modification time; the root, with all its participants, is listed only once."""
    del mtime_ns
    return sorted(folder.glob("*.json"))


def _applies(path: Path, entities: frozenset[tuple[str, str]], suffix: str) -> bool:
    candidate, candidate_suffix = _entities(path.name)
    return candidate_suffix == suffix and candidate <= entities


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty dictionary if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_metadata(image: Path, root: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read and merge the sidecars of an image.

    Returns
    -------
    metadata : dict
        Merged keys; more specific files win.
    warnings : tuple of str
        One sentence for each file that could not be used, or for the lack of any.

    """
    from moesr_bids.nifti import check_fetched  # it reads images, which --help need not

    metadata: dict[str, Any] = {}
    warnings: list[str] = []
    files = sidecar_files(image, root)
    for path in files:
        try:
            check_fetched(path)
            content = json.loads(path.read_text(encoding="utf-8"))
        except ImageError as error:
            warnings.append(f"sidecar {path.relative_to(root)} was not used: {str(error).removeprefix(f'{path}: ')}")
            continue
        except (OSError, ValueError) as error:
            warnings.append(f"sidecar {path.relative_to(root)} was not used: it is not readable JSON ({error})")
            continue
        if isinstance(content, dict):
            metadata.update(content)
        else:
            warnings.append(f"sidecar {path.relative_to(root)} was not used: it holds no JSON object")
    if not files:
        warnings.append("no JSON sidecar: slice thickness and acquisition type are taken from the voxel size")
    return metadata, tuple(warnings)
