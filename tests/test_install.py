"""The top-level folder workflows/ is moesr_bids.workflows, installed editable and from a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHERE = (
    "import moesr_bids, moesr_bids.workflows.base as base, importlib.resources as r\n"
    "print(moesr_bids.__file__); print(base.__file__)\n"
    "print(r.files('moesr_bids').joinpath('data/bibliography.toml').is_file())\n"
)


def python(folder: Path, *, path: Path | None = None) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Built from a copy: setuptools leaves build folders beside the sources.
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/"], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, str(folder), str(source)], check=True)
    return next(folder.glob("moesr_bids-*.whl"))


def test_editable_install(tmp_path: Path) -> None:
    package, base, data = python(tmp_path)
    assert Path(package) == ROOT / "moesr_bids" / "__init__.py"
    assert Path(base) == ROOT / "workflows" / "base.py"
    assert data == "True"


def test_wheel_install(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    package, base, data = python(tmp_path, path=target)
    assert Path(package) == target / "moesr_bids" / "__init__.py"
    assert Path(base) == target / "moesr_bids" / "workflows" / "base.py"
    assert data == "True"


def test_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split() if name.startswith("moesr_bids/")}
    tracked |= {f"moesr_bids/{name}" for name in listed.split() if name.startswith("workflows/")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == tracked
