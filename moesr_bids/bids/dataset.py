"""Files at the root of the derivatives: ``dataset_description.json``, ``.bidsignore``, descriptions, saved settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesr_bids import __version__
from moesr_bids.atomic import write_text
from moesr_bids.bids.derivatives import descriptions
from moesr_bids.bids.sidecars import read_sidecar
from moesr_bids.bids.source import source_fields
from moesr_bids.config import Settings
from moesr_bids.segmentation.structures import BRAIN, STRUCTURES

BIDS_VERSION = "1.10.0"
BIDSIGNORE = ("*.html", "figures", "group_*", "*ratings*", "*_xfm.*", "*.part*")

_DESCRIPTIONS_COLUMNS = {
    "desc_id": "The desc entity of a derivative's name",
    "description": "What such a derivative is",
}
_LABELS_COLUMNS = {"index": "Value in the label image", "name": "Structure of the brain"}


def dataset_description(settings: Settings) -> dict[str, Any]:
    """Return the content of ``dataset_description.json``."""
    generator: dict[str, Any] = {"Name": "moesr-bids", "Version": __version__}
    if tag := os.environ.get("MOESR_BIDS_CONTAINER_TAG"):
        generator["Container"] = {"Type": os.environ.get("MOESR_BIDS_CONTAINER_TYPE", "docker"), "Tag": tag}
    return {
        "Name": "moesr-bids: super-resolved anatomical MRI",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
        **source_fields(settings.bids_dir, settings.output_dir),
        "HowToAcknowledge": "Cite the works listed in logs/CITATION.md.",
    }


def other_dataset(output_dir: Path) -> str:
    """Return the name of the data set in a folder if another program made it; else an empty string."""
    path = output_dir / "dataset_description.json"
    if not path.exists():
        return ""
    told = read_sidecar(path)
    makers = [maker.get("Name") for maker in told.get("GeneratedBy") or () if isinstance(maker, Mapping)]
    return "" if "moesr-bids" in makers else str(told.get("Name") or path.name)


def prepare_output_folder(settings: Settings) -> None:
    """Make the output folder and its root files."""
    output_dir = settings.output_dir
    (output_dir / "logs").mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "dataset_description.json", json.dumps(dataset_description(settings), indent=2) + "\n")
    write_text(output_dir / ".bidsignore", "\n".join(BIDSIGNORE) + "\n")
    rows = [tuple(_DESCRIPTIONS_COLUMNS), *((f"desc-{name}", text) for name, text in descriptions().items())]
    write_text(output_dir / "descriptions.tsv", "".join("\t".join(row) + "\n" for row in rows))
    write_text(output_dir / "descriptions.json", data_dictionary(_DESCRIPTIONS_COLUMNS))
    labels = [tuple(_LABELS_COLUMNS), *((str(s.index), s.name) for s in STRUCTURES if s.index in BRAIN)]
    write_text(output_dir / "desc-moesr_dseg.tsv", "".join("\t".join(row) + "\n" for row in labels))
    write_text(output_dir / "desc-moesr_dseg.json", data_dictionary(_LABELS_COLUMNS))


def data_dictionary(columns: Mapping[str, str]) -> str:
    """Return the JSON text of a table's data dictionary: column to description."""
    return json.dumps({name: {"Description": words} for name, words in columns.items()}, indent=2) + "\n"


def save_settings(settings: Settings, name: str) -> Path:
    """Save the settings as ``logs/<name>.toml``, in the form that ``--config-file`` reads."""
    path = settings.output_dir / "logs" / f"{name}.toml"
    write_text(path, settings.to_toml())
    return path
