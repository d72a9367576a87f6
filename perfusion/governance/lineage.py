"""Where a model comes from: data, parameters, code and every stage's inputs and outputs, as one plain record.

Two runs with the same record trained on the same things; two records that differ say in what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfusion.errors import GateError

__all__ = ["Difference", "compare_lineage", "expected_floors", "fallen_below", "lineage_record", "params_hash"]

_SCHEMA = 1


@dataclass(frozen=True)
class Difference:
    """One place where two records differ; None where a record has nothing there.

    Attributes:
        where: dotted path, e.g. "stages.reward.deps.work/split".
    """

    where: str
    before: Any
    after: Any


def params_hash(params: Mapping[str, Any]) -> str:
    """A hash of a resolved parameter file, whatever the order of its keys; 32 hex digits."""
    return _hash(params)


def lineage_record(
    *, dataset_digest: str, params: Mapping[str, Any], code_sha: str, code_dirty: bool, lock: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The record of one run.

    Args:
        dataset_digest: canonical content hash of the dataset.
        params: the resolved parameters, as plain values.
        code_sha: commit of the code.
        code_dirty: whether the working tree differed from that commit.
        lock: the parsed dvc.lock.
        versions: package -> version.

    Returns:
        Plain JSON values; `digest` is the hash of all the rest.

    Raises:
        GateError: the lock has no stages, so that nothing is known of how the model was made.
    """
    stages = lock.get("stages")
    if not stages:
        raise GateError("dvc.lock names no stage: the lineage of the model is unknown; run the stages through DVC")
    record = {
        "schema": _SCHEMA,
        "dataset": dataset_digest,
        "params": params_hash(params),
        "code": {"sha": code_sha, "dirty": code_dirty},
        "stages": {name: _stage(stage) for name, stage in sorted(stages.items())},
        "versions": dict(sorted(versions.items())),
    }
    return {**record, "digest": _hash(record)}


def compare_lineage(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Where two records differ, in the order of their paths; empty for the same origin."""
    left, right = _leaves(before), _leaves(after)
    paths = sorted((set(left) | set(right)) - {"digest"})
    return tuple(
        Difference(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)
    )


def expected_floors(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the next run of the same lineage should reach: the lower bounds of a run's intervals, by dotted path.

    Reads `name` beside `name_ci` = [low, high] at any depth; names without bounds give no floor.
    """
    floors: dict[str, float] = {}
    for path, value in _leaves(metrics, whole_lists=True).items():
        if path.endswith("_ci") and isinstance(value, list) and len(value) == 2 and value[0] is not None:
            floors[path.removesuffix("_ci")] = float(value[0])
    return floors


def fallen_below(metrics: Mapping[str, Any], floors: Mapping[str, float]) -> tuple[str, ...]:
    """One sentence for each floor that a run misses; a figure that is gone counts as missed."""
    values = _leaves(metrics, whole_lists=True)
    missed = []
    for path, floor in sorted(floors.items()):
        value = values.get(path)
        if value is None:
            missed.append(f"{path} is missing, was at least {floor:.4g}")
        elif not value >= floor:
            missed.append(f"{path} is {value:.4g}, was at least {floor:.4g}")
    return tuple(missed)


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of dvc.lock: its command, the hash of its parameters, and the hash of each input and output."""
    return {
        "cmd": stage.get("cmd"),
        "params": _hash(stage.get("params", {})),
        "deps": _hashes(stage.get("deps", [])),
        "outs": _hashes(stage.get("outs", [])),
    }


def _hashes(entries: list[Mapping[str, Any]]) -> dict[str, str]:
    """path -> content hash, by whatever algorithm the lock names."""
    found = {}
    for entry in entries:
        algorithm = entry.get("hash", "md5")
        found[str(entry["path"])] = f"{algorithm}:{entry.get(algorithm)}"
    return dict(sorted(found.items()))


def _leaves(value: Any, path: str = "", whole_lists: bool = False) -> dict[str, Any]:
    """Dotted path -> value of every leaf; an empty mapping is a leaf."""
    if isinstance(value, Mapping) and value:
        leaves: dict[str, Any] = {}
        for key, item in value.items():
            leaves |= _leaves(item, f"{path}.{key}" if path else str(key), whole_lists)
        return leaves
    if isinstance(value, list) and not whole_lists:
        return {f"{path}[{place}]": item for place, item in enumerate(value)}
    return {path: value}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
