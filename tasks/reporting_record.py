"""What one retraining left behind, read from files and nothing else: the evidence every page and summary rests on.

A part that was never made is None here and "not there, because ..." on the page; nothing is filled in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from perfusion.errors import DataError, PerFusionError
from tasks.livelog import LogTail

__all__ = ["STAGES_IN_ORDER", "Figure", "ReportError", "RunRecord", "figure", "read_record"]

STAGES_IN_ORDER = (
    "validate", "split", "backbones", "pickscore", "reward", "evaluate-reward", "encode", "dpo", "sft", "generator",
    "evaluate-generator",
)  # fmt: skip


class ReportError(PerFusionError):
    """A report was asked for that the files at hand cannot give."""


@dataclass(frozen=True)
class Figure:
    """A number with the bounds of its interval.

    Attributes:
        mean: the estimate.
        low: lower bound; None where there is none.
        high: upper bound, as `low`.
        bounded: whether an interval was asked for; then absent bounds mean too few users.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    bounded: bool = True

    @property
    def certain(self) -> bool:
        """Whether both bounds exist."""
        return self.low is not None and self.high is not None

    @property
    def side(self) -> int:
        """+1 when the whole interval lies above 0, -1 when below, else 0: undecided."""
        if self.low is not None and self.low > 0:
            return 1
        return -1 if self.high is not None and self.high < 0 else 0


def figure(record: Mapping[str, Any] | None, key: str) -> Figure | None:
    """The figure `key` of a metrics record, written either as {"mean", "low", "high"} or as `key` with `key_ci`."""
    record = record or {}
    value, bounds = record.get(key), record.get(f"{key}_ci")
    bounded = bounds is not None
    if isinstance(value, Mapping):
        bounds, bounded, value = (value.get("low"), value.get("high")), True, value.get("mean")
    low, high = bounds or (None, None)
    return None if value is None or not math.isfinite(value) else Figure(float(value), low, high, bounded)


@dataclass(frozen=True)
class RunRecord:
    """The evidence of one run.

    Attributes:
        work: folder with metrics/, evaluation/ and logs/.
        title: what to call the run on a page.
        params: the parameter file as written, {} when absent.
        metrics: stage -> its metrics.
        gates: gate -> its decision as plain values, and the `run_id` in which it was asked.
        seconds: stage -> seconds of the last time it really ran.
        outcome: how the flow ended (status, reasons, versions); None when no flow ran to its end here.
        data_digest: hash of the dataset that was trained on; None when nothing recorded it.
        models: stage -> hash of what it made, as dvc.lock knows it; {} when there is no lock.
    """

    work: Path
    title: str
    params: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    gates: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    outcome: dict[str, Any] | None
    data_digest: str | None
    models: dict[str, str]

    @property
    def reward(self) -> dict[str, Any] | None:
        """What `evaluate-reward` measured."""
        return self.metrics.get("evaluate-reward")

    @property
    def generator(self) -> dict[str, Any] | None:
        """What `evaluate-generator` measured."""
        return self.metrics.get("evaluate-generator")

    @property
    def scorers(self) -> dict[str, dict[str, Any]]:
        """Scorer -> its MAP and GAUC on the held-out groups of known merchants, the planted world's own included."""
        reward = self.reward or {}
        reports = {name: value for name, value in reward.items() if isinstance(value, dict) and "tie_policy" in value}
        return {**reward.get("references", {}), **reports}

    @property
    def floor_map(self) -> float | None:
        """The MAP of a random order on the same groups."""
        return (self.reward or {}).get("floor_map")

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Generator arm -> metric -> figure."""
        return dict((self.generator or {}).get("arms", {}))

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Paired differences between arms, "perfusion - base" -> metric -> figure."""
        return dict((self.generator or {}).get("paired", {}))

    @property
    def judge(self) -> str:
        """Whose number decides about pictures: true utility where there is a truth, else our own reward model."""
        return "true_utility" if any("true_utility" in metrics for metrics in self.arms.values()) else "perfusion_rm"

    def difference(self, arm: str, other: str) -> Figure | None:
        """The judge's paired difference between two arms."""
        return figure(self.differences.get(f"{arm} - {other}"), self.judge)

    @cached_property
    def groups(self) -> pd.DataFrame | None:
        """Average precision and AUC per held-out group and scorer; None when they were not kept."""
        return _read_parquet(self.work / "evaluation" / "reward" / "groups.parquet")

    @cached_property
    def slices(self) -> pd.DataFrame | None:
        """The reward model's gain for every value of every merchant feature; None when it was not kept."""
        return _read_parquet(self.work / "evaluation" / "reward" / "slices.parquet")

    @cached_property
    def pictures(self) -> pd.DataFrame | None:
        """One row per generated picture, with its file and scores; None when they were not kept."""
        return (
            None
            if self.generator is None
            else _read_parquet(self.work / "evaluation" / "generator" / "pictures.parquet")
        )

    def picture_file(self, name: str) -> Path:
        """A file of the generator's evaluation, e.g. a picture named in `pictures`."""
        return self.work / "evaluation" / "generator" / name

    def curves(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """(run, table with a column `step` and one per metric) for every training that logged, in stage order."""
        for stage in STAGES_IN_ORDER:
            if (file := self.work / "logs" / f"{stage}.jsonl").exists():
                yield from _curves(file)


def read_record(folder: Path, title: str | None = None) -> RunRecord:
    """Read a workspace, its `work` folder, or the downloaded artifacts of an MLflow run (all have the same layout).

    Raises:
        ReportError: nothing was recorded there, or a record is damaged; names the file and the remedy.
    """
    work = folder / "work" if (folder / "work" / "metrics").is_dir() else folder
    if not (work / "metrics").is_dir():
        raise ReportError(
            f"{folder}: no run was recorded here (no metrics folder)\n"
            "remedy: run `make retrain` first, or name a workspace, its work folder or an MLflow run"
        )
    root = work.parent if work.name == "work" else work
    records = {file.stem: _read_json(file) for file in sorted((work / "metrics").glob("*.json"))}
    gates, seconds = records.pop("gates", {}), records.pop("seconds", {})
    outcome, lock = work / "outcome.json", _read_yaml(root / "dvc.lock").get("stages", {})
    params = _read_yaml(root / "params.yaml")
    return RunRecord(
        work=work,
        title=title or str(params.get("name", root.name)),
        params=params,
        metrics=records,
        gates=gates,
        seconds=seconds,
        outcome=_read_json(outcome) if outcome.exists() else None,
        data_digest=_digest(
            entry for entry in lock.get("validate", {}).get("deps", []) if entry["path"].startswith("data")
        ),
        models={stage: digest for stage, made in lock.items() if (digest := _digest(made.get("outs", [])))},
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise ReportError(
            f"{file}: damaged ({error})\nremedy: delete it and run the stage {file.stem!r} again"
        ) from None
    if not isinstance(record, dict):
        raise ReportError(f"{file}: holds {type(record).__name__}, needs one JSON object\nremedy: run the stage again")
    return record


def _read_parquet(file: Path) -> pd.DataFrame | None:
    if not file.exists():
        return None
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error})\nremedy: delete it and run its stage again") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text()) or {} if file.exists() else {}


def _digest(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """One hash for the files that dvc.lock lists; None for no files."""
    lines = sorted(f"{entry['path']}={entry.get('md5')}" for entry in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] if lines else None


def _curves(file: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """The logged metrics of one stage, by training run."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for entry in LogTail(file).poll():
        if "metrics" in entry:
            rows.setdefault(entry["run"], {}).setdefault(int(entry["step"]), {}).update(entry["metrics"])
    for run, steps in rows.items():
        yield run, pd.DataFrame([{"step": step, **metrics} for step, metrics in sorted(steps.items())])
