"""The load gate: a registered artifact gives the evaluation's own numbers again, in a clean process, or stays out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_models import PROMPTS, USERS, picture

from perfusion.config import Params
from perfusion.data import load_tables, write_table
from perfusion.errors import DataError
from perfusion.evaluation.arms import PipelineArm
from perfusion.evaluation.drawn import draw, score_pictures
from perfusion.evaluation.images import to_png
from perfusion.evaluation.reward import SPLITS, candidate_scores, score_table
from perfusion.generation import PerFusionPipeline
from perfusion.governance import Decision
from perfusion.reward import PerFusionRM
from perfusion.scorers import PersonalScore
from tasks import gates
from tasks.evaluated import measured_pictures, measured_scores
from tasks.publishing import Registered
from tasks.registry import Registry
from tasks.registry.artifacts import local_folder
from tasks.workspace import Workspace, open_workspace

PARAMS = Params(name="shop")
VERSIONS = {"shop-reward": 1, "shop-generator": 1}


@dataclass(frozen=True)
class Shop:
    """A workspace whose models were registered and evaluated."""

    workspace: Workspace
    registry: Registry

    def gate(self) -> Decision:
        return gates.load(self.workspace, PARAMS, Registered(VERSIONS, dict.fromkeys(VERSIONS), known=False))


@pytest.fixture(scope="module")
def shop(tiny_store: Callable[[Path], Registry], tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    (root / "mlruns").mkdir()
    workspace = open_workspace(root, root / "mlruns")
    registry = tiny_store(root / "mlruns")
    _write_data(workspace)
    for name, folder in (("reward", workspace.reward), ("generator", workspace.generator)):
        shutil.copytree(local_folder(registry.client, f"shop-{name}", 1) / "artifacts" / name, folder)
    _evaluate(workspace)
    return Shop(workspace, registry)


def _write_data(workspace: Workspace) -> None:
    ids = [f"i{number}" for number in range(12)]
    (workspace.data / "images").mkdir(parents=True)
    pictures = pd.DataFrame({"image_id": ids, "image": [picture(20 * number) for number in range(12)]})
    pictures.to_parquet(workspace.data / "images" / "part-0.parquet")
    rows = [
        {"record_id": f"r{n}", "user_id": f"u{n % 3 + 1}", "created_at": pd.Timestamp("2026-01-01"),
         "prompt": PROMPTS[n % 2], "image_ids": ids[2 * n : 2 * n + 2], "picked": [True, False], "split": split}
        for n, split in enumerate(("test", "test", "test", "cold", "few", "train"))
    ]  # fmt: skip
    rows.append({**rows[3], "record_id": "r9", "user_id": "stranger", "image_ids": ids[10:]})
    users = pd.concat([USERS, pd.DataFrame({"user_id": ["stranger"]})], ignore_index=True)
    write_table(workspace.split / "users.parquet", users)
    write_table(workspace.split / "groups.parquet", pd.DataFrame(rows))


def _evaluate(workspace: Workspace) -> None:
    """As the stages do, at the pictures' own size."""
    scorer = PersonalScore(PerFusionRM.from_pretrained(workspace.reward))
    tables = load_tables(workspace.data, workspace.split, 16, encoder=scorer.encoder, splits=SPLITS)
    scores = {split: {"perfusion_rm": score_table(table, scorer, split)} for split, table in tables.items()}
    workspace.reward_evaluation.mkdir(parents=True)
    candidate_scores(tables, scores, "perfusion_rm").to_parquet(workspace.reward_evaluation / "scores.parquet")
    items = pd.DataFrame({
        "record_id": ["r0", "r1", "r2"], "user_id": ["u1", "u2", "u3"], "prompt": [PROMPTS[0], *PROMPTS],
        "seed": [5, 2**31 - 1, 0], "wrong_user_id": ["u2", "u3", "u1"],
    })  # fmt: skip
    arms = {"perfusion": PipelineArm(PerFusionPipeline.from_pretrained(workspace.generator), personal=True)}
    drawn = draw(arms, items, USERS, batch=2)
    table = score_pictures(drawn, items, USERS, {"perfusion_rm": scorer}, None)
    (workspace.generator_evaluation / "pictures").mkdir(parents=True)
    for row in table.itertuples():
        (workspace.generator_evaluation / str(row.file)).write_bytes(to_png(drawn[str(row.arm)].pixels[int(row.item)]))
    table.to_parquet(workspace.generator_evaluation / "pictures.parquet")


@pytest.fixture
def here(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The gate with the artifact loaded in this process, once, in place of a clean one."""
    import mlflow

    mlflow.set_tracking_uri(shop.registry.client.tracking_uri)
    mlflow.set_registry_uri(shop.registry.client.tracking_uri)

    def load(uri: str, request: pd.DataFrame, _: str, params: dict[str, object]) -> pd.DataFrame:
        return pd.DataFrame(mlflow.pyfunc.load_model(uri).predict(request, params=params or None))

    monkeypatch.setattr("tasks.models.clean_process.load_in_clean_process", load)
    return shop


def test_a_clean_process_gives_the_evaluations_numbers_again(shop: Shop) -> None:
    decision = shop.gate()
    assert decision.verdict == "pass", decision.reasons
    assert len(measured_scores(shop.workspace).numbers) == 10
    assert measured_pictures(shop.workspace, PARAMS).numbers.shape == (3, 16, 16, 3)


def test_the_store_is_the_workspaces_whatever_this_process_talks_to(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/another.db")
    assert shop.gate().verdict == "pass"


def test_what_is_asked_is_what_was_evaluated(shop: Shop) -> None:
    asked = measured_scores(shop.workspace)
    assert asked.request["user_id"].tolist() == ["u1", "u2", "u1", "u2", "u3"]  # cold, few, test: by split, by record
    scores = pd.read_parquet(shop.workspace.reward_evaluation / "scores.parquet").set_index("image_id")["score"]
    assert asked.numbers.tolist() == scores[["i6", "i7", "i8", "i9", *(f"i{n}" for n in range(6))]].tolist()


def test_the_steps_of_the_evaluation_are_asked_for(shop: Shop) -> None:
    params = PARAMS.model_copy(update={"evaluate": PARAMS.evaluate.model_copy(update={"steps": 3})})
    assert measured_pictures(shop.workspace, params).params == {"steps": 3}
    assert measured_pictures(shop.workspace, PARAMS).params == {}


@pytest.mark.parametrize("who", ["reward", "generator"])
def test_another_users_numbers_are_not_taken_for_the_evaluations(here: Shop, who: str, monkeypatch) -> None:
    """An artifact that knows its users by other features answers, and is refused."""
    name = {"reward": "measured_scores", "generator": "measured_pictures"}[who]
    plain = {"reward": measured_scores, "generator": measured_pictures}[who]

    def of_another(*arguments: object) -> object:
        measured = plain(*arguments)
        return replace(measured, request=measured.request.assign(user_id=np.roll(measured.request["user_id"], 1)))

    monkeypatch.setattr(f"tasks.evaluated.{name}", of_another)
    decision = here.gate()
    assert decision.verdict == "fail"
    assert who in decision.reasons[0]


def test_scores_of_another_evaluation_are_not_reproduced(here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    file = here.workspace.reward_evaluation / "scores.parquet"
    kept = file.read_bytes()
    table = pd.read_parquet(file)
    table.loc[table["record_id"] == "r4", "score"] += 0.01
    table.to_parquet(file)
    decision = here.gate()
    file.write_bytes(kept)
    assert decision.verdict == "fail"


def test_an_incomplete_evaluation_is_told_by_its_file(shop: Shop) -> None:
    file = shop.workspace.generator_evaluation / "pictures" / "00001-perfusion.png"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=r"00001-perfusion\.png: absent; run evaluate-generator again"):
        shop.gate()
    file.write_bytes(kept)
