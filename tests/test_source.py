"""The raw data set in ``dataset_description.json``: by DOI, name and relative path, never by a path of a container."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moesr_bids.bids.dataset import prepare_output_folder
from moesr_bids.bids.source import other_source, raw_folder
from moesr_bids.config import Settings
from tests.app import validation_errors


def made(tmp_path: Path, name: str = "raw data", **description: Any) -> tuple[Path, Path, dict[str, Any]]:
    """Make a data set and its output folder; return both, and the description of the latter."""
    bids_dir, output_dir = tmp_path / name, tmp_path / "derivatives" / "moesr"
    bids_dir.mkdir()
    (bids_dir / "dataset_description.json").write_text(json.dumps({"BIDSVersion": "1.10.0", **description}))
    settings = Settings(
        bids_dir=bids_dir, output_dir=output_dir, analysis_level="participant", work_dir=tmp_path / "work"
    )
    prepare_output_folder(settings)
    return bids_dir, output_dir, json.loads((output_dir / "dataset_description.json").read_text())


@pytest.mark.parametrize("doi", ["10.18112/x.v1", "doi:10.18112/x.v1", "https://doi.org/10.18112/x.v1"])
def test_doi_name_and_licence_are_kept(doi: str, tmp_path: Path) -> None:
    _, output_dir, told = made(tmp_path, Name="Heads", DatasetDOI=doi, License="CC0")
    assert told["DatasetLinks"] == {"raw": "doi:10.18112/x.v1"}
    source = {"URL": "../../raw%20data", "DOI": "doi:10.18112/x.v1", "Name": "Heads", "License": "CC0"}
    assert told["SourceDatasets"] == [source]
    assert told["License"] == "CC0"
    assert str(tmp_path) not in json.dumps(told)
    assert not [error for error in validation_errors(output_dir) if "dataset_description" in error]


def test_without_a_doi_the_relative_path_links(tmp_path: Path) -> None:
    bids_dir, output_dir, told = made(tmp_path)
    assert told["DatasetLinks"] == {"raw": "../../raw%20data"}
    assert "License" not in told
    assert raw_folder(output_dir) == bids_dir
    assert raw_folder(tmp_path) is None
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(bids_dir, moved)
    shutil.move(output_dir.parent, moved)
    assert raw_folder(moved / "derivatives" / "moesr") == moved / bids_dir.name


def test_another_input_for_the_same_output_is_told(tmp_path: Path) -> None:
    bids_dir, output_dir, _ = made(tmp_path, Name="Heads")
    other = tmp_path / "other"
    other.mkdir()
    assert other_source(bids_dir, output_dir) == ""
    assert other_source(bids_dir, tmp_path / "new") == ""
    assert other_source(other, output_dir) == "Heads"


def test_a_data_set_with_a_doi_may_move(tmp_path: Path) -> None:
    bids_dir, output_dir, _ = made(tmp_path, DatasetDOI="10.1/a")
    copy = shutil.copytree(bids_dir, tmp_path / "copy")
    assert other_source(copy, output_dir) == ""
    (copy / "dataset_description.json").write_text('{"DatasetDOI": "10.1/b"}')
    assert other_source(copy, output_dir) == "doi:10.1/a"
