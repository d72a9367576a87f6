"""One small marketplace and one retraining of it, shared by all tests of the flow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness
from shop import Shop

from flows.environment import quieten
from perfusion.world.marketplace import write_marketplace
from tasks.workspace import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command line sets, with Prefect's files in a temporary place; gone when the tests of flows are done."""
    before = dict(os.environ)
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    quieten(REPOSITORY)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def prefect_server(quiet_environment: None) -> Iterator[None]:
    """One temporary Prefect server for all flows."""
    with prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture(scope="session")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 merchants, and one picture whose bytes are damaged."""
    folder = tmp_path_factory.mktemp("marketplace") / "data"
    write_marketplace(folder, users=60, seed=0)
    part = sorted((folder / "images").glob("part-*.parquet"))[0]
    images = pd.read_parquet(part)
    images.loc[0, "image"] = images.loc[0, "image"][:60]
    images.to_parquet(part)
    return folder


@pytest.fixture(scope="session")
def first(marketplace: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, State[Any]]:
    """A first retraining on the smoke parameters, and how it ended. A file that retrains again makes its own."""
    shop = Shop.at(tmp_path_factory.mktemp("shop"), marketplace)
    return shop, shop.retrain()


@pytest.fixture
def empty_shop(marketplace: Path, prefect_server: None, tmp_path: Path) -> Shop:
    """A workspace of its own in which nothing has run, over a copy of the tables; pictures are shared."""
    data = tmp_path / "data"
    shutil.copytree(marketplace, data, copy_function=os.link)
    return Shop.at(tmp_path, data)
