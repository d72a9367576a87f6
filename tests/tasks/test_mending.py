"""After a crash: DVC can go on whatever was torn, and temporary files of the dead are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from tasks.mending import mend_dvc, remove_parts

LOCK = """schema: '2.0'
stages:
  split:
    cmd: PATH="$PWD/.venv/bin:$PATH" exec python -m tasks.stages split
    deps:
    - path: work/valid
      hash: md5
      md5: 0f1e2d3c4b5a69788796a5b4c3d2e1f0.dir
      size: 123456
      nfiles: 4
    params:
      params.yaml:
        data:
          min_records: 10
        seed: 0
    outs:
    - path: work/split
      hash: md5
      md5: 00112233445566778899aabbccddeeff.dir
      size: 6543
      nfiles: 3
  reward:
    cmd: PATH="$PWD/.venv/bin:$PATH" exec python -m tasks.stages reward
    params:
      params.yaml:
        reward:
          optimiser:
            steps: 40
    outs:
    - path: work/reward
      hash: md5
      md5: ffeeddccbbaa99887766554433221100.dir
      size: 777
      nfiles: 5
"""
DEAD = 2**22 + 1  # larger than any process id


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return tmp_path


def test_a_lock_file_cut_anywhere_is_one_that_dvc_takes_or_is_gone(root: Path) -> None:
    lock, gone = root / "dvc.lock", 0
    for cut in range(len(LOCK)):
        lock.write_text(LOCK[:cut])
        mend_dvc(root)
        if lock.exists():
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(lock.read_text()))
        gone += not lock.exists()
    assert gone > 0.9 * len(LOCK), "only at the end of an entry may a cut go unnoticed: DVC then misses what is missing"


def test_what_a_cut_lock_file_tells_is_true(root: Path) -> None:
    lock, whole = root / "dvc.lock", yaml.safe_load(LOCK)["stages"]
    hashes = {entry["md5"] for stage in whole.values() for part in ("deps", "outs") for entry in stage.get(part, ())}
    for cut in range(len(LOCK)):
        lock.write_text(LOCK[:cut])
        mend_dvc(root)
        stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
        told = {entry["md5"] for stage in stages.values() for part in ("deps", "outs") for entry in stage.get(part, ())}
        assert told <= hashes


def test_a_whole_lock_file_stays(root: Path) -> None:
    (root / "dvc.lock").write_text(LOCK)
    mend_dvc(root)
    assert (root / "dvc.lock").read_text() == LOCK


def test_a_table_of_locks_is_kept_for_a_living_dvc_alone(root: Path) -> None:
    table = root / ".dvc" / "tmp" / "rwlock"
    table.write_text('{"write": {"/work/re')
    mend_dvc(root)
    assert not table.exists(), "torn"
    for pid in (DEAD, os.getppid()):
        table.write_text(json.dumps({"write": {}, "read": {"/work": [{"pid": pid, "cmd": "dvc repro"}]}}))
        mend_dvc(root)
        assert not table.exists(), "its writer is gone, or the number is another program's now"
    with subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE) as dvc:
        table.write_text(json.dumps({"write": {"/work": {"pid": dvc.pid, "cmd": "dvc repro"}}, "read": {}}))
        mend_dvc(root)
        assert table.exists()
        dvc.communicate(b"\n")


def test_temporary_files_of_the_dead_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = {f".gates.json.{DEAD}.part": False, f".gates.json.{os.getpid()}.part": True, "gates.json": True}
    for folder in (tmp_path, tmp_path / "metrics"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).touch()
    (tmp_path / ".reward.part").mkdir()
    remove_parts(tmp_path)
    for folder in (tmp_path, tmp_path / "metrics"):
        assert {name: (folder / name).exists() for name in names} == names
    assert (tmp_path / ".reward.part").exists(), "a folder is cleared by the stage that writes it"
