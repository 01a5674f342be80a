"""Files appear whole or not at all, and only files of dead processes are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moesr_bids.atomic import copy_file, remove_leftovers, temporary_beside, write_text

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


def write_by_hand(target: Path, text: str) -> None:
    with temporary_beside(target) as temporary:
        temporary.write_text(text)


def write_by_copy(target: Path, text: str) -> None:
    source = target.with_name("source")
    source.write_text(text)
    copy_file(source, target)


@pytest.mark.parametrize("write", [write_text, write_by_hand, write_by_copy])
def test_a_file_is_replaced_in_one_step(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    """Who has the old file open reads it to its end: no moment has a part of the new one under its name."""
    target = tmp_path / "a.txt"
    write(target, "old" * 1000)
    before = target.stat().st_ino
    with target.open() as reader:
        assert reader.read(3) == "old"
        write(target, "n")
        assert reader.read() == "old" * 999
    assert target.read_text() == "n"
    assert target.stat().st_ino != before, "the old file was written over, not replaced"


def test_readers_see_one_whole_file_or_the_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    texts = ["a" * 3_000_000, "b" * 3_000_000]
    write_text(target, texts[0])
    code = (
        "import sys; from pathlib import Path; from moesr_bids.atomic import write_text\n"
        "for n in range(30): write_text(Path(sys.argv[1]), 'ab'[n % 2] * 3_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)]) as writer:
        seen = set()
        while writer.poll() is None:
            seen.add(target.read_text())
    assert writer.returncode == 0
    assert seen <= set(texts)


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
