"""The doctor: what it calls wrong, and that it looks on when one thing is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.doctor import examine
from tasks.quiet import QUIET as SWITCHES
from tasks.workspace import open_workspace

QUIET = {**SWITCHES, "HF_HUB_OFFLINE": "1"}


def states(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    workspace = open_workspace(folder, folder / "mlruns")
    return {finding.name: finding.state for finding in examine(workspace, environment)}


def test_a_fresh_workspace_has_things_to_know_and_nothing_to_mend(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("name: shop\n")
    (tmp_path / "data.dvc").write_text("outs: []\n")
    found = states(tmp_path, QUIET)
    assert {found[name] for name in ("twins", "data", "store")} == {"note"}
    assert found["telemetry"] == found["disk"] == found["runs"] == "ok"


@pytest.mark.parametrize(
    ("params", "environment", "wrong"),
    [
        ("name: shop\n", {**QUIET, "DO_NOT_TRACK": "1"}, "telemetry"),
        ("clip: {path: /nowhere/clip}\n", QUIET, "clip.path"),
        ("nmae: shop\n", QUIET, "parameters"),
        ("name: shop\n", QUIET, "data"),
    ],
)
def test_what_is_wrong_is_called_wrong(tmp_path: Path, params: str, environment: dict[str, str], wrong: str) -> None:
    (tmp_path / "params.yaml").write_text(params)
    assert states(tmp_path, environment)[wrong] == "wrong"
