"""The served models: what a request may hold, who is known, and that an artifact answers in a clean process."""

from __future__ import annotations

import io

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from tiny_models import PROMPTS, USERS, make_store, picture

from perfusion.data import FeatureEncoder
from perfusion.reward import PerFusionRM
from tasks.models.clean_process import load_in_clean_process
from tasks.models.requests import RequestError
from tasks.models.served import load_served
from tasks.models.users import KnownUsers
from tasks.registry import JUDGED_BY, Registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = make_store(tmp_path_factory.mktemp("served"))
    mlflow.set_tracking_uri(registry.client.tracking_uri)
    mlflow.set_registry_uri(registry.client.tracking_uri)  # flows tested before have set it to their own store
    return registry


@pytest.fixture(scope="module")
def reward(registry: Registry) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model("models:/shop-reward@challenger")


@pytest.fixture(scope="module")
def generator(registry: Registry) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model("models:/shop-generator@challenger")


def ask(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({name: [value] for name, value in columns.items()})


def score(model: mlflow.pyfunc.PyFuncModel, **columns: object) -> tuple[float, bool]:
    answer = model.predict(ask(prompt=PROMPTS[0], image=picture(), **columns))
    return float(answer["score"].iloc[0]), bool(answer["user_blind"].iloc[0])


def test_a_known_id_is_enough_and_equals_giving_its_features(reward: mlflow.pyfunc.PyFuncModel) -> None:
    by_id, blind = score(reward, user_id="u1")
    assert not blind
    assert by_id == score(reward, user_id="u1", style="plain", age=20.0)[0]
    assert by_id != score(reward, user_id="u2")[0]


def test_an_unknown_user_is_scored_user_blind_and_says_so(reward: mlflow.pyfunc.PyFuncModel) -> None:
    stranger, blind = score(reward, user_id="nobody")
    assert blind
    assert stranger == score(reward)[0]
    with_style, blind = score(reward, user_id="nobody", style="bold")
    assert not blind
    assert with_style != stranger


def test_a_list_of_pictures_is_scored_as_they_are_one_by_one(reward: mlflow.pyfunc.PyFuncModel) -> None:
    pictures = [picture(value) for value in (10, 120, 250)]
    together = reward.predict(ask(user_id="u2", prompt=PROMPTS[1], images=pictures))
    alone = reward.predict(pd.DataFrame({"user_id": "u2", "prompt": PROMPTS[1], "image": pictures}))
    assert together[["request", "index"]].to_numpy().tolist() == [[0, 0], [0, 1], [0, 2]]
    assert alone[["request", "index"]].to_numpy().tolist() == [[0, 0], [1, 0], [2, 0]]
    np.testing.assert_allclose(together["score"], alone["score"], rtol=1e-5)  # batches of other sizes round otherwise


def test_a_request_has_its_prompt_encoded_once_for_all_its_pictures(
    reward: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def text_embeds(model: PerFusionRM, input_ids: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        encoded.append(len(input_ids))
        return plain(model, input_ids, *rest, **named)

    plain = PerFusionRM.text_embeds
    monkeypatch.setattr(PerFusionRM, "text_embeds", text_embeds)
    pictures = [picture(value) for value in (10, 120, 250)]
    asked = pd.concat([ask(user_id="u1", prompt=prompt, images=pictures) for prompt in PROMPTS], ignore_index=True)
    assert len(reward.predict(asked)) == 6
    assert encoded == [2]


def test_what_a_model_does_not_know_is_refused_by_name(registry: Registry) -> None:
    scorer, drawer = load_served(registry, "shop-reward", 1), load_served(registry, "shop-generator", 1)
    with pytest.raises(RequestError, match=r"field 'stile' is unknown .* known are user_id, prompt, .*style"):
        scorer.ask(ask(prompt=PROMPTS[0], image=picture(), stile="bold"))
    with pytest.raises(RequestError, match=r"parameter 'steps' is unknown to this model; known are none"):
        scorer.ask(ask(prompt=PROMPTS[0], image=picture()), {"steps": 3})
    with pytest.raises(RequestError, match=r"parameter 'step' is unknown to this model; known are steps, guidance"):
        drawer.ask(ask(prompt=PROMPTS[0], n=1), {"step": 3})
    assert len(drawer.ask(ask(prompt=PROMPTS[0], n=1), {"steps": 1})) == 1


def test_rows_do_not_influence_one_another(reward: mlflow.pyfunc.PyFuncModel) -> None:
    frame = pd.concat([ask(user_id=u, prompt=p, image=picture(30)) for u in ("u1", "x", "u3") for p in PROMPTS])
    together = reward.predict(frame.reset_index(drop=True))
    alone = [float(reward.predict(frame.iloc[[row]])["score"].iloc[0]) for row in range(len(frame))]
    assert together["user_blind"].tolist() == [False, False, True, True, False, False]
    np.testing.assert_allclose(together["score"], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": "u1", "prompt": PROMPTS[0]}, "row 0: give field 'image'"),
        ({"prompt": PROMPTS[0], "image": picture(), "images": [picture()]}, "row 0: give field 'image'"),
        ({"prompt": PROMPTS[0], "images": ["no base64!"]}, "'images', row 0"),
        ({"user_id": "u1", "prompt": "  ", "image": picture()}, "'prompt', row 0"),
        ({"user_id": "u1", "prompt": PROMPTS[0], "image": b"\x89PNG no"}, "row 0.*not a picture"),
        ({"user_id": "u1", "prompt": "x" * 3000, "image": picture()}, "3000 characters, the limit is 2000"),
        ({"user_id": 7, "prompt": PROMPTS[0], "image": picture()}, "user_id"),
    ],
)
def test_a_malformed_request_is_refused_by_field(
    reward: mlflow.pyfunc.PyFuncModel, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(MlflowException, match=f"(?s){message}") as caught:
        reward.predict(ask(**columns))
    assert caught.value.get_http_status_code() == 400


def test_the_generator_draws_png_pictures_that_depend_on_user_seed_and_index_alone(
    generator: mlflow.pyfunc.PyFuncModel,
) -> None:
    answer = generator.predict(pd.concat([ask(user_id=u, prompt=PROMPTS[0], n=2, seed=1) for u in ("u1", "u2", "x")]))
    assert answer[["request", "index"]].to_numpy().tolist() == [[r, i] for r in range(3) for i in range(2)]
    assert answer["user_blind"].tolist() == [False] * 4 + [True] * 2
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in answer["image"]]
    assert all(values.shape == (16, 16, 3) for values in pixels)
    assert len({values.tobytes() for values in pixels}) == 6
    again = generator.predict(ask(user_id="u2", prompt=PROMPTS[0], n=3, seed=1))
    assert again["image"].tolist()[:2] == answer["image"].tolist()[2:4]


def test_sampling_parameters_are_used_and_checked(generator: mlflow.pyfunc.PyFuncModel) -> None:
    plain = generator.predict(ask(user_id="u1", prompt=PROMPTS[0], n=1))
    other = generator.predict(ask(user_id="u1", prompt=PROMPTS[0], n=1), params={"user_scale": 0.0})
    assert plain["image"].tolist() != other["image"].tolist()
    with pytest.raises(MlflowException, match="'steps': 0 is outside 1"):
        generator.predict(ask(user_id="u1", prompt=PROMPTS[0]), params={"steps": 0})
    with pytest.raises(MlflowException, match="'n': 1000 is outside 1"):
        generator.predict(ask(user_id="u1", prompt=PROMPTS[0], n=1000))


def test_a_clean_process_gives_the_same_numbers_from_the_artifact_alone(
    registry: Registry, reward: mlflow.pyfunc.PyFuncModel
) -> None:
    probe = pd.concat([ask(user_id=u, prompt=PROMPTS[1], image=picture(v)) for u, v in (("u1", 10), ("x", 200))])
    found = load_in_clean_process("models:/shop-reward/1", probe, registry.client.tracking_uri)
    pd.testing.assert_frame_equal(found, reward.predict(probe), rtol=1e-6)


def test_the_artifact_stays_as_registered_although_it_was_loaded(registry: Registry, reward: object) -> None:
    files = registry.files("shop-reward", 1)
    assert "serve_reward.py" in files
    assert any(name.endswith("model.safetensors") for name in files)
    assert not any(name.endswith((".pkl", ".pickle", ".bin", ".pt")) for name in files)
    version = MlflowClient(registry.client.tracking_uri).get_model_version("shop-generator", "1")
    assert version.tags[JUDGED_BY] == "1"


def test_known_users_take_given_features_over_stored_ones() -> None:
    known = KnownUsers(USERS, FeatureEncoder.fit(USERS))
    frame = pd.DataFrame({"user_id": ["u1", "u1", None, "nobody"], "style": [None, "bold", "bold", None]})
    codes, blind = known.codes(frame)
    expected, _ = known.codes(pd.DataFrame({"user_id": ["u1"]}))
    age, style, user = (known.encoder.names.index(name) for name in ("age", "style", "user_id"))
    assert torch.equal(codes[0], expected[0])
    assert codes[:, style].tolist() == [2, 1, 1, 0]
    assert codes[:, user].tolist() == [1, 1, 0, 0]
    assert codes[1, age] == codes[0, age] > 0
    assert blind == [False, False, False, True]
