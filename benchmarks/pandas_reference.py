"""The data plane as it was on pandas: what the benchmark measures against and what tests hold the fast one equal to."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from perfusion.config import DataConfig
from perfusion.data import SPLITS, read_groups, read_users, write_table
from perfusion.errors import DataError

__all__ = ["Filtered", "filter_users", "split_dataset", "split_records", "table_one"]


@dataclass(frozen=True)
class Filtered:
    """Group records sorted by use; len(kept) + len(few) + sum(dropped.values()) is the number that came in.

    Attributes:
        kept: usable records of users with enough of them.
        few: usable records of users with too few: the cold-start slice.
        dropped: reason -> count of records that hold no comparison.
    """

    kept: pd.DataFrame
    few: pd.DataFrame
    dropped: dict[str, int]


def filter_users(groups: pd.DataFrame, min_records: int) -> Filtered:
    """Keep records with a picked and an unpicked candidate, of users with at least `min_records` of those.

    Raises:
        DataError: there are no groups, none holds a comparison, or no user has enough.
    """
    if groups.empty:
        raise DataError("groups: no rows to filter; a dataset needs at least one group record")
    nothing_picked = ~groups["picked"].map(any).astype(bool)
    all_picked = groups["picked"].map(all).astype(bool) & ~nothing_picked
    usable = groups[~nothing_picked & ~all_picked]
    dropped = {"nothing picked": int(nothing_picked.sum()), "everything picked": int(all_picked.sum())}
    records = usable.groupby("user_id")["record_id"].transform("size")
    enough = records >= min_records
    if not enough.any():
        most = int(records.max()) if len(records) else 0
        raise DataError(
            f"groups: no user has {min_records} usable records (data.min_records); the most is {most}, of "
            f"{len(groups)} records {dropped}; add data or lower data.min_records"
        )
    return Filtered(usable[enough].reset_index(drop=True), usable[~enough].reset_index(drop=True), dropped)


def split_records(
    groups: pd.DataFrame, ratios: tuple[int, int, int] = (8, 1, 1), cold_users: float = 0.08, salt: str = "perfusion"
) -> pd.DataFrame:
    """Add a column `split`: train, valid or test by record (Sec. 5.1.1, 8:1:1), or cold for users held out entirely.

    Both draws are hashes of the record's and the user's name: uniform in [0, 1), the same on every machine, for ever.

    Args:
        groups: usable records, see `filter_users`.
        ratios: train : valid : test.
        cold_users: share of users held out.
        salt: another salt is another split.
    """
    total = sum(ratios)
    train, valid = ratios[0] / total, (ratios[0] + ratios[1]) / total
    cold = {user for user in groups["user_id"].unique() if _uniform(salt, "user", user) < cold_users}

    def place(record: str, user: str) -> str:
        if user in cold:
            return "cold"
        draw = _uniform(salt, "record", record)
        return "train" if draw < train else "valid" if draw < valid else "test"

    split = [place(r, u) for r, u in zip(groups["record_id"], groups["user_id"], strict=True)]
    return groups.assign(split=pd.Series(split, index=groups.index, dtype="str"))


def split_dataset(valid_dir: Path, config: DataConfig, out_dir: Path, seed: int = 0) -> dict[str, object]:
    """Filter and split the clean tables of `valid_dir` into `out_dir`; the counts add up to what came in.

    Returns:
        {"in", "used", "filtered", "dropped": {reason: n}, "splits": {name: n}, "users": {...}, "images_seen": share of
        test candidates whose picture also stands in a training group, "table_one": see `table_one`}.

    Raises:
        DataError: see `filter_users`.
    """
    users, groups = read_users(valid_dir / "users.parquet"), read_groups(valid_dir / "groups.parquet")
    filtered = filter_users(groups, config.min_records)
    kept = split_records(filtered.kept, config.ratios, config.cold_users, salt=f"perfusion/{seed}")
    few = filtered.few.assign(split="few")
    records = pd.concat([kept, few], ignore_index=True) if len(few) else kept
    write_table(out_dir / "users.parquet", users[users["user_id"].isin(records["user_id"])])
    write_table(out_dir / "groups.parquet", records)
    cold = kept.loc[kept["split"] == "cold", "user_id"].nunique()
    return {
        "in": len(groups),
        "used": len(kept),
        "filtered": len(few),
        "dropped": filtered.dropped,
        "splits": {name: int((records["split"] == name).sum()) for name in SPLITS},
        "users": {"known": kept["user_id"].nunique() - cold, "cold": cold, "few": few["user_id"].nunique()},
        "images_seen": _images_seen(kept),
        "table_one": table_one(kept),
    }


def _uniform(salt: str, *names: str) -> float:
    """A number in [0, 1) that depends on nothing but the names."""
    digest = hashlib.blake2b("\x1f".join((salt, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _images_seen(groups: pd.DataFrame) -> float:
    trained = {image for ids in groups.loc[groups["split"] == "train", "image_ids"] for image in ids}
    tested = [image for ids in groups.loc[groups["split"] == "test", "image_ids"] for image in ids]
    return sum(image in trained for image in tested) / len(tested) if tested else 0.0


def table_one(groups: pd.DataFrame) -> dict[str, object]:
    """#Users, #Prompts, #Samples and group size (Table 1), of usable group records.

    A sample is a group record: Table 1's Industrial row has 11.04 of them per user.

    Returns:
        {"users", "prompts", "samples", "group_size": {size: records}, "group_size_mean", "picked": {count: records},
        "records_per_user", "images"}.
    """
    sizes = Counter(map(len, groups["image_ids"]))
    picked = Counter(map(sum, groups["picked"]))
    users = groups["user_id"].nunique()
    return {
        "users": users,
        "prompts": groups["prompt"].nunique(),
        "samples": len(groups),
        "group_size": {str(size): sizes[size] for size in sorted(sizes)},
        "group_size_mean": sum(n * size for size, n in sizes.items()) / max(1, len(groups)),
        "picked": {str(count): picked[count] for count in sorted(picked)},
        "records_per_user": len(groups) / max(1, users),
        "images": len({image for ids in groups["image_ids"] for image in ids}),
    }
