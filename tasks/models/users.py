"""Who asks: the features of known users, and what a request itself says about a user."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from torch import Tensor

from perfusion.data import FeatureEncoder
from perfusion.errors import WeightsError

__all__ = ["KnownUsers", "encoder_of"]


def encoder_of(encoder: FeatureEncoder | None) -> FeatureEncoder:
    """A model's feature encoder.

    Raises:
        WeightsError: the model was saved without one, so that nobody can be served by features.
    """
    if encoder is None:
        raise WeightsError("the model has no features.json beside its weights; train it again from a dataset")
    return encoder


class KnownUsers:
    """The users a model knows, by id, with the features it was trained on.

    Args:
        users: user_id and feature columns, one row a user.
        encoder: the model's own feature encoder.
    """

    def __init__(self, users: pd.DataFrame, encoder: FeatureEncoder) -> None:
        self.encoder = encoder
        self.table = users.drop_duplicates("user_id").set_index("user_id", drop=False)

    @classmethod
    def read(cls, path: Path | str, encoder: FeatureEncoder) -> KnownUsers:
        """Read users.parquet."""
        return cls(pd.read_parquet(path), encoder)

    def codes(self, requests: pd.DataFrame) -> tuple[Tensor, list[bool]]:
        """Feature codes of each request, and whether it is served user-blind.

        A feature given in the request wins over the stored one. A user of whom nothing is known (neither the id nor
        any given feature) is user-blind.

        Args:
            requests: optional columns user_id and features, one row a request; other columns are ignored.

        Returns:
            (B, F) int64 codes, and B flags.

        Raises:
            DataError: a given feature has another type than the model was trained on.
        """
        columns = {name: self._values(name, requests) for name in self.encoder.names}
        codes = self.encoder.transform(pd.DataFrame(columns))
        return codes, (codes == 0).all(dim=1).tolist()

    def _values(self, name: str, requests: pd.DataFrame) -> pd.Series:
        """Column `name` for every request, in the type the encoder was fitted on."""
        nothing = pd.Series([None] * len(requests), dtype=object)
        given = requests[name].reset_index(drop=True).astype(object) if name in requests.columns else nothing
        if name != "user_id" and "user_id" in requests.columns and name in self.table.columns:
            ids = requests["user_id"].reset_index(drop=True)
            given = given.where(given.notna(), ids.map(self.table[name].astype(object)))
        return given.astype("float64") if name in self.encoder.edges else given
