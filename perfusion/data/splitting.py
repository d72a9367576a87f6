"""The split: a function of each record's own name, so that appending data never moves an old record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from perfusion.config import DataConfig
from perfusion.data.filtering import filter_users
from perfusion.data.layout import read_groups, read_users, write_table
from perfusion.data.statistics import table_one

__all__ = ["SPLITS", "split_dataset", "split_records"]

SPLITS = ("train", "valid", "test", "cold", "few")


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
