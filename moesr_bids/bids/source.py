"""The raw data set that an output folder was made from, as ``dataset_description.json`` names it.

It is named by its DOI or name, and by its path relative to the output folder, since an absolute path inside a container
means nothing outside of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from moesr_bids.bids.sidecars import read_sidecar

_DESCRIPTION = "dataset_description.json"


def source_fields(bids_dir: Path, output_dir: Path) -> dict[str, Any]:
    """Return the fields of ``dataset_description.json`` about the raw data set.

    Parameters
    ----------
    bids_dir, output_dir : pathlib.Path
        Absolute paths.

    Returns
    -------
    dict
        ``DatasetLinks``, ``SourceDatasets``, and ``License`` where the raw data set states one.

    """
    raw = read_sidecar(bids_dir / _DESCRIPTION)
    url = quote(os.path.relpath(bids_dir, output_dir))
    doi = _doi(raw.get("DatasetDOI"))
    source = {"URL": url, "DOI": doi, "Name": raw.get("Name"), "License": raw.get("License")}
    fields: dict[str, Any] = {
        "DatasetLinks": {"raw": doi or url},
        "SourceDatasets": [{key: str(value) for key, value in source.items() if value}],
    }
    return fields | ({"License": str(raw["License"])} if raw.get("License") else {})


def raw_folder(output_dir: Path) -> Path | None:
    """Return the folder of the raw data set of an output folder; None if none is named."""
    url = _told(output_dir).get("URL")
    # Of absolute URLs, as other versions wrote them, only the path counts.
    return Path(os.path.abspath(output_dir / unquote(urlparse(str(url)).path))) if url else None  # noqa: PTH100


def other_source(bids_dir: Path, output_dir: Path) -> str:
    """Return the name of the data set that an output folder was made from, if it is not this one; else empty."""
    told = _told(output_dir)
    this = source_fields(bids_dir, output_dir)["SourceDatasets"][0]
    same = told.get("DOI") == this["DOI"] if "DOI" in told and "DOI" in this else raw_folder(output_dir) == bids_dir
    return "" if same or not told else str(told.get("DOI") or told.get("Name") or told.get("URL"))


def _told(output_dir: Path) -> Mapping[str, Any]:
    sources = read_sidecar(output_dir / _DESCRIPTION).get("SourceDatasets")
    first = sources[0] if isinstance(sources, list) and sources else {}
    return first if isinstance(first, Mapping) else {}


def _doi(told: Any) -> str:
    """Return a DOI as BIDS writes it, with ``doi:`` before it; empty if there is none."""
    text = str(told or "").strip()
    for prefix in ("https://doi.org/", "http://doi.org/", "https://dx.doi.org/", "doi:"):
        text = text.removeprefix(prefix)
    return f"doi:{text}" if text.startswith("10.") else ""
