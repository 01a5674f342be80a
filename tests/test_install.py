"""The top-level folder workflows/ is moesr_bids.workflows, installed editable and from a wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moesr_bids import __version__

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
    # What the environment holds is not to be installed again from the copy.
    command = ["make", "-C", str(source), "dist", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed-test"]
    subprocess.run(command, check=True)
    (wheel,) = source.joinpath("dist").iterdir()
    return wheel.rename(folder / wheel.name)


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


def test_the_commands_of_the_wheel_work_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    (tmp_path / "elsewhere").mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(target)}
    told = {}
    for name, argument in {"moesr-bids": "--version", "moesr": "check"}.items():
        call = [target / "bin" / name, argument]
        done = subprocess.run(call, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        told[name] = done.stdout
    assert __version__ in told["moesr-bids"]
    assert f"from {target}" in told["moesr"]
    assert re.search(r"phantom: .*dB", told["moesr"]), "weights and template come with the wheel"


VERSION = re.compile(
    r"""(?:moesr-bids[:-]|^version: |"tool-version": "|moesr_bids: ")(\d+[.-]\d+[.-]\d+)""", re.MULTILINE
)


def test_all_files_name_this_version() -> None:
    """Those of the image, of other tools, of the citation and of the documentation."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    found: dict[str, set[str]] = {}
    for name in listed.split():
        path = ROOT / name
        if path.is_file() and path.suffix in (".md", ".json", ".yaml", ".cff", ".def"):
            text = f"{name}\n{path.read_text(encoding='utf-8')}"
            if versions := {version.replace("-", ".") for version in VERSION.findall(text)}:
                found[name] = versions
    assert {"CITATION.cff", "containers/babs.yaml", "containers/moesr-bids.def", "docs/cluster.md"} <= set(found)
    assert {name: versions for name, versions in found.items() if versions != {__version__}} == {}
    first = re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first and first[1] == __version__


def test_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split() if name.startswith("moesr_bids/")}
    tracked |= {f"moesr_bids/{name}" for name in listed.split() if name.startswith("workflows/")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == tracked
