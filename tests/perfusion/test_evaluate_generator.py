"""The generator's evaluation with arms that draw the planted garments: only who serves the user wins."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.untrained import make_stages
from perfusion.config import EvaluateConfig, GatesConfig
from perfusion.data import decode_image
from perfusion.errors import DataError
from perfusion.evaluation.arms import PipelineArm, load_arms
from perfusion.evaluation.champion import rescore
from perfusion.evaluation.drawn import costs, draw, score_pictures
from perfusion.evaluation.generator import evaluate_generator
from perfusion.evaluation.images import to_png
from perfusion.evaluation.items import ITEM, choose_items, with_slices
from perfusion.evaluation.picture_metrics import diversity, generator_metrics, rank_agreement
from perfusion.evaluation.ratings import training_ratings
from perfusion.evaluation.sheets import merchants_sheet, users_sheet
from perfusion.governance import promotion_gate
from perfusion.scorers.true_utility import TrueUtility
from perfusion.world import Truth, render
from perfusion.world.garments import CODES
from perfusion.world.picking import stated_codes

GATES = GatesConfig(resamples=300, min_users=15)
OPTIONS = GATES.interval_options(seed=0)
USERS = 24


class RenderedArm:
    """Draws the best of `tries` garments that follow the prompt, best by what `taste` names ("" = the first)."""

    def __init__(self, truth, taste, tries=12):
        self.truth, self.taste, self.tries = truth, taste, tries
        self.calls = []

    def __call__(self, prompts, users, seeds):
        self.calls.append(len(prompts))
        chosen = []
        for prompt, user, seed in zip(prompts, users["user_id"], seeds, strict=True):
            rng = np.random.default_rng(seed)
            codes = np.stack([rng.integers(size, size=self.tries) for size in CODES], axis=1)
            stated = stated_codes(prompt)
            codes = np.where(stated >= 0, stated, codes)
            worth = self.truth.utility([user] * self.tries, [prompt] * self.tries, codes)
            chosen.append(codes[np.argmax(getattr(worth, self.taste)) if self.taste else 0])
        return torch.from_numpy(render(np.array(chosen))).permute(0, 3, 1, 2).contiguous()


class FakeScorer:
    """The picture's true worth to the user plus noise (or, blind, the mean brightness)."""

    encoder = None

    def __init__(self, name):
        self.name = name

    def score(self, prompts, pixels, users=None):
        assert pixels.dtype == torch.uint8
        return pixels.float().mean((2, 3, 4)) / 255


@pytest.fixture(scope="module")
def world():
    truth = Truth(users=USERS, seed=0, personal=True)
    users = truth.merchants.table()
    groups = truth.records.groups.assign(split="test")
    return truth, users, groups


@pytest.fixture(scope="module")
def evaluated(world):
    truth, users, groups = world
    items = with_slices(choose_items(groups, pairs=48, pictures=1, seed=0), users)
    arms = {
        "base": RenderedArm(truth, ""),
        "dpo": RenderedArm(truth, "everybody"),
        "perfusion": RenderedArm(truth, "total"),
    }
    drawn = draw(arms, items, users, batch=20)
    scorers = {name: FakeScorer(name) for name in ("aesthetic[twin]", "clip_score[twin]", "pickscore[twin]")}
    rows = score_pictures(drawn, items, users, scorers, TrueUtility(truth))
    noise = np.random.default_rng(0).normal(0, 0.1, len(rows))
    rows["perfusion_rm"] = 3 * rows["true_utility"] + noise
    spread = {name: diversity(torch.nn.functional.normalize(torch.randn(4, 3), dim=1)) for name in drawn}
    return arms, items, drawn, rows, generator_metrics(rows, OPTIONS, costs(drawn), spread)


def test_items_are_frozen_and_spread_over_users(world):
    _, users, groups = world
    items = choose_items(groups, pairs=2 * USERS, pictures=1, seed=0)
    assert items.equals(choose_items(groups.sample(frac=1, random_state=1), pairs=2 * USERS, pictures=1, seed=0))
    assert not items.equals(choose_items(groups, pairs=2 * USERS, pictures=1, seed=1))
    assert set(items["user_id"].value_counts()) == {2}
    assert not items.duplicated(list(ITEM)).any()
    assert (items["user_id"] != items["wrong_user_id"]).all()
    assert items.drop_duplicates("user_id")["wrong_user_id"].is_unique
    twice = choose_items(groups, pairs=10, pictures=2, seed=0)
    assert len(twice) == 20
    assert twice["seed"].is_unique
    assert len(choose_items(groups, pairs=10**6, pictures=1, seed=0)) <= len(groups)
    with pytest.raises(DataError, match="needs two"):
        choose_items(groups[groups["user_id"] == users["user_id"][0]], pairs=5, pictures=1, seed=0)


def test_more_records_leave_the_choice_within_a_user_and_its_noise_alone(world):
    _, _, groups = world
    some = groups[groups["user_id"] != "m00003"]
    before = choose_items(some, pairs=USERS - 1, pictures=1, seed=0).set_index("user_id")
    after = choose_items(groups, pairs=USERS, pictures=1, seed=0).set_index("user_id")
    pd.testing.assert_series_equal(before["seed"], after.loc[before.index, "seed"])


def test_slices_name_what_is_known_about_users(world):
    _, users, groups = world
    items = with_slices(choose_items(groups, 10, 1, 0), users)
    assert "slice_style" in items
    assert "slice_followers_log10" not in items
    assert items.filter(like="slice_").notna().all(axis=None)


def test_every_arm_is_asked_for_the_same_items(evaluated):
    arms, items, drawn, rows, _ = evaluated
    assert arms["base"].calls == [20, 20, 8]
    assert arms["perfusion"].calls == [20, 20, 8] * 2  # once for the right users, once for the wrong ones
    assert set(drawn) == {"base", "dpo", "perfusion", "wrong_user"}
    assert len(rows) == 4 * len(items)
    assert rows["file"].is_unique
    assert not torch.equal(drawn["perfusion"].pixels, drawn["wrong_user"].pixels)


def test_batches_do_not_change_pictures(world, evaluated):
    truth, users, _ = world
    _, items, drawn, _, _ = evaluated
    again = draw({"perfusion": RenderedArm(truth, "total")}, items, users, batch=7)
    assert torch.equal(again["perfusion"].pixels, drawn["perfusion"].pixels)


def test_serving_the_user_wins_and_the_gate_opens(evaluated):
    *_, rows, metrics = evaluated
    assert metrics["judge"] == "true_utility"
    for pair in ("perfusion - base", "perfusion - dpo", "perfusion - wrong_user"):
        assert metrics["paired"][pair]["true_utility_ci"][0] > 0, pair
    assert metrics["user_swap_win_rate"] > 0.8
    assert metrics["swap_share_of_gain_ci"][0] > 0.3
    assert metrics["rank_agreement"]["kendall"] > 0.8
    assert metrics["arms"]["perfusion"]["cleanness_db"] > 50
    assert metrics["arms"]["perfusion"]["prompt_fit"] == 0
    decision = promotion_gate(rows, None, GATES)
    verdicts = [reason for reason in decision.reasons if "perfusion_rm" in reason or "true_utility" in reason]
    assert len(verdicts) == 4
    assert all(reason.startswith("pass") for reason in verdicts), verdicts


def test_taste_of_everybody_does_not_pass_as_personal(world):
    truth, users, groups = world
    items = choose_items(groups, pairs=48, pictures=1, seed=0)
    arms = {"base": RenderedArm(truth, ""), "perfusion": RenderedArm(truth, "everybody")}
    scorers = {name: FakeScorer(name) for name in ("aesthetic[twin]", "clip_score[twin]", "pickscore[twin]")}
    rows = score_pictures(draw(arms, items, users, 64), items, users, scorers, TrueUtility(truth))
    rows["perfusion_rm"] = rows["true_utility"]
    metrics = generator_metrics(rows, OPTIONS, {}, {})
    assert metrics["paired"]["perfusion - base"]["true_utility"] > 0
    assert metrics["user_swap_win_rate"] == 0
    assert metrics["swap_share_of_gain"] == 0
    decision = promotion_gate(rows, None, GATES)
    assert decision.verdict == "fail"
    assert any("wrong user" in reason and reason.startswith("fail") for reason in decision.reasons)


def test_metrics_are_strict_json_with_intervals(evaluated):
    metrics = json.loads(json.dumps(evaluated[-1], allow_nan=False))
    for arm in ("base", "dpo", "perfusion", "wrong_user"):
        low, high = metrics["arms"][arm]["true_utility_ci"]
        assert low < metrics["arms"][arm]["true_utility"] < high
        assert "diversity" in metrics["arms"][arm]
    assert metrics["users"] == USERS
    assert metrics["costs"]["seconds_per_picture"] > 0
    assert "seed" not in metrics["arms"]["base"]


def test_without_a_truth_our_own_reward_model_judges(world, evaluated):
    rows = evaluated[3].drop(columns=["true_utility", "prompt_fit", "everybody", "personal", "cleanness_db"])
    metrics = generator_metrics(rows, OPTIONS, {}, {})
    assert metrics["judge"] == "perfusion_rm"
    assert metrics["rank_agreement"] is None
    assert "true_utility" not in metrics["arms"]["base"]


def test_rank_agreement_is_one_minus_one_and_honest_about_ties():
    rows = pd.DataFrame({
        "item": np.repeat(np.arange(40), 3), "user_id": np.repeat([f"u{k}" for k in range(40)], 3),
        "true_utility": np.tile([1.0, 2.0, 3.0], 40),
    })  # fmt: skip
    assert rank_agreement(rows.assign(perfusion_rm=rows["true_utility"] * 5), OPTIONS)["kendall"] == pytest.approx(1)
    assert rank_agreement(rows.assign(perfusion_rm=-rows["true_utility"]), OPTIONS)["spearman"] == pytest.approx(-1)
    flat = rank_agreement(rows.assign(perfusion_rm=1.0), OPTIONS)
    assert flat["kendall"] is None
    assert flat["items_alike"] == 40


def test_diversity_by_hand():
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert diversity(same) == pytest.approx(0)
    assert diversity(torch.eye(3)) == pytest.approx(1)
    assert diversity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2)


def test_contact_sheets_show_the_pictures(world, evaluated):
    users = world[1]
    arms, items, drawn, rows, _ = evaluated
    sheet = users_sheet(rows, {name: arm.pixels for name, arm in drawn.items()}, count=3)
    picture = drawn["base"].pixels[0].permute(1, 2, 0).numpy()
    cell = Image.fromarray(picture).resize((192, 192), Image.Resampling.NEAREST)
    assert cell.tobytes() in {sheet.crop((300, y, 492, y + 192)).tobytes() for y in range(40, 100)}
    second = merchants_sheet(arms, items, users, count=4, seed=1)
    assert second.width > sheet.width
    assert to_png(second)[:4] == b"\x89PNG"


def test_a_pipeline_arm_gives_each_picture_its_own_noise_and_its_own_user():
    class Pipe:
        def __init__(self):
            self.features = self

        def transform(self, users):
            return torch.tensor([[len(user)] for user in users["user_id"]])

        def __call__(self, prompts, user, num_images_per_prompt, num_inference_steps, generator, output_type):
            assert (num_images_per_prompt, output_type, num_inference_steps) == (1, "pt", 7)
            noise = torch.stack([torch.rand(3, 2, 2, generator=one) for one in generator])
            shift = 0 if user is None else user.view(-1, 1, 1, 1) / 10
            return type("Output", (), {"images": (noise + shift).clamp(0, 1)})

    users = pd.DataFrame({"user_id": ["a", "bbbb"]})
    personal, blind = PipelineArm(Pipe(), True, 7), PipelineArm(Pipe(), False, 7)
    both = blind(["x", "y"], users, [5, 6])
    assert both.dtype == torch.uint8
    assert torch.equal(both[1:], blind(["y"], users[1:], [6]))
    lifted = personal(["x", "y"], users, [5, 5])
    assert lifted[1].float().mean() > lifted[0].float().mean() > blind(["x"], users[:1], [5]).float().mean()


def test_ratings_are_the_share_of_picks(world, tmp_path):
    from perfusion.data import encode_png, write_dataset

    truth, users, _ = world
    groups = truth.records.groups.head(4)
    images = [image for ids in groups["image_ids"] for image in ids]
    black = encode_png(np.zeros((8, 8, 3), np.uint8))
    write_dataset(tmp_path / "data", users, groups, [(image, black) for image in images])
    pixels, ratings = training_ratings(tmp_path / "data", groups.assign(split="train"), 8, seed=0)
    assert pixels.shape == (len(images), 3, 8, 8)
    picked = sum(sum(picks) for picks in groups["picked"])
    assert ratings.sum().item() == pytest.approx(len(images) + 9 * picked)


def test_the_champion_is_redrawn_on_the_challengers_items_and_judged_by_both(world, evaluated, tmp_path):
    truth, users, _ = world
    _, _, drawn, rows, _ = evaluated
    rows = rows.drop(columns="perfusion_rm")
    for row in rows.itertuples():
        file = tmp_path / row.file
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(to_png(drawn[row.arm].pixels[row.item]))
    scorers = {"clip_score[twin]": FakeScorer("clip_score[twin]"), "perfusion_rm": FakeScorer("perfusion_rm")}
    champion = RenderedArm(truth, "everybody")
    mine, theirs = rescore(
        rows, tmp_path, champion, users, scorers, FakeScorer("champion_rm"), TrueUtility(truth), batch=20
    )
    own = mine[mine["arm"] == "perfusion"].sort_values("item")
    assert (theirs["arm"] == "perfusion").all()
    assert own[list(ITEM)].reset_index(drop=True).equals(theirs[list(ITEM)])
    brightness = drawn["perfusion"].pixels.float().mean((1, 2, 3)) / 255
    np.testing.assert_allclose(own["champion_rm"], brightness, rtol=1e-6)
    np.testing.assert_allclose(theirs["champion_rm"], theirs["perfusion_rm"])
    assert own["true_utility"].mean() > theirs["true_utility"].mean()
    (tmp_path / own["file"].iloc[0]).unlink()
    with pytest.raises(DataError, match="evaluate-generator again"):
        rescore(rows, tmp_path, champion, users, scorers, FakeScorer("champion_rm"), None, batch=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_stages(tmp_path_factory.mktemp("stages"))


def test_the_stage_runs_from_folders_and_an_untrained_generator_is_refused(folders, tmp_path):
    root, out = folders, tmp_path / "out"
    config = EvaluateConfig(pairs=16, batch_pictures=8, sheet_users=3)
    metrics = evaluate_generator(
        root / "data", root / "split", root / "clip", root / "clip", root / "reward", root / "diffusion", root / "sft",
        root / "dpo", root / "generator", out, image_size=48, twin=True, config=config, gates=GATES, seed=0,
    )  # fmt: skip
    rows = pd.read_parquet(out / "pictures.parquet")
    assert set(rows["arm"]) == {"base", "sft", "dpo", "perfusion", "wrong_user"}
    assert {"aesthetic[twin]", "clip_score[twin]", "pickscore[twin]", "perfusion_rm", "true_utility"} <= set(rows)
    assert {decode_image((out / file).read_bytes(), file).size for file in rows["file"]} == {(48, 48)}
    for sheet in ("contact_sheet.png", "merchants_sheet.png"):
        assert decode_image((out / sheet).read_bytes(), sheet).width > 500
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert not promotion_gate(rows, None, GATES).passed


def test_arms_of_the_stages_differ_and_share_their_noise(folders):
    users = pd.read_parquet(folders / "split" / "users.parquet").head(2)
    arms = load_arms(*(folders / name for name in ("diffusion", "sft", "dpo", "generator")))
    drawn = {name: arm(["dress, v-neck", "coat"], users, [5, 6]) for name, arm in arms.items()}
    again = load_arms(*(folders / name for name in ("diffusion", "sft", "dpo", "generator")))
    for name, pixels in drawn.items():
        assert pixels.shape == (2, 3, 48, 48)
        alone = again[name](["coat"], users.iloc[1:], [6])
        assert (alone.int() - pixels[1:].int()).abs().max() <= 1, name
    assert not torch.equal(drawn["base"], drawn["dpo"])
    assert not torch.equal(drawn["perfusion"][:1], arms["perfusion"](["dress, v-neck"], users.iloc[1:], [5]))
    assert torch.equal(drawn["base"][:1], arms["base"](["dress, v-neck"], users.iloc[1:], [5]))
