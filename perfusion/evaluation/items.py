"""The frozen tasks on which generators are compared: held-out (user, prompt, seed), the same for every arm.

The choice hangs on names alone (seed, user, record), so that two models trained on the same split meet the same items.
"""

from __future__ import annotations

import pandas as pd

from perfusion.errors import DataError
from perfusion.seeding import derive_seed

__all__ = ["COLD_SPLITS", "ITEM", "choose_items", "with_slices"]

#: What identifies an item.
ITEM = ("user_id", "prompt", "seed")
#: Splits of users nothing was learnt of: users held out entirely, and users under the record filter.
COLD_SPLITS = ("cold", "few")
_SEED_BITS = 31
_MOST_VALUES = 12  # of a feature that makes slices


def choose_items(groups: pd.DataFrame, pairs: int, pictures: int, seed: int) -> pd.DataFrame:
    """Choose held-out groups, evenly over users, and give each its noise and its control.

    Args:
        groups: held-out groups with `record_id`, `user_id`, `prompt`.
        pairs: (user, prompt) pairs to choose; all of them when there are fewer.
        pictures: seeds of each pair.
        seed: of the choice.

    Returns:
        One row for each picture of an arm: `record_id`, `user_id`, `prompt`, `seed` (31 bits) and `wrong_user_id`,
        another user; over all users each is lent to exactly one other.

    Raises:
        DataError: fewer than two users, so that nobody could be the wrong one.
    """
    order = groups[["record_id", "user_id", "prompt"]].copy()
    order["turn"] = [derive_seed(seed, "item", record) for record in order["record_id"]]
    order["user_turn"] = [derive_seed(seed, "item-user", user) for user in order["user_id"]]
    order = order.sort_values("turn", kind="stable").drop_duplicates(["user_id", "prompt"])
    order["round"] = order.groupby("user_id").cumcount()
    chosen = order.sort_values(["round", "user_turn"], kind="stable").head(pairs)
    users = chosen.drop_duplicates("user_id")["user_id"].tolist()
    if len(users) < 2:
        raise DataError(f"{len(users)} user among the held-out groups: a wrong-user control needs two; add records")
    lent = dict(zip(users, [*users[1:], users[0]], strict=True))
    rows = chosen.loc[chosen.index.repeat(pictures), ["record_id", "user_id", "prompt"]].reset_index(drop=True)
    number = rows.groupby(["record_id"]).cumcount()
    rows["seed"] = [
        derive_seed(seed, "picture", record, k) % 2**_SEED_BITS
        for record, k in zip(rows["record_id"], number, strict=True)
    ]
    rows["wrong_user_id"] = rows["user_id"].map(lent)
    return rows


def with_slices(items: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Add `slice_*` columns: what is known about each item's user, for features with few values."""
    result = items.copy()
    known = users.set_index("user_id")
    for feature in known.columns:
        values = known[feature]
        if not pd.api.types.is_numeric_dtype(values) and values.nunique() <= _MOST_VALUES:
            given = values.astype(object).where(values.notna(), "not given").astype(str)
            result[f"slice_{feature}"] = result["user_id"].map(given)
    return result
