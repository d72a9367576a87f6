"""A version of a real run given back: everything in place, and its models evaluated there to the last digit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State
from shop import Shop

from flows.cli import main
from tasks.dvc_cache import differences
from tasks.workspace import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def restored(
    first: tuple[Shop, State[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shop, Path, dict[str, Any]]]:
    """The first run's generator, restored by the command; the folder and what the command told of it."""
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True).returncode != 0:
        pytest.skip(f"{REPOSITORY} is no git checkout, from which alone a version's code can be restored")
    shop, _ = first
    folder = tmp_path_factory.mktemp("restored") / "version"
    command = ["restore", "1", str(folder), "--json", "--workspace", str(shop.workspace.root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.cli_restore.find_workspace", lambda _: shop.workspace)
        told = json.loads(said(command))
    yield shop, folder, told
    subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=REPOSITORY, check=True)


def said(command: list[str], code: int = 0) -> str:
    """What a command prints on stdout."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main(command)
    assert int(stopped.value.code or 0) == code, out.getvalue()
    return out.getvalue()


def test_all_that_the_run_made_and_read_is_back(restored: tuple[Shop, Path, dict[str, Any]]) -> None:
    shop, folder, told = restored
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    for stage in lock.values():
        for entry in [*stage["deps"], *stage["outs"]]:
            assert differences(folder / entry["path"], entry["md5"]) == []
    assert told["unlike_lock"] == []
    assert (folder / "params.yaml").read_bytes() == shop.workspace.params_file.read_bytes()
    assert json.loads((folder / "work" / "metrics" / "evaluate-generator.json").read_text())["items"] > 0


def test_evaluating_there_gives_the_recorded_figures(restored: tuple[Shop, Path, dict[str, Any]]) -> None:
    _, folder, _ = restored
    before = {path: path.read_bytes() for path in (folder / "work" / "metrics").iterdir()}
    told = json.loads(said(["evaluate", "--json", "--workspace", str(folder)]))
    for stage in ("evaluate-reward", "evaluate-generator"):
        assert told[stage]["different"] == {}
        assert told[stage]["equal"] > 20
        assert told[stage]["files_unlike"] == []
    assert told["evaluate-generator"]["costs"]
    assert {path: path.read_bytes() for path in (folder / "work" / "metrics").iterdir()} == before
