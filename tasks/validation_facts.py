"""The frames that the rules look at: one row a user, feature, group, candidate or stored picture; plain columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.validation_pictures import Pictures
from tasks.validation_reading import Table
from tasks.validation_rules import Failures

__all__ = [
    "candidate_facts", "failed_rows", "feature_facts", "group_facts", "image_states", "picture_facts", "user_facts",
    "user_states",
]  # fmt: skip

ABSENT = ("absent", "")


def user_facts(users: Table) -> pd.DataFrame:
    """One row a user: its columns, what could not be read of them, and whether the row repeats an earlier one."""
    return _mark_repeats(_with_unread(users), "user_id")


def feature_facts(users: Table) -> pd.DataFrame:
    """One row a feature of a user, labelled by number: its user's row, its name, and its text or its number.

    Great Expectations resolves the rules of a suite in time that grows with their square: a rule for each of a thousand
    columns would take a quarter of an hour.
    """
    parts = [_feature(users, str(name)) for name in users.frame.columns if name != "user_id"]
    columns = ["row", "feature", "text", "number", "text unread"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _feature(users: Table, name: str) -> pd.DataFrame:
    values, empty = users.frame[name], pd.Series(None, index=users.frame.index, dtype=object)
    is_text = values.dtype == object
    return pd.DataFrame(
        {
            "row": users.frame.index, "feature": name, "text": values if is_text else empty,
            "number": np.nan if is_text else values.to_numpy(dtype=float, na_value=np.nan),
            "text unread": _cells(users.unreadable.get(name, {}), users.frame) if is_text else empty,
        }
    )  # fmt: skip


def picture_facts(pictures: Pictures) -> pd.DataFrame:
    """One row a stored picture: id, size, fault, and whether the row repeats an earlier one (same id, same bytes)."""
    facts = _mark_repeats(pictures.frame[["image_id", "digest", "size", "fault"]], "image_id")
    return facts.assign(**{"image_id unread": _cells(pictures.unreadable_ids, facts)})


def group_facts(groups: Table, users: Mapping[str, str]) -> pd.DataFrame:
    """One row a group: its columns, lengths of its lists, gaps in its picks, and the state of its user."""
    frame = groups.frame
    candidates = frame["image_ids"].map(len, na_action="ignore").astype("Int64")
    picks = frame["picked"].map(len, na_action="ignore").astype("Int64")
    return _mark_repeats(_with_unread(groups), "record_id").assign(
        user_state=frame["user_id"].map(lambda user: users.get(user, "absent"), na_action="ignore"),
        candidates=candidates,
        picks=picks,
        picked_gaps=frame["picked"].map(lambda flags: flags.count(None), na_action="ignore").astype("Int64"),
        lengths=[f"picked {p}, image_ids {c}" for p, c in zip(picks, candidates, strict=True)],
    )


def candidate_facts(groups: pd.Series, images: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One row a candidate, labelled by number: its group's row, its picture's id and state, and a text to show.

    Args:
        groups: lists of image ids; None where a group is not to be looked into.
        images: id -> state and why, see `image_states`.
    """
    rows = []
    for group, image_ids in groups.items():
        for position, image_id in enumerate(image_ids or ()):
            state, why = images.get(image_id, ABSENT) if image_id is not None else (None, "")
            shown = f"candidate {position}: {image_id}" + (f" ({why})" if why else "")
            rows.append((group, image_id, state, shown))
    facts = pd.DataFrame(rows, columns=["group", "image_id", "image_state", "shown"])
    return facts.astype({"group": "int64", "image_id": object, "image_state": object, "shown": object})


def failed_rows(failures: Iterable[Failures]) -> list[Any]:
    """Labels of the rows that fail any rule, each once."""
    return sorted({label for found in failures for label in found.failed})


def user_states(users: pd.DataFrame, failures: Sequence[Failures]) -> dict[str, str]:
    """User id -> "valid" (some row of that id passed) or "quarantined"."""
    states = dict.fromkeys(users["user_id"].dropna(), "quarantined")
    return states | dict.fromkeys(users.drop(index=failed_rows(failures))["user_id"], "valid")


def image_states(images: pd.DataFrame, failures: Sequence[Failures]) -> dict[str, tuple[str, str]]:
    """Stored image id -> ("valid", "unreadable" or "ambiguous"; why)."""
    states: dict[str, tuple[str, str]] = {}
    for found in failures:
        ambiguous = found.rule.name == "image_id_unique"
        for row, value in found.failed.items():
            image_id = images.at[row, "image_id"]
            if image_id is not None:
                states[image_id] = ("ambiguous", "") if ambiguous else ("unreadable", f"{found.rule.name}: {value}")
    passed = images.drop(index=failed_rows(failures))["image_id"]
    return states | dict.fromkeys(passed, ("valid", ""))


def _with_unread(table: Table) -> pd.DataFrame:
    """The table with a column beside each: the text of cells that could not be read."""
    unread = {f"{name} unread": _cells(table.unreadable.get(name, {}), table.frame) for name in table.frame.columns}
    return pd.concat([table.frame, pd.DataFrame(unread, index=table.frame.index)], axis=1)


def _cells(texts: Mapping[int, str], frame: pd.DataFrame) -> pd.Series:
    column = pd.Series(None, index=frame.index, dtype=object)
    column.loc[list(texts)] = list(texts.values())
    return column


def _mark_repeats(facts: pd.DataFrame, column: str) -> pd.DataFrame:
    """Add `repeats an earlier row` (in every column) and `{column} once` (the id, None on repeats)."""
    ids = facts[column]
    shared = facts[ids.duplicated(keep=False) & ids.notna()]
    keys = pd.Series([repr(row) for row in shared.itertuples(index=False)], index=shared.index, dtype=object)
    repeats = pd.Series(False, index=facts.index)
    repeats[shared.index] = keys.duplicated()
    return facts.assign(**{"repeats an earlier row": repeats, f"{column} once": ids.where(~repeats, None)})
