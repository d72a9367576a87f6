"""Gates: a clear gain opens them; a tie, a missing number, few users and shuffled users never do."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from perfusion.config import GatesConfig
from perfusion.errors import GateError
from perfusion.governance import Decision, load_gate, promotion_gate, reward_gate
from perfusion.governance.meanings import MEANINGS, meaning

CONFIG = GatesConfig(resamples=500)
COSTS = {"seconds_per_picture": 2.0, "memory_mib": 800.0}


def groups(gain=0.1, users=60, cold_gain=None, seed=0, wrong=-0.05):
    """Groups of `users` test users and as many cold ones, whose picks PerFusionRM ranks better by `gain`."""
    rng = np.random.default_rng(seed)
    parts = []
    for split, shift in (("test", gain), ("cold", gain if cold_gain is None else cold_gain)):
        blind = rng.uniform(0.3, 0.9, users * 4)
        parts.append(pd.DataFrame({
            "record_id": [f"{split}{k}" for k in range(users * 4)],
            "user_id": np.repeat([f"{split}-user{k}" for k in range(users)], 4),
            "split": split,
            "ap_user_blind": blind,
            "ap_perfusion_rm": blind + shift + rng.normal(0, 0.05, users * 4) * (shift != 0),
            "ap_wrong_user": blind + wrong,
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def pictures(gain=1.0, users=60, seed=0, wrong=0.0, truth=True, general=0.0, noise=0.3):
    """Four pictures a user and arm; PerFusion beats the base by `gain`, a wrong user's features by `gain - wrong`."""
    rng = np.random.default_rng(seed)
    count = users * 4
    base = rng.normal(0, 1, count)
    rows = []
    for arm, shift in (("base", 0.0), ("perfusion", gain), ("wrong_user", wrong)):
        quality = 0.0 if arm == "base" else general
        table = pd.DataFrame({
            "user_id": np.repeat([f"u{k}" for k in range(users)], 4),
            "prompt": np.tile(["dress", "top", "coat", "jumpsuit"], users),
            "seed": np.arange(count),
            "arm": arm,
            "perfusion_rm": base + shift + rng.normal(0, noise, count) * (shift != 0),
            "champion_rm": base + shift,
            "aesthetic[twin]": base + quality,
            "clip_score": 30 + base + quality,
            "pickscore": 20 + base + quality,
            "slice_type": np.tile(["dress", "top", "coat", "jumpsuit"], users),
        })  # fmt: skip
        rows.append(table.assign(true_utility=base + shift) if truth else table)
    return pd.concat(rows, ignore_index=True)


class TestRewardGate:
    def test_clear_gain_passes_and_is_strict_json(self):
        decision = reward_gate(groups(), CONFIG)
        assert decision.verdict == "pass", decision.reasons
        assert Decision.from_dict(json.loads(json.dumps(decision.to_dict(), allow_nan=False))) == decision
        assert decision.statistics["relative_map_gain"] > 0.1

    def test_identical_scores_fail(self):
        assert reward_gate(groups(gain=0.0), CONFIG).verdict == "fail"

    @pytest.mark.parametrize("seed", range(5))
    def test_shuffled_users_never_pass(self, seed):
        table = groups(gain=0.0, seed=seed)
        noise = np.random.default_rng(seed).normal(0, 0.1, len(table))
        assert not reward_gate(table.assign(ap_perfusion_rm=table["ap_user_blind"] + noise), CONFIG).passed

    @pytest.mark.parametrize("column", ["ap_perfusion_rm", "ap_user_blind", "ap_wrong_user"])
    def test_one_nan_is_inconclusive(self, column):
        table = groups()
        table.loc[3, column] = math.nan
        assert reward_gate(table, CONFIG).verdict == "inconclusive"

    def test_few_users_are_inconclusive(self):
        assert reward_gate(groups(users=10), CONFIG).verdict == "inconclusive"

    def test_no_cold_start_users_is_inconclusive(self):
        assert reward_gate(groups().query("split == 'test'"), CONFIG).verdict == "inconclusive"

    def test_losing_cold_start_users_fails(self):
        decision = reward_gate(groups(cold_gain=-0.1), CONFIG)
        assert decision.verdict == "fail"
        assert "cold-start" in decision.reasons[0]

    def test_strangers_of_one_kind_are_judged_apart_where_there_are_enough(self):
        table = groups(users=120)
        cold = table["split"] == "cold"
        few = cold & table["user_id"].isin([f"cold-user{k}" for k in range(60)])
        table.loc[few, "split"] = "few"
        table.loc[few, "ap_perfusion_rm"] -= 0.15
        decision = reward_gate(table, CONFIG)
        named = {check.name: check.verdict for check in decision.checks}
        assert named["MAP gain of cold-start users with too few records"] == "fail"
        assert named["MAP gain of cold-start users"] == "pass", "the others make up for them"
        assert decision.inputs["cold_users"] == 120

    def test_gain_that_any_user_gives_fails(self):
        assert reward_gate(groups(gain=0.1, wrong=0.2), CONFIG).verdict == "fail"

    def test_significant_but_small_gain_fails(self):
        table = groups(gain=0.0)
        small = table.assign(ap_perfusion_rm=table["ap_user_blind"] + 0.002)
        assert reward_gate(small, CONFIG).reasons[0].startswith("fail: relative MAP gain")

    def test_missing_column_names_it(self):
        with pytest.raises(GateError, match="ap_perfusion_rm"):
            reward_gate(groups().drop(columns="ap_perfusion_rm"), CONFIG)


class TestFirstPromotion:
    def test_clear_gain_passes(self):
        decision = promotion_gate(pictures(), None, CONFIG)
        assert decision.verdict == "pass", decision.reasons
        assert decision.statistics["first_model"] is True

    @pytest.mark.parametrize("truth", [True, False])
    def test_no_gain_over_the_base_fails(self, truth):
        assert promotion_gate(pictures(gain=0.0, truth=truth), None, CONFIG).verdict == "fail"

    def test_gain_that_every_user_gets_does_not_pass(self):
        table = pictures(gain=1.0, wrong=1.0)
        right, wrong = table["arm"] == "perfusion", table["arm"] == "wrong_user"
        table.loc[wrong, "perfusion_rm"] = table.loc[right, "perfusion_rm"].to_numpy()
        decision = promotion_gate(table, None, CONFIG)
        assert decision.verdict == "fail"
        assert "wrong user" in decision.reasons[0]

    def test_flattering_the_reward_model_alone_does_not_pass(self):
        table = pictures()
        table["true_utility"] = 0.0
        assert promotion_gate(table, None, CONFIG).verdict == "fail"

    def test_losing_general_quality_fails(self):
        decision = promotion_gate(pictures(general=-0.8), None, CONFIG)
        assert decision.verdict == "fail"
        assert "aesthetic[twin]" in " ".join(decision.reasons[:3])

    def test_missing_general_scorer_is_inconclusive(self):
        assert promotion_gate(pictures().drop(columns="clip_score"), None, CONFIG).verdict == "inconclusive"

    def test_no_wrong_user_control_is_inconclusive(self):
        assert promotion_gate(pictures().query("arm != 'wrong_user'"), None, CONFIG).verdict == "inconclusive"

    def test_nan_and_few_users_are_inconclusive(self):
        table = pictures()
        table.loc[0, "perfusion_rm"] = math.nan
        assert promotion_gate(table, None, CONFIG).verdict == "inconclusive"
        assert promotion_gate(pictures(users=10), None, CONFIG).verdict == "inconclusive"

    def test_budgets(self):
        config = GatesConfig(resamples=500, max_seconds_per_picture=2.0)
        assert promotion_gate(pictures(), None, config).verdict == "inconclusive"
        assert promotion_gate(pictures(), None, config, costs={"seconds_per_picture": 1.0}).verdict == "pass"
        assert promotion_gate(pictures(), None, config, costs={"seconds_per_picture": 3.0}).verdict == "fail"


class TestPromotionAgainstAChampion:
    def gate(self, challenger, champion, reward=0.0, cold_reward=0.0, **options):
        mine, theirs = groups(), groups()
        mine["ap_perfusion_rm"] += np.where(mine["split"] == "test", reward, cold_reward)
        cold = {"challenger_cold": challenger, "champion_cold": champion}
        costs = {"costs": COSTS, "champion_costs": COSTS}
        given = {"challenger_reward": mine, "champion_reward": theirs, **cold, **costs, **options}
        return promotion_gate(challenger, champion, CONFIG, **given)

    def test_better_passes(self):
        decision = self.gate(pictures(gain=2.0), pictures(gain=1.0))
        assert decision.verdict == "pass", decision.reasons
        assert decision.statistics["slice_type=dress"]["clusters"] == 60
        assert decision.inputs["items"] == 240

    def test_a_tie_fails(self):
        assert self.gate(pictures(), pictures()).verdict == "fail"

    def test_worse_fails(self):
        assert self.gate(pictures(gain=1.0), pictures(gain=2.0)).verdict == "fail"

    def test_only_its_own_reward_model_prefers_it(self):
        challenger = pictures(gain=2.0)
        challenger["champion_rm"] = pictures(gain=1.0)["champion_rm"]
        assert self.gate(challenger, pictures(gain=1.0)).verdict == "fail"

    def test_without_the_champions_view_it_is_inconclusive(self):
        decision = self.gate(pictures(gain=2.0).drop(columns="champion_rm"), pictures(gain=1.0))
        assert decision.verdict == "inconclusive"

    def test_without_reward_tables_it_is_inconclusive(self):
        assert promotion_gate(pictures(gain=2.0), pictures(gain=1.0), CONFIG).verdict == "inconclusive"

    def test_a_worse_reward_model_fails(self):
        assert self.gate(pictures(gain=2.0), pictures(gain=1.0), reward=-0.1).verdict == "fail"

    def test_a_reward_model_worse_for_strangers_alone_fails(self):
        decision = self.gate(pictures(gain=2.0), pictures(gain=1.0), cold_reward=-0.1)
        assert decision.verdict == "fail"
        assert [check.name for check in decision.checks if check.verdict == "fail"] == [
            "reward model's MAP of cold-start users minus the champion's"
        ]

    def test_strangers_pictures_may_not_get_worse_and_must_be_there(self):
        better, worse = pictures(gain=2.0), pictures(gain=-1.0)
        decision = self.gate(better, pictures(gain=1.0), challenger_cold=worse)
        assert decision.verdict == "fail"
        assert all("on cold-start users" in c.name for c in decision.checks if c.verdict == "fail")
        missing = self.gate(better, pictures(gain=1.0), challenger_cold=None)
        assert missing.verdict == "inconclusive"
        assert "cold-start users' pictures" in missing.checks[0].name
        few = pictures(gain=2.0, users=10)
        assert self.gate(better, pictures(gain=1.0), challenger_cold=few, champion_cold=few).verdict == "inconclusive"

    @pytest.mark.parametrize("name", ["seconds_per_picture", "memory_mib"])
    def test_costs_over_the_champions(self, name):
        def gate(mine, theirs=COSTS):
            return self.gate(pictures(gain=2.0), pictures(gain=1.0), costs=mine, champion_costs=theirs)

        assert gate({**COSTS, name: 1.4 * COSTS[name]}).verdict == "pass"
        slow = gate({**COSTS, name: 1.6 * COSTS[name]})
        assert (slow.verdict, slow.checks[0].value) == ("fail", pytest.approx(1.6))
        assert gate(COSTS, {key: value for key, value in COSTS.items() if key != name}).verdict == "inconclusive"
        assert gate({key: value for key, value in COSTS.items() if key != name}).verdict == "inconclusive"
        assert gate(COSTS, {**COSTS, name: 0.0}).verdict == "inconclusive"

    def test_every_judge_watches_every_slice(self):
        challenger = pictures(gain=2.0)
        lost = (challenger["slice_type"] == "coat") & (challenger["arm"] == "perfusion")
        challenger.loc[lost, "champion_rm"] -= 3
        failed = [c.name for c in self.gate(challenger, pictures(gain=1.0)).checks if c.verdict == "fail"]
        assert failed == ["champion_rm on slice_type=coat, in standard deviations,"]

    def test_a_small_slice_is_named_and_not_judged(self):
        challenger, champion = pictures(gain=2.0, users=70), pictures(gain=1.0, users=70)
        for table in (challenger, champion):
            table["slice_rare"] = np.where(table["user_id"].isin(["u1", "u2"]), "yes", "no")
        decision = self.gate(challenger, champion)
        assert decision.passed
        assert decision.statistics["slices_not_judged"] == ["slice_rare=yes"]


class TestLoadGate:
    scores = np.linspace(-1, 20, 12).reshape(3, 4)

    def test_equal_passes(self):
        assert load_gate({"reward": self.scores}, {"reward": self.scores.copy()}, CONFIG).verdict == "pass"

    @pytest.mark.parametrize(("reloaded", "error", "verdict"), [
        ({"reward": scores + 0.01}, None, "fail"),
        ({"reward": scores[:2]}, None, "fail"),
        ({}, None, "fail"),
        (None, "ModuleNotFoundError: no module named 'x'", "fail"),
        (None, None, "inconclusive"),
        ({"reward": scores * math.nan}, None, "inconclusive"),
    ])  # fmt: skip
    def test_everything_else_does_not(self, reloaded, error, verdict):
        assert load_gate({"reward": self.scores}, reloaded, CONFIG, error).verdict == verdict

    def test_nothing_evaluated_is_inconclusive(self):
        assert load_gate({}, {"reward": self.scores}, CONFIG).verdict == "inconclusive"


class TestWords:
    """Every check that a gate makes says in plain words what it asks and what it means."""

    def test_each_check_has_a_meaning_of_its_own(self):
        promotion = TestPromotionAgainstAChampion()
        budgets = CONFIG.model_copy(update={"max_memory_mib": 900.0, "max_seconds_per_picture": 3.0})
        decisions = [
            reward_gate(groups(), CONFIG),
            promotion.gate(pictures(gain=2.0), pictures(gain=1.0)),
            promotion.gate(pictures(gain=2.0), pictures(gain=1.0), challenger_cold=None),
            promotion_gate(pictures(), None, budgets, costs=COSTS),
            load_gate({"reward": [1.0]}, {"reward": [1.0]}, CONFIG),
            load_gate({"reward": [1.0]}, None, CONFIG, "it is gone"),
        ]
        fallback = meaning("no gate", "")
        for decision in decisions:
            for check in decision.checks:
                found = meaning(decision.gate, check.name)
                assert found != fallback, check.name
                assert found.asks.endswith("?")
                assert found.otherwise.endswith(".")

    def test_a_sentence_of_an_old_record_finds_the_same_meaning(self):
        decision = TestPromotionAgainstAChampion().gate(pictures(), pictures())
        for check in decision.checks:
            assert meaning("promotion", check.reason) == meaning("promotion", check.name), check.name
        assert set(MEANINGS) == {"data", "reward", "load", "promotion"}
