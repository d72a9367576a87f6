"""What a built package holds: every module, and every file that modules read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import imports

PACKAGES = ("perfusion", "tasks", "flows")


def test_a_built_package_holds_every_file_of_the_source(tmp_path: Path) -> None:
    """Templates and styles are no modules: setuptools takes them only where it is told to."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(imports.REPOSITORY / name, tmp_path)
    for name in PACKAGES:
        shutil.copytree(imports.REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = {str(file.relative_to(tmp_path)) for name in PACKAGES for file in (tmp_path / name).rglob("*.*")}
    built = tmp_path / "built"
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", built]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert {str(file.relative_to(built)) for file in built.rglob("*.*")} == source
    assert "tasks/templates/report.html.j2" in source
