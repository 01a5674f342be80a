"""The documentation: its site builds without a warning, its contents are complete, its example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from moesr_bids.cluster.phantom import make_phantom

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("usage", "outputs", "next", "troubleshooting", "cluster", "accuracy", "join", "api")


def test_the_site_builds_without_warnings_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"index.html", "changes.html", "containers.html", *(f"{page}.html" for page in PAGES)} <= set(pages)
    for name, html in pages.items():
        assert not re.search(r'(?:<script|<img)[^>]+src="(?:https?:)?//', html), name
        assert not re.search(r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(?:https?:)?//', html), name
    assert "def super_resolve" in re.sub("<[^>]+>", "", pages["api.html"]) or "super_resolve(" in pages["api.html"]


@pytest.mark.parametrize("page", PAGES)
def test_each_page_begins_with_its_contents(page: str) -> None:
    lines = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    listed = [found[1] for line in lines if (found := re.fullmatch(r"- \[(.+)\]\(#[^)]+\)", line))]
    assert listed == headings


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen, _ = make_phantom()
    seen.to_filename(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 10
    exec(code, {})
    image, uncertainty = nib.load("sharp.nii.gz"), nib.load("uncertainty.nii.gz")
    assert np.allclose(image.header.get_zooms(), 1.0)
    assert image.shape == uncertainty.shape == tuple(2 * n for n in seen.shape)
    noise, residual = map(float, capsys.readouterr().out.split())
    assert 1.5 < noise < 2.5, "the phantom has 2 %"
    assert 0.5 < residual < 1.5
