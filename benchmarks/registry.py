"""What the registry withstands and what undoing costs: `python -m benchmarks.registry`.

1. Two processes of 200 promotions each race: nothing is lost or doubled, the log's chain verifies, and what was
   promoted and what was refused add up.
2. Promotions are killed by SIGKILL, at each moment between intent and commit and at random; each is undone or ended.
3. A rollback to models of Stable Diffusion's size (half precision; random bytes): seconds, with the files in memory and
   read from the disk, and whether the bytes are those of before.
4. `perfusion restore` of a workspace's newest version and `perfusion evaluate` there: equal to the last digit, or not.
   `--params` names the workspace by its parameter file; it is retrained first where it has no version yet.

Figures go to work/benchmarks/registry.json. `--only` picks parts, e.g. `--only race kills`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import registry_drills as drills
from flows.environment import quieten
from tasks.registry import Registry, manifest_digest

OUT = Path("work/benchmarks")
MIB = 1 << 20
#: Weights of PerFusion on Stable Diffusion v1.5 in half precision, MiB: U-Net, adaptive network, text encoder, codec.
GENERATOR_PARTS = (1640, 690, 235, 160)
PERFUSION = [sys.executable, "-m", "flows.cli"]
Part = dict[str, Any]


def main() -> None:
    """Run the parts, print the table, keep the figures."""
    from benchmarks.common import (
        hardware,
        record,
    )  # here: the processes that race import this module, and need no torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=200, help="promotions that each of two racers tries")
    parser.add_argument("--kills", type=int, default=10, help="kills at each moment, and three times as many at random")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the rollback's files, of Stable Diffusion's")
    parser.add_argument("--params", type=Path, default=Path("params/smoke.yaml"), help="workspace that is restored")
    parser.add_argument("--data", type=Path, help="its dataset, where it has to be retrained first")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    quieten(Path.cwd())
    OUT.mkdir(parents=True, exist_ok=True)
    told = json.loads((OUT / "registry.json").read_text()) if (OUT / "registry.json").exists() else {}
    told = {name: told[name] for name in PARTS if told.get(name) is not None and name not in options.only}
    for name in options.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="registry-", dir=OUT) as folder:
            told[name] = PARTS[name](Path(folder), options)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        headline = {"rollback_seconds": told["rollback"]["cold_seconds"]} if "rollback" in told else {}
        record("registry", [], {"registry": headline}, **told)  # after each part: a later one's failure loses none
    print(f"\n### Registry\n\n{hardware()}\n\n| what | found | must be |\n|---|---|---|")
    rows = [row for name in options.only for row in ROWS[name](told[name])]
    for what, found, bound, _ in rows:
        print(f"| {what} | {found} | {bound} |")
    if not all(good for *_, good in rows):
        raise SystemExit("not everything is as it must be")


def race(folder: Path, options: argparse.Namespace) -> Part:
    """Promotions at once, from two processes."""
    drills.make_store(folder)
    return drills.race(folder, options.attempts)


def kills(folder: Path, options: argparse.Namespace) -> Part:
    """Promotions killed at a moment, and at random, recovered each time."""
    registry = drills.make_store(folder)
    first = {drills.REWARD: 1, drills.GENERATOR: 1}
    registry.promote(first, expected=registry.champions(drills.FAMILY), decisions=drills.PASSED)
    chance = random.Random(0)
    arms: dict[str, Callable[[], None]] = {
        name: partial(drills.kill_at, folder, moment) for name, moment in drills.MOMENTS.items()
    }
    arms["at random"] = partial(drills.kill_at_random, folder, chance, longest=2.0)
    told: Part = {"problems": []}
    for name, kill in arms.items():
        statuses: Counter[str] = Counter()
        for _ in range(options.kills * (3 if name == "at random" else 1)):
            kill()
            status, problems = drills.recovered(folder)
            statuses[status] += 1
            told["problems"] += problems
        told[name] = dict(statuses)
    return told


def rollback(folder: Path, options: argparse.Namespace) -> Part:
    """Back to a champion of a realistic size, with its files in memory and without."""
    registry = drills.open_at(folder)
    for name in (drills.REWARD, drills.GENERATOR):
        registry.client.create_registered_model(name)
    sizes = [int(mib * MIB * options.scale) for mib in GENERATOR_PARTS]
    pairs = [_promoted(registry, folder / "files" / str(number), sizes) for number in range(2)]
    before = {name: registry.files(name, version) for name, version in pairs[0].items()}
    told: Part = {"gib": round(2 * sum(sizes) / 2**30, 2)}  # both models
    for arm in ("warm", "cold"):
        if arm == "cold":
            _forget(folder / "files")
        began = time.perf_counter()
        done = registry.rollback(drills.FAMILY, to=1, reason="benchmark")
        told[f"{arm}_seconds"] = round(time.perf_counter() - began, 2)
        told["same_bytes"] = told.get("same_bytes", True) and done.files == before
        registry.rollback(drills.FAMILY, to=2, reason="benchmark: and forth")
    told["manifests"] = {name: manifest_digest(files) for name, files in before.items()}
    return told


def restore(folder: Path, options: argparse.Namespace) -> Part:
    """A version given back in a worktree and evaluated there, as a person would do it."""
    workspace = Path("work/workspaces") / options.params.stem
    if not (workspace / "work" / "outcome.json").exists():
        _run(["retrain", "--params", str(options.params), *(["--data", str(options.data)] if options.data else [])])
    versions = json.loads((workspace / "work" / "outcome.json").read_text())["versions"]
    name = next(name for name in versions if name.endswith("-generator"))
    place = (folder / "restored").resolve()
    began = time.perf_counter()
    told = json.loads(_run(["restore", f"{name}@{versions[name]}", str(place), "--json", "-w", str(workspace)]))
    restored = time.perf_counter()
    try:
        figures = json.loads(_run(["evaluate", "--json"], place, allowed=(0, 2)))
        evaluated = time.perf_counter()
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(place)], check=True)
    return {
        "model": name, "version": versions[name], "commit": told["commit"], "outputs": len(told["outputs_md5"]),
        "unlike_lock": told["unlike_lock"], "restore_seconds": round(restored - began, 1),
        "evaluate_seconds": round(evaluated - restored, 1), "figures": figures,
    }  # fmt: skip


def _promoted(registry: Registry, files: Path, sizes: list[int]) -> dict[str, int]:
    versions = drills.add_pair(registry, files, sizes)
    registry.promote(versions, expected=registry.champions(drills.FAMILY), decisions=drills.PASSED)
    return versions


def _forget(folder: Path) -> None:
    """Ask the kernel to drop these files from its memory."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _run(words: list[str], folder: Path = Path(), allowed: tuple[int, ...] = (0,)) -> str:
    """A `perfusion` command of this checkout in a folder; returns what it prints.

    Raises:
        RuntimeError: it fails; holds the end of its words.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([*PERFUSION, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in allowed:
        raise RuntimeError(f"perfusion {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


# -- the table: what, found, what it must be, whether it is -----------------------------------------------------------

Row = tuple[str, object, object, bool]


def _race_rows(part: Part) -> list[Row]:
    tried = f"{part['processes']} processes, {part['attempts']} promotions, {part['seconds']} s"
    added = part["promoted"] + part["refused"]
    return [
        (f"{tried}: promoted + refused as stale", f"{part['promoted']} + {part['refused']}", part["attempts"],
         added == part["attempts"]),
        ("transitions in the log", part["committed"], part["promoted"], part["committed"] == part["promoted"]),
        ("problems of log and aliases", len(part["problems"]), 0, not part["problems"]),
    ]  # fmt: skip


def _kill_rows(part: Part) -> list[Row]:
    rows: list[Row] = []
    for name, moment in drills.MOMENTS.items():
        rows.append(
            (f"killed {name}", _counted(part[name]), f"all {moment.status}", set(part[name]) == {moment.status})
        )
    rows.append(("killed at random", _counted(part["at random"]), "any", True))
    rows.append(("problems after recovery", len(part["problems"]), 0, not part["problems"]))
    return rows


def _rollback_rows(part: Part) -> list[Row]:
    size = f"rollback of {part['gib']} GiB"
    return [
        (f"{size}, files in memory", f"{part['warm_seconds']} s", "< 10 s", part["warm_seconds"] < 10),
        (f"{size}, from the disk", f"{part['cold_seconds']} s", "< 10 s", part["cold_seconds"] < 10),
        ("the bytes of before, by SHA-256", part["same_bytes"], True, part["same_bytes"]),
        *((f"manifest of {name}", digest[:16], "-", True) for name, digest in part["manifests"].items()),
    ]


def _restore_rows(part: Part) -> list[Row]:
    name = f"{part['model']} version {part['version']}"
    rows: list[Row] = [
        (f"{name} restored: outputs equal to dvc.lock, {part['restore_seconds']} s", part["outputs"], part["outputs"],
         True),
        ("code of the stages unlike dvc.lock", len(part["unlike_lock"]), 0, not part["unlike_lock"]),
    ]  # fmt: skip
    for stage, told in part["figures"].items():
        different = len(told["different"])
        rows.append((f"{stage} there: metrics equal", told["equal"], told["equal"] + different, different == 0))
        rows.append((f"{stage} there: files unlike", len(told["files_unlike"]), 0, not told["files_unlike"]))
    return rows


def _counted(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))


PARTS: dict[str, Callable[[Path, argparse.Namespace], Part]] = {
    "race": race,
    "kills": kills,
    "rollback": rollback,
    "restore": restore,
}
ROWS: dict[str, Callable[[Part], list[Row]]] = {
    "race": _race_rows,
    "kills": _kill_rows,
    "rollback": _rollback_rows,
    "restore": _restore_rows,
}


if __name__ == "__main__":
    main()
