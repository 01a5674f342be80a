"""Files appear whole or not at all, and only what dead processes left is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesr_bids.atomic import remove_leftovers, temporary_beside, write_text

LEAVE = "import os, sys; from pathlib import Path; from moesr_bids.atomic import temporary_beside\n"


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    write_text(target, "old")
    with pytest.raises(RuntimeError), temporary_beside(target) as temporary:
        temporary.write_text("half")
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    code = LEAVE + "cm = temporary_beside(Path(sys.argv[1])); cm.__enter__().touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with temporary_beside(target) as mine:
        mine.write_text("whole")
        remove_leftovers(target)
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert target.read_text() == "whole"


def test_another_host_counts_as_dead_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    other = tmp_path / ".a.other-host+1+0123abcd.part.json"
    other.touch()
    remove_leftovers(target)
    assert other.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(other, (yesterday, yesterday))
    remove_leftovers(target)
    assert not other.exists()
