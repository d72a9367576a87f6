"""The data gate: is this dataset fit to train on? Pure: a validation report in, a decision out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from perfusion.config import DataConfig
from perfusion.governance.decision import Check, Decision, at_least, at_most, decide

__all__ = ["data_gate"]

WORST_RULES = 8
MEANT = "if the change is meant, remove work/accepted.json: the next run compares with nothing"


def data_gate(report: Mapping[str, Any], config: DataConfig) -> Decision:
    """Decide from `tasks.validation.validate`'s report: schema, row count, bad share, coverage and drift.

    A number that is missing is inconclusive and does not pass. Without accepted data there is nothing to drift from,
    which the decision says.
    """
    bad = _share(report.get("quarantined"), report.get("groups_in"))
    checks = [
        *_schema(report),
        at_least("valid group records", report.get("valid"), config.min_groups),
        *_bad_share(report, bad, config),
        *_coverage(report, config),
        *_drift(report, config),
    ]
    statistics = {
        "groups_in": report.get("groups_in"),
        "quarantined": report.get("quarantined"),
        "valid": report.get("valid"),
        "bad_share": bad,
        "coverage": report.get("coverage"),
        "drift": {row["name"]: row["psi"] for row in report.get("drift") or []},
    }
    thresholds = {
        "min_groups": config.min_groups,
        "max_bad_share": config.max_bad_share,
        "min_coverage": config.min_coverage,
        "max_drift": config.max_drift,
    }
    return decide("data", checks, statistics, thresholds)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _schema(report: Mapping[str, Any]) -> Iterator[Check]:
    changes = report.get("schema_changes")
    if changes is None:
        if report.get("accepted") is not None:
            yield Check("schema", "inconclusive", "schema: the comparison with the accepted data's features is missing")
        else:
            yield Check("schema", "pass", "schema: every required column is there; no accepted data to compare with")
        return
    for name in changes["missing"]:
        reason = f"schema: feature {name!r} of the accepted data is missing in users.parquet"
        yield Check("schema", "fail", f"{reason}; {MEANT}")
    for name in changes["retyped"]:
        yield Check("schema", "fail", f"schema: feature {name!r} has turned from text to numbers or back; {MEANT}")
    if not changes["missing"] and not changes["retyped"]:
        new = f"; new: {', '.join(changes['new'])}" if changes["new"] else ""
        yield Check("schema", "pass", f"schema: every required column and every accepted feature is there{new}")


def _bad_share(report: Mapping[str, Any], bad: float | None, config: DataConfig) -> Iterator[Check]:
    """The bad share, and when it fails the rules that failed most, with an example and the remedy of each."""
    check = at_most("quarantined share of group records", bad, config.max_bad_share)
    yield _with_remedy(check, "quarantine/groups.parquet holds every bad record with its rule and value")
    if check.verdict != "fail":
        return
    failed = [row for row in report.get("rules") or [] if row["table"] == "groups" and row["failed"]]
    for row in sorted(failed, key=lambda row: -row["failed"])[:WORST_RULES]:
        yield Check(row["rule"], "fail", _tell(row))


def _tell(row: Mapping[str, Any]) -> str:
    example = row["examples"][0] if row["examples"] else None
    seen = f", e.g. {example['record_id']}: {example['value']}" if example else ""
    return f"rule {row['rule']} failed {row['failed']} of {row['checked']}{seen}; {row['remedy']}"


def _coverage(report: Mapping[str, Any], config: DataConfig) -> Iterator[Check]:
    coverage = report.get("coverage")
    if coverage is None:
        yield at_least("coverage of users' features", None, config.min_coverage)
        return
    for name, share in coverage.items():
        check = at_least(f"coverage of feature {name!r}", share, config.min_coverage)
        yield _with_remedy(check, "fill the feature in, or leave its column out of users.parquet")


def _drift(report: Mapping[str, Any], config: DataConfig) -> Iterator[Check]:
    drift = report.get("drift")
    if drift is None:
        if report.get("accepted") is None:
            yield Check("drift", "pass", "drift: no data was accepted before, so there is nothing to compare with")
        else:
            yield Check("drift", "inconclusive", "drift: the comparison with the accepted data is missing")
        return
    for row in drift:
        # With few rows chance alone exceeds the customary limit; then the limit is what chance gives.
        limit = max(config.max_drift, row["psi_by_chance"] or 0.0)
        check = at_most(f"drift (population stability index) of {row['name']!r}", row["psi"], limit)
        yield _with_remedy(check, MEANT)


def _with_remedy(check: Check, remedy: str) -> Check:
    return check if check.verdict == "pass" else replace(check, reason=f"{check.reason}; {remedy}")
