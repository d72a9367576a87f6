"""Small datasets for the library's tests."""

from datetime import datetime

import pandas as pd
import pytest

from perfusion.world import write_marketplace


def make_groups(records: int = 1, users: int = 1) -> pd.DataFrame:
    """`records` groups of two candidates, dealt to `users` in turn; the first candidate is picked."""
    rows = range(records)
    return pd.DataFrame(
        {
            "record_id": [f"r{row}" for row in rows],
            "user_id": [f"u{row % users}" for row in rows],
            "created_at": [datetime(2026, 1, 1, row % 24) for row in rows],
            "prompt": ["dress, v-neck" for _ in rows],
            "image_ids": [[f"i{2 * row}", f"i{2 * row + 1}"] for row in rows],
            "picked": [[True, False] for _ in rows],
        }
    )


def make_users(users: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"user_id": [f"u{row}" for row in range(users)], "style": ["plain"] * users})


@pytest.fixture
def one_group() -> tuple[pd.DataFrame, pd.DataFrame]:
    """users and groups of the smallest dataset there can be."""
    return make_users(), make_groups()


@pytest.fixture
def groups_of():
    """`make_groups`, for tests that need another number of records."""
    return make_groups


@pytest.fixture
def users_of():
    return make_users


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A small sample marketplace, and its content hash."""
    root = tmp_path_factory.mktemp("sample") / "data"
    return root, write_marketplace(root, users=12, seed=0)
