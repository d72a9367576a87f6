"""A small dataset to break, one cell at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.config import DataConfig
from tasks.validation import validate

USERS, GROUPS_EACH, CANDIDATES = 8, 3, 4
NOW = datetime(2026, 6, 1)


def picture(seed: int, side: int = 8, kind: str = "PNG") -> bytes:
    """Random pixels, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@dataclass
class Market:
    """Plain columns of a dataset, to be changed at will; `write` stores them.

    Attributes:
        types: (file, column) -> the Arrow type to store instead of the usual one.
    """

    root: Path
    users: dict[str, list[Any]]
    groups: dict[str, list[Any]]
    images: dict[str, list[Any]]
    types: dict[tuple[str, str], pa.DataType] = field(default_factory=dict)

    def write(self) -> Path:
        usual = {
            ("groups", "created_at"): pa.timestamp("ms"),
            ("groups", "image_ids"): pa.list_(pa.string()),
            ("groups", "picked"): pa.list_(pa.bool_()),
            ("images", "image"): pa.binary(),
        }
        (self.root / "images").mkdir(parents=True, exist_ok=True)
        files = {"users": "users.parquet", "groups": "groups.parquet", "images": "images/part-00000.parquet"}
        for name, file in files.items():
            columns = getattr(self, name)
            kinds = {column: (usual | self.types).get((name, column)) for column in columns}
            table = pa.table({column: pa.array(values, kinds[column]) for column, values in columns.items()})
            pq.write_table(table, self.root / file)
        return self.root

    def run(self, **changes: Any) -> Result:
        """Write and validate, with changes to the configuration and to the arguments `accepted` and `out`."""
        accepted, out = changes.pop("accepted", None), self.root.parent / changes.pop("out", "work")
        config = DataConfig(**changes)
        report = validate(self.write(), config, accepted, out / "valid", out / "quarantine", now=NOW)
        return Result(report, out)


@dataclass(frozen=True)
class Result:
    report: dict[str, Any]
    out: Path

    def valid(self, name: str = "groups") -> pd.DataFrame:
        return pd.read_parquet(self.out / "valid" / f"{name}.parquet")

    def quarantine(self, name: str = "groups") -> pd.DataFrame:
        return pd.read_parquet(self.out / "quarantine" / f"{name}.parquet")

    def rules(self, name: str = "groups") -> dict[str, set[str]]:
        """Quarantined record -> the rules it broke."""
        entries = self.quarantine(name)
        return {record: set(rows["rule"]) for record, rows in entries.groupby("record_id")}


@pytest.fixture
def market(tmp_path: Path) -> Market:
    """8 users with 3 groups of 4 candidates each, all sound; every picture is used by one group only."""
    rows = range(USERS * GROUPS_EACH)
    count = len(rows) * CANDIDATES
    return Market(
        root=tmp_path / "data",
        users={
            "user_id": [f"u{user}" for user in range(USERS)],
            "style": [("plain", "bold")[user % 2] for user in range(USERS)],
            "followers": [float(user) for user in range(USERS)],
        },
        groups={
            "record_id": [f"r{row}" for row in rows],
            "user_id": [f"u{row % USERS}" for row in rows],
            "created_at": [NOW - timedelta(days=row, milliseconds=5) for row in rows],
            "prompt": [f"dress, {('red', 'blue')[row % 2]}" for row in rows],
            "image_ids": [[f"i{row * CANDIDATES + c}" for c in range(CANDIDATES)] for row in rows],
            "picked": [[c == row % CANDIDATES for c in range(CANDIDATES)] for row in rows],
        },
        images={
            "image_id": [f"i{image}" for image in range(count)],
            "image": [picture(image) for image in range(count)],
        },
    )


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture
