"""Benchmarks measure the library alone, and the training half of benchmarks/gpu.py runs on a bare machine."""

from __future__ import annotations

import sys
from pathlib import Path

import imports
import pytest

OPERATIONS = ("registry",)  # of these the tools are what is measured
BENCHMARKS = sorted(
    file for file in (imports.REPOSITORY / "benchmarks").glob("*.py") if not file.stem.startswith(OPERATIONS)
)
TOOLS = {"tasks", "flows", "prefect", "mlflow", "dvc"}
BARE = {"torch", "diffusers", "transformers", "numpy", "psutil"}  # what a machine with an accelerator has


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_imports_no_tool(file: Path) -> None:
    assert not [
        name for name in imports.imported(file) if name.split(".")[0] in {"tasks", "flows", "prefect", "mlflow"}
    ]


def test_training_is_measured_with_torch_and_diffusers_alone() -> None:
    """Else `python -m benchmarks.gpu` could not start where there is an accelerator and little else."""
    own = {imports.REPOSITORY / "benchmarks" / f"{name}.py" for name in ("common", "sizes", "training", "gpu")}
    files = imports.closure(own)
    assert imports.REPOSITORY / "perfusion" / "config.py" not in files  # pydantic
    assert imports.REPOSITORY / "perfusion" / "generation" / "pan.py" in files
    outside = {name.split(".")[0] for file in files for name in imports.imported(file)} - {"perfusion", "benchmarks"}
    assert outside - BARE <= set(sys.stdlib_module_names) | {"__future__"}
