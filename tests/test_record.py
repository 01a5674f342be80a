"""The typed records: a written record reads back the same, and a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesr_bids.bids.record import Record, SRRecord, read_record, record_of
from moesr_bids.bids.schema import RecordError, inner_path, inside, make, unstructured
from moesr_bids.bids.status import ImageStatus, read_status, read_statuses, write_status
from tests.reports_data import moesr, record, sr_record


def test_a_record_is_read_as_it_was_written() -> None:
    content = json.loads(json.dumps({"Moesr": unstructured(record())}))
    assert content["Moesr"]["InputSHA256"] == "1" * 64
    assert content["Moesr"]["BrainMask"]["VolumeML"] == 1432.7
    assert record_of(content, "sidecar") == record()


def test_a_fact_without_an_attribute_is_refused_where_it_is_made_and_passed_over_where_it_is_read() -> None:
    with pytest.raises(RecordError, match="NewFact"):
        make(SRRecord, {**sr_record(), "NewFact": 1})
    assert record(NewFact=1) == record()


@given(st.sampled_from(sorted(moesr())), st.sampled_from([None, True, "text", 1.5, [1], {"a": 1}, [[]], -1]))
def test_any_value_gives_a_record_or_one_kind_of_error(key: str, value: Any) -> None:
    try:
        found = record_of({"Moesr": moesr(**{key: value})}, "sidecar")
    except RecordError as error:
        assert str(error).startswith("sidecar: ")
    else:
        assert isinstance(found, Record)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"Moesr": 1}', "{}", "\xff"])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sidecar.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match=r"sidecar\.json"):
        read_record(path)


@given(st.text(), st.sampled_from(["..", "../..", "a/../..", "/etc"]))
def test_no_path_leaves_its_folder(text: str, before: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        inner_path(f"{before}/{text}")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    assert inside(tmp_path / "out", "sub-01/file.txt") == tmp_path / "out/sub-01/file.txt"
    with pytest.raises(RecordError, match="link leads out"):
        inside(tmp_path / "out", "link/file.txt")


def test_a_damaged_status_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = ImageStatus(participant_id="sub-01", state="done", seconds=3.0)
    write_status(tmp_path, whole)
    folder = tmp_path / "logs/status"
    (folder / "sub-02.json").write_text("null")
    (folder / "sub-03.json").write_text(json.dumps({"participant_id": "sub-03", "state": "odd"}))
    (folder / "sub-04.json").write_text(json.dumps({"participant_id": "sub-04", "crash_file": "/etc/passwd"}))
    assert read_status(folder / "sub-01.json") == whole
    assert read_statuses(tmp_path) == [whole]
    assert [name for name in ("sub-02", "sub-03", "sub-04") if f"{name}.json" in caplog.text] == [
        "sub-02",
        "sub-03",
        "sub-04",
    ]
