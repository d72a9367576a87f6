"""Users' features as small integers: categories by name, numbers by quantile, 0 for what was never seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from perfusion.checkpoint import atomic_write
from perfusion.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FeatureEncoder"]

_BUCKETS = 8


@dataclass(frozen=True)
class FeatureEncoder:
    """Codes of each feature, in the order of `names`; the last feature is the user's own id.

    Attributes:
        categories: feature -> its known values; the code of values[i] is i + 1.
        edges: numeric feature -> ascending bucket edges; the code of x is 1 + the number of edges <= x.
        names: all features in order.
    """

    categories: dict[str, tuple[str, ...]]
    edges: dict[str, tuple[float, ...]]
    names: tuple[str, ...]

    @classmethod
    def fit(cls, users: pd.DataFrame) -> Self:
        """Learn categories and bucket edges from training users; null values teach nothing."""
        if users.empty:
            raise DataError("users: no training user to learn features from")
        features = sorted(str(name) for name in users.columns if name != "user_id")
        categories: dict[str, tuple[str, ...]] = {}
        edges: dict[str, tuple[float, ...]] = {}
        for name in (*features, "user_id"):
            known = users[name].dropna()
            if _is_numeric(users[name]):
                edges[name] = _quantile_edges(known.to_numpy(np.float64))
            else:
                categories[name] = tuple(sorted(set(map(str, known))))
        return cls(categories, edges, (*features, "user_id"))

    @property
    def cardinalities(self) -> list[int]:
        """Codes of each feature, the unknown one included: valid codes are 0 .. cardinality - 1."""
        return [
            len(self.categories[name]) + 1 if name in self.categories else len(self.edges[name]) + 2
            for name in self.names
        ]

    def transform(self, users: pd.DataFrame) -> Tensor:
        """Codes of users, (U, F) int64; an unseen category, a null or a number that is not finite is 0.

        Raises:
            DataError: a feature the encoder was fitted on is absent, or has turned from text to numbers or back.
        """
        absent = [name for name in self.names if name not in users.columns]
        if absent:
            raise DataError(
                f"users: columns absent: {', '.join(absent)}; the model was trained with {list(self.names)}"
            )
        columns = [self._codes(name, users[name]) for name in self.names]
        import torch  # here, so that reading an encoder does not import it

        return torch.from_numpy(np.stack(columns, axis=1))

    def unknown(self) -> Tensor:
        """The codes of a user of whom nothing is known, (F,) zeros."""
        import torch

        return torch.zeros(len(self.names), dtype=torch.int64)

    def save(self, path: Path) -> None:
        """Write features.json."""
        record = {"names": self.names, "categories": self.categories, "edges": self.edges}
        atomic_write(path, json.dumps(record, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read features.json."""
        try:
            record = json.loads(path.read_text())
            categories = {name: tuple(values) for name, values in record["categories"].items()}
            edges = {name: tuple(map(float, values)) for name, values in record["edges"].items()}
            return cls(categories, edges, tuple(record["names"]))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: not a feature file ({error!r}); it is written beside the model it belongs to"
            ) from None

    def _codes(self, name: str, values: pd.Series) -> np.ndarray:
        if _is_numeric(values) != (name in self.edges):
            raise DataError(
                f"users: column {name} holds {values.dtype}, the model was trained on "
                f"{'numbers' if name in self.edges else 'text'}; convert the column"
            )
        if name in self.edges:
            numbers = values.to_numpy(np.float64, na_value=np.nan)
            codes = 1 + np.searchsorted(np.array(self.edges[name]), numbers, side="right")
            return np.where(np.isfinite(numbers), codes, 0).astype(np.int64)
        index = {value: code for code, value in enumerate(self.categories[name], start=1)}
        return np.array([0 if pd.isna(value) else index.get(str(value), 0) for value in values], np.int64)


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _quantile_edges(values: np.ndarray) -> tuple[float, ...]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    inner = np.quantile(finite, np.linspace(0, 1, _BUCKETS + 1)[1:-1])
    return tuple(float(edge) for edge in np.unique(inner) if edge > finite.min())
