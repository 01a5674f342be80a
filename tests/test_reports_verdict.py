"""The verdict on an image and where it is shown."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from moesr_bids.reports.derivatives import find_images
from moesr_bids.reports.group import build_group
from moesr_bids.reports.individual import build_participant_report
from moesr_bids.reports.verdict import RULES, reasons, verdict
from tests.reports_data import add_finished, add_status, brain_mask, data_consistency, joined, registration

KEY = "sub-01_T1w"


def test_nothing_to_ask(tmp_path: Path) -> None:
    add_finished(tmp_path, KEY)
    (record,) = find_images(tmp_path)
    assert verdict(record) == "ok"
    assert reasons(record) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DataConsistency": data_consistency(ResidualStd=1.75)}, "1.58 (expected: at most 1.5)"),
        ({"DataConsistency": data_consistency(StructureStd=3.4)}, "3.08 (expected: at most 2.7)"),
        ({"DataConsistency": data_consistency(StructureLargest=30.0)}, "27.2 (expected: at most 26)"),
        ({"NoisePercent": 12.0}, "12 (expected: at most 8)"),
        ({"BrainMask": brain_mask(VolumeML=780.0)}, "780 (expected: at least 850)"),
        ({"BrainMask": brain_mask(Doubts=["only 55% of it"])}, "only 55% of it; see the brain mask"),
        ({"BrainMask": brain_mask(VolumeML=2050.0)}, "(expected: at most 2000)"),
        ({"Registration": {"A": registration(0.95), "B": registration(0.71)}}, "0.71 (expected: at least 0.9)"),
        ({"BiasField": {"RangePercent": [-91.0, 20.0]}}, "91 (expected: at most 80)"),
        ({"Uncertainty": {"MedianPercent": 15.05}}, "15.1 (expected: at most 12)"),
        ({"InputZooms": [0.5, 0.5, 7.0]}, "10 (expected: at most 9)"),
        ({"Joined": joined(Used=False, Reason="another head")}, "sub-01_acq-cor_T1w is not in the image: another head"),
        (
            {"Joined": joined() | {"Failed": [{"Source": "sub-01/anat/sub-01_T1w.nii.gz", "Reason": "cut short"}]}},
            "sub-01_T1w is not in the image: cut short",
        ),
    ],
)
def test_each_rule_asks_for_a_look(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    add_finished(tmp_path, KEY, **changes)
    (record,) = find_images(tmp_path)
    assert verdict(record) == "look"
    (reason,) = reasons(record)
    assert words in reason


def test_of_a_joined_image_the_output_is_judged(tmp_path: Path) -> None:
    blurred = data_consistency(StructureStd=7.0)["Model"]
    add_finished(tmp_path, KEY, DataConsistency=data_consistency(StructureStd=7.0), Joined=joined(Mean=blurred))
    add_finished(tmp_path, "sub-02_T1w", Joined=joined(Output=blurred))
    right, wrong = find_images(tmp_path)
    assert verdict(right) == "ok"
    assert verdict(wrong) == "look"


def test_slices_that_weigh_less_ask_for_nothing(tmp_path: Path) -> None:
    add_finished(tmp_path, KEY, Joined=joined(SliceWeights={"8": 0.0}))
    (record,) = find_images(tmp_path)
    assert verdict(record) == "ok"


def test_agreement_that_was_forced_does_not_judge(tmp_path: Path) -> None:
    facts = data_consistency()
    add_finished(tmp_path, KEY, DataConsistency={**facts, "ResidualStd": 5.0, "FractionBeyond3": 0.2})
    (record,) = find_images(tmp_path)
    assert verdict(record) == "ok"


def test_figures_that_are_missing_are_not_judged(tmp_path: Path) -> None:
    add_finished(tmp_path, KEY, Registration={}, ImageQuality=None)
    (record,) = find_images(tmp_path)
    assert record.moesr is not None
    assert record.moesr.uncertainty is None
    assert verdict(record) == "ok"


def test_no_output_is_failed_whatever_an_earlier_run_left(tmp_path: Path) -> None:
    add_finished(tmp_path, KEY)
    add_status(tmp_path, KEY, state="failed", step="n4", reason="the mask is empty")
    (record,) = find_images(tmp_path)
    assert (verdict(record), reasons(record)) == ("failed", ["at step bias field: the mask is empty"])


def test_page_and_table_tell_it(tmp_path: Path) -> None:
    add_finished(tmp_path, KEY)
    add_finished(tmp_path, "sub-01_FLAIR", NoisePercent=12.0)
    page = build_participant_report(tmp_path, "sub-01").read_text()
    assert re.findall(r'<td class="verdict-\w+">(\w+)</td>', page) == ["look", "ok"]
    assert "motion or artefacts" in page
    build_group(tmp_path)
    with (tmp_path / "group_FLAIR.tsv").open() as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    assert row["verdict"] == "look"
    assert row["verdict_reasons"].startswith("the noise")


def test_documentation_lists_every_threshold() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "outputs.md").read_text()
    section = text.partition("## Verdict")[2].partition("\n## ")[0]
    assert section.count("\n| ") - 1 == len(RULES)
    for rule in RULES:
        for limit in (rule.low, rule.high):
            if 0 < limit < 1e6:
                assert f"{limit:g}" in section or f"{100 * limit:g} %" in section, rule.name
