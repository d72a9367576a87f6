"""The statistics of a dataset as the paper reports them (Table 1), and a little more."""

from __future__ import annotations

from collections import Counter

import pandas as pd

__all__ = ["table_one"]


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
