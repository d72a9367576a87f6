"""Validate a dataset: bad rows to quarantine with record, rule and value; clean tables for the stages that follow.

A fault of the whole dataset (a file, a column, a type) raises a DataError. A fault of a row costs that row: a group is
set aside when anything it needs is broken, its user and its pictures included. Groups without a comparison (one
candidate, nothing picked, everything picked) are whole records that teach nothing: they stay valid, are counted, and
the filter of the next stage drops them by reason.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from perfusion.checkpoint import atomic_write
from perfusion.config import DataConfig
from perfusion.data import GROUP_COLUMNS, write_table
from perfusion.errors import DataError
from perfusion.governance import drift
from tasks.validation_columns import as_text
from tasks.validation_facts import (
    candidate_facts,
    failed_rows,
    feature_facts,
    group_facts,
    image_states,
    picture_facts,
    user_facts,
    user_states,
)
from tasks.validation_pictures import Pictures, check_pictures
from tasks.validation_reading import Table, read_groups, read_users
from tasks.validation_rules import (
    Failures,
    candidate_rules,
    feature_rules,
    group_rules,
    judge,
    picture_rules,
    user_rules,
)

__all__ = ["accept", "validate"]

PROFILE = "profile.json"
EXAMPLES = 3
LOOKED_INTO = 1000  # candidates


def validate(
    data_dir: Path,
    config: DataConfig,
    accepted: Path | None,
    valid_dir: Path,
    quarantine_dir: Path,
    *,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Judge every row of a dataset; write valid/{users,groups}.parquet, valid/profile.json and quarantine/*.parquet.

    Args:
        data_dir: a dataset in the layout of `perfusion.data`.
        config: the limits.
        accepted: profile of the last accepted data (see `accept`); None or absent: nothing was accepted before.
        valid_dir: replaced as a whole.
        quarantine_dir: replaced as a whole: users, groups, images (record_id, rule, value, file, row). A row that
            breaks several rules has an entry for each and is counted once.
        now: the clock, naive UTC, for dates that lie in the future.

    Returns:
        The report, plain JSON values: groups_in = quarantined + valid, and the same for users and images; rules (table,
        rule, says, checked, failed, examples, remedy); coverage, drift, unseen_categories, schema_changes, coercions,
        ignored_columns, no_comparison, seconds.

    Raises:
        DataError: a file, a column or a type is not what the layout asks for, or a table is empty; nothing is written.
    """
    began = time.monotonic()
    now = now or datetime.now(UTC).replace(tzinfo=None)
    before = _read_profile(accepted)
    data_dir = Path(data_dir)
    users, groups = _read_tables(data_dir)
    looked_into = groups.frame["image_ids"].where(_bearable(groups.frame["image_ids"], config), None)
    pictures = check_pictures(data_dir, _referenced(looked_into), config.max_image_pixels)

    user_failures = _judge_users(users)
    picture_failures = judge(picture_facts(pictures), picture_rules(config))
    group_failures = _judge_groups(
        groups,
        looked_into,
        config,
        now,
        user_states(users.frame, user_failures),
        image_states(pictures.frame, picture_failures),
    )
    bad_users, bad_groups, bad_images = map(failed_rows, (user_failures, group_failures, picture_failures))
    clean_users = users.frame.drop(index=bad_users).reset_index(drop=True)
    clean_groups = groups.frame.drop(index=bad_groups).reset_index(drop=True)[list(GROUP_COLUMNS)]
    quarantine = {
        "users": _entries(users.frame["user_id"], user_failures, users.file),
        "groups": _entries(groups.frame["record_id"], group_failures, groups.file),
        "images": _picture_entries(pictures, picture_failures),
    }
    _write(valid_dir, quarantine_dir, clean_users, clean_groups, quarantine)
    failures = {"users": user_failures, "groups": group_failures, "images": picture_failures}
    report = {
        "groups_in": len(groups.frame),
        "quarantined": len(bad_groups),
        "valid": len(clean_groups),
        "users_in": len(users.frame),
        "users_quarantined": len(bad_users),
        "users_valid": len(clean_users),
        "images_in": len(pictures.frame),
        "images_decoded": int(pictures.frame["referenced"].sum()),
        "images_quarantined": len(bad_images),
        "images_parts": pictures.parts,
        "no_comparison": _no_comparison(clean_groups),
        "rules": [row for table, found in failures.items() for row in _rule_rows(table, found, quarantine[table])],
        "coercions": [asdict(item) for item in (*users.coercions, *groups.coercions, *pictures.coercions)],
        "ignored_columns": {table.file: table.ignored for table in (users, groups) if table.ignored},
        "coverage": _coverage(clean_users),
        **_comparison(before, clean_users, clean_groups),
        "seconds": round(time.monotonic() - began, 2),
    }
    for whole, bad, good in (("groups_in", "quarantined", "valid"), ("users_in", "users_quarantined", "users_valid")):
        if report[whole] != report[bad] + report[good]:
            raise RuntimeError(f"{whole} {report[whole]} is not {bad} {report[bad]} + {good} {report[good]}")
    return report


def accept(valid_dir: Path, accepted: Path) -> None:
    """Remember the data just validated as the last accepted data: what the next run's drift is measured against."""
    atomic_write(Path(accepted), (Path(valid_dir) / PROFILE).read_bytes())


def _read_profile(accepted: Path | None) -> dict[str, Any] | None:
    if accepted is None or not Path(accepted).exists():
        return None
    try:
        profile = json.loads(Path(accepted).read_text())
        if not {"users", "groups", "features", "variables"} <= set(profile):
            raise ValueError(f"keys {sorted(profile)}")
        return profile
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{accepted}: not a profile of accepted data ({as_text(error)}); delete it to compare with nothing once"
        ) from None


def _read_tables(root: Path) -> tuple[Table, Table]:
    """Both tables; the faults of both are told in one error."""
    found: list[Table] = []
    problems: list[str] = []
    for read in (read_users, read_groups):
        try:
            found.append(read(root))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join([f"{root}: not a dataset that can be trained on:", *problems]))
    return found[0], found[1]


def _bearable(image_ids: pd.Series, config: DataConfig) -> pd.Series:
    """Which groups are looked into. Those far beyond `max_group_size` are set aside for that alone, unread: one of a
    million candidates would cost more than all the rest together."""
    most = max(LOOKED_INTO, config.max_group_size)
    return image_ids.map(lambda ids: ids is not None and len(ids) <= most).astype(bool)


def _referenced(image_ids: pd.Series) -> set[str]:
    return {image_id for ids in image_ids if ids is not None for image_id in ids if image_id is not None}


def _judge_users(users: Table) -> list[Failures]:
    """Failures of users, and those of their features, told by user."""
    features = feature_facts(users)
    found = judge(features, feature_rules()) if len(features) else []
    return [*judge(user_facts(users), user_rules()), *(_by_row(failures, features["row"]) for failures in found)]


def _judge_groups(
    groups: Table, looked_into: pd.Series, config: DataConfig, now: datetime, users: Mapping[str, str],
    images: Mapping[str, tuple[str, str]],
) -> list[Failures]:  # fmt: skip
    """Failures of whole groups, then those of their candidates, told by group."""
    latest = now + timedelta(days=config.max_future_days)
    whole = judge(group_facts(groups, users), group_rules(config, latest))
    candidates = candidate_facts(looked_into, images)
    return [*whole, *(_by_row(found, candidates["group"]) for found in judge(candidates, candidate_rules()))]


def _by_row(found: Failures, rows: pd.Series) -> Failures:
    """Failures of parts (candidates, features) as failures of the rows they belong to; the first few are named."""
    named: dict[Any, list[str]] = {}
    for label, shown in found.failed.items():
        named.setdefault(int(rows.at[label]), []).append(shown)
    return Failures(found.rule, found.checked, {row: _some(texts) for row, texts in named.items()})


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else ""
    return as_text("; ".join(texts[:EXAMPLES]) + more)


def _entries(ids: pd.Series, failures: Sequence[Failures], file: str) -> pd.DataFrame:
    """Quarantine entries: record_id ("row 17" where the id is missing), rule, value, file, row; order: the rule's."""
    rows = [
        (_name(ids.at[row], row), found.rule.name, value, file, row, order)
        for order, found in enumerate(failures)
        for row, value in found.failed.items()
    ]
    rows.sort(key=lambda entry: entry[-2:])
    types = {"record_id": "str", "rule": "str", "value": "str", "file": "str", "row": "int64", "order": "int64"}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def _picture_entries(pictures: Pictures, failures: Sequence[Failures]) -> pd.DataFrame:
    """Like `_entries`, with each picture's own part file and its row there."""
    entries = _entries(pictures.frame["image_id"], failures, "")
    places = pictures.frame.loc[entries["row"], ["file", "row"]].reset_index(drop=True)
    return entries.assign(file=places["file"].astype("str"), row=places["row"].astype("int64"))


def _name(record_id: Any, row: Any) -> str:
    return as_text(record_id) if isinstance(record_id, str) else f"row {row}"


def _rule_rows(table: str, failures: Sequence[Failures], entries: pd.DataFrame) -> list[dict[str, Any]]:
    """One record a rule, with its first few quarantine entries."""
    examples = dict(iter(entries.drop(columns="order").groupby(entries["order"], sort=False)))
    return [
        {
            "table": table,
            "rule": found.rule.name,
            "says": found.rule.says,
            "checked": found.checked,
            "failed": len(found.failed),
            "examples": examples[order].head(EXAMPLES).to_dict("records") if found.failed else [],
            "remedy": found.rule.remedy,
        }
        for order, found in enumerate(failures)
    ]


def _coverage(users: pd.DataFrame) -> dict[str, float]:
    """Share of clean users that have a value, by feature."""
    return {str(name): float(users[name].notna().mean()) for name in users.columns if name != "user_id" and len(users)}


def _no_comparison(groups: pd.DataFrame) -> dict[str, int]:
    """Clean groups that teach nothing, by reason; a group with one candidate counts as such only."""
    counts = {"one candidate": 0, "nothing picked": 0, "everything picked": 0}
    for picked in groups["picked"]:
        if len(picked) == 1:
            counts["one candidate"] += 1
        elif not any(picked):
            counts["nothing picked"] += 1
        elif all(picked):
            counts["everything picked"] += 1
    return counts


def _comparison(before: Mapping[str, Any] | None, users: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Any]:
    if before is None:
        return {"accepted": None, "drift": None, "unseen_categories": None, "schema_changes": None}
    return {
        "accepted": {"users": before["users"], "groups": before["groups"]},
        "drift": drift.compare(before, users, groups),
        "unseen_categories": drift.unseen_categories(before, users),
        "schema_changes": drift.schema_changes(before, users),
    }


def _write(
    valid_dir: Path,
    quarantine_dir: Path,
    users: pd.DataFrame,
    groups: pd.DataFrame,
    quarantine: Mapping[str, pd.DataFrame],
) -> None:
    """Both folders whole or not at all: built beside their places, then moved."""
    targets = [Path(valid_dir), Path(quarantine_dir)]
    built = [target.with_name(f".{target.name}.{os.getpid()}.part") for target in targets]
    try:
        write_table(built[0] / "users.parquet", users)
        write_table(built[0] / "groups.parquet", groups)
        atomic_write(built[0] / PROFILE, json.dumps(drift.profile(users, groups)).encode())
        for name, entries in quarantine.items():
            write_table(built[1] / f"{name}.parquet", entries.drop(columns="order"))
        for source, target in zip(built, targets, strict=True):
            shutil.rmtree(target, ignore_errors=True)
            os.replace(source, target)
    except OSError as error:
        raise DataError(
            f"{targets[0]}: nothing was written: {error.strerror or error}; mend it and try again"
        ) from error
    finally:
        for folder in built:
            shutil.rmtree(folder, ignore_errors=True)
