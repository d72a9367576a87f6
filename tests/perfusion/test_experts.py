"""Expert ratings (Table 6): ratios, agreement, and what is set aside."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest

from perfusion.errors import DataError
from perfusion.evaluation.experts import (
    ASPECTS,
    OVERALL,
    PAPER_TABLE_6,
    RULES,
    evaluate_experts,
    mean_ratio,
    write_template,
)

COLUMNS = ["rater", "item", "arm", "aspect", "score"]


def panel(seed: int, items: int = 150, raters: int = 4) -> pd.DataFrame:
    """Ratings of a planted panel: an item has a quality of its own, and raters see it with some noise.

    P(score 2), P(1), P(0) are chosen so that an arm's expected score is the paper's mean of that aspect.
    """
    random = np.random.default_rng(seed)
    rows = []
    for aspect, (ai, human, _) in PAPER_TABLE_6.items():
        for arm, mean in (("ai", ai), ("human", human)):
            for item in range(items):
                true = random.binomial(2, mean / 2)
                for rater in range(raters):
                    score = true if random.random() < 0.8 else random.binomial(2, mean / 2)
                    rows.append((f"r{rater}", f"{arm}-{item}", arm, aspect, score))
    return pd.DataFrame(rows, columns=COLUMNS)


def saved(frame: pd.DataFrame, path):
    frame.to_csv(path, index=False)
    return path


def test_the_papers_ratios_follow_from_its_means():
    """And Overall is a rating of its own: the mean of the six aspects would give 91.9 %."""
    for ai, human, printed in PAPER_TABLE_6.values():
        assert mean_ratio(np.array([ai / 2, human / 2, 0.5, 0.5])) == pytest.approx(printed, abs=5e-5)
    six = np.array([PAPER_TABLE_6[aspect][:2] for aspect in ASPECTS]).mean(axis=0)
    assert six == pytest.approx([1.6524, 1.7983], abs=5e-5)
    assert six[0] / six[1] == pytest.approx(0.9189, abs=5e-5)
    assert abs(six[0] / six[1] - PAPER_TABLE_6[OVERALL][2]) > 0.02


def test_planted_ratios_lie_in_their_intervals_and_raters_agree(tmp_path):
    report, bad = evaluate_experts(saved(panel(1), tmp_path / "ratings.csv"), "human")
    assert bad.empty
    assert (report["rows"], report["raters"], report["items"]) == (7 * 2 * 150 * 4, 4, 300)
    assert [row["aspect"] for row in report["aspects"]] == [*ASPECTS, OVERALL]
    for row in report["aspects"]:
        ratio, planted = row["ratios"]["ai"], np.divide(*PAPER_TABLE_6[row["aspect"]][:2])
        assert ratio["low"] < planted < ratio["high"]
        assert ratio["mean"] == pytest.approx(row["means"]["ai"] / row["means"]["human"])
        assert ratio["high"] - ratio["low"] < 0.25
        assert 0.4 < row["alpha"] < 0.9
    assert report["mean_of_aspects"]["ai"] == pytest.approx(np.mean([r["means"]["ai"] for r in report["aspects"][:6]]))
    json.dumps(report, allow_nan=False)


def test_the_interval_is_about_items_and_not_about_ratings(tmp_path):
    """Ten raters who all say the same add no item: the interval stays as wide as with one."""
    one = panel(2, items=40, raters=1)
    many = pd.concat([one.assign(rater=f"r{n}") for n in range(10)])
    single, _ = evaluate_experts(saved(one, tmp_path / "one.csv"), "human")
    copied, _ = evaluate_experts(saved(many, tmp_path / "many.csv"), "human")
    for first, second in zip(single["aspects"], copied["aspects"], strict=True):
        assert second["ratios"]["ai"]["low"] == pytest.approx(first["ratios"]["ai"]["low"])
        assert first["alpha"] is None
        assert "two raters" in first["alpha_missing"]
        assert second["alpha"] == pytest.approx(1.0)


def test_pairs_of_one_item_narrow_the_interval(tmp_path):
    """Items of the same name in both arms are drawn together, so that what they share cancels."""
    random = np.random.default_rng(3)
    rows = []
    for item in range(60):
        base = random.integers(0, 2)
        rows += [("r", str(item), "ai", "craft design", base), ("r", str(item), "human", "craft design", base + 1)]
    paired = pd.DataFrame(rows, columns=COLUMNS)
    apart = paired.assign(item=paired["arm"] + paired["item"])
    widths = []
    for name, frame in (("paired", paired), ("apart", apart)):
        report, _ = evaluate_experts(saved(frame, tmp_path / f"{name}.csv"), "human")
        ratio = report["aspects"][0]["ratios"]["ai"]
        widths.append(ratio["high"] - ratio["low"])
    assert widths[0] < 0.8 * widths[1]


def test_alpha_is_that_of_the_librarys_worked_example(tmp_path):
    """Scores of three raters; the ordinal coefficient by hand: 1 - D_o / D_e."""
    scores = {"a": [0, 1, 2, 2, 1], "b": [0, 1, 2, 1, 1]}
    rows = [(rater, f"i{n}", "x", OVERALL, s) for rater, row in scores.items() for n, s in enumerate(row)]
    rows += [("a", "j", "y", OVERALL, 1)]
    report, _ = evaluate_experts(saved(pd.DataFrame(rows, columns=COLUMNS), tmp_path / "r.csv"), "x")
    counts = {0: 2, 1: 5, 2: 3}

    def distance(c: int, k: int) -> float:
        between = sum(counts[g] for g in range(min(c, k), max(c, k) + 1))
        return (between - (counts[c] + counts[k]) / 2) ** 2

    observed = 2 * distance(1, 2) / 10  # one unit of five holds the pair (2, 1), counted in both orders
    expected = sum(counts[c] * counts[k] * distance(c, k) for c in counts for k in counts) / (10 * 9)
    assert report["aspects"][0]["alpha"] == pytest.approx(1 - observed / expected)


def test_each_defect_costs_its_own_row_and_the_counts_add_up(tmp_path):
    good = [("r1", f"i{n}", arm, "Craft_Design", n % 3) for n in range(30) for arm in ("ai", "human")]
    dirt = [
        ("unnamed", ("", "i1", "ai", "overall", "1")),
        ("unnamed", ("r1", "i1", " ", "overall", "1")),
        ("aspect", ("r1", "i1", "ai", "beauty", "1")),
        ("blank", ("r1", "i1", "ai", "overall", "")),
        ("score", ("r1", "i1", "ai", "overall", "3")),
        ("score", ("r1", "i1", "ai", "overall", "1.5")),
        ("score", ("r1", "i1", "ai", "overall", "-1")),
        ("score", ("r1", "i1", "ai", "overall", "good")),
        ("score", ("r1", "i1", "ai", "overall", "inf")),
        ("contradictory", ("r2", "i1", "ai", "overall", "0")),
        ("contradictory", ("r2", "i1", "ai", "overall", "2")),
        ("repeated", ("r1", "i2", "ai", "craft  design", "2.0")),
    ]
    path = tmp_path / "ratings.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([[" Rater", "item", "ARM", "aspect", "score", "note"]])
        csv.writer(file).writerows([*good, *(row for _, row in dirt)])
    report, bad = evaluate_experts(path, "human")
    want = {rule: sum(name == rule for name, _ in dirt) for rule in RULES}
    assert report["set_aside"] == want
    assert report["rows"] == len(good) + len(dirt) == report["used"] + sum(want.values())
    assert bad["rule"].tolist() == [name for name, _ in dirt]
    assert bad.index.tolist() == list(range(len(good) + 1, len(good) + len(dirt) + 1))
    assert bad["value"].iloc[2] == "beauty"
    assert [row["aspect"] for row in report["aspects"]] == ["craft design"]
    assert OVERALL in report["aspects_missing"]


def test_parquet_reads_as_csv_does(tmp_path):
    frame = panel(4, items=25, raters=2)
    frame.astype({"score": float}).to_parquet(tmp_path / "ratings.parquet")
    assert (
        evaluate_experts(tmp_path / "ratings.parquet", "human")[0]
        == evaluate_experts(saved(frame, tmp_path / "ratings.csv"), "human")[0]
    )


def test_what_has_no_ratio_says_so(tmp_path):
    """A baseline of zeros, an aspect rated in one arm only, and too few items."""
    rows = [("r", f"i{n}", arm, "overall", 0) for n in range(30) for arm in ("ai", "human")]
    rows += [("r", f"i{n}", "ai", "craft design", 1) for n in range(30)]
    rows += [("r", f"i{n}", arm, "model realism", n % 3) for n in range(5) for arm in ("ai", "human")]
    report, _ = evaluate_experts(saved(pd.DataFrame(rows, columns=COLUMNS), tmp_path / "r.csv"), "human")
    by = {row["aspect"]: row for row in report["aspects"]}
    assert by["overall"]["ratios"]["ai"]["mean"] is None
    assert by["craft design"]["ratios"]["ai"]["mean"] is None
    assert by["craft design"]["means"] == {"ai": 1.0, "human": None}
    few = by["model realism"]["ratios"]["ai"]
    assert (few["mean"], few["low"], few["clusters"]) == (1.0, None, 5)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rater,item\nr,i\n", "columns absent: arm, aspect, score"),
        ("rater,item,arm,aspect,score\n", "no rows below the header"),
        ("", "not a readable CSV file"),
        ("rater,item,arm,aspect,score\nr,i,ai,overall,1,2\n", "not a readable CSV file"),
        ("rater,item,arm,aspect,score\nr,i,ai,overall,7\n", "no rating is left of 1"),
        ("rater,item,arm,aspect,score\nr,i,ai,overall,1\n", "arms ai; a ratio needs the baseline 'human'"),
        ("rater;item;arm;aspect;score\nr;i;ai;overall;1\n", "separated by commas"),
    ],
)
def test_files_that_cannot_be_evaluated_are_named(tmp_path, text, words):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        evaluate_experts(tmp_path / "r.csv", "human")
    with pytest.raises(DataError, match="no such file"):
        evaluate_experts(tmp_path / "absent.csv", "human")
    with pytest.raises(DataError, match=r"neither .csv nor .parquet"):
        evaluate_experts(tmp_path / "r.xlsx", "human")


def test_a_filled_in_template_is_evaluated(tmp_path):
    items = pd.DataFrame([(f"i{n}", arm) for n in range(20) for arm in ("ai", "human")], columns=["item", "arm"])
    sheet = tmp_path / "sheet.csv"
    assert write_template(sheet, saved(items, tmp_path / "items.csv"), ["anna", "ben"]) == 2 * 40 * 7
    with pytest.raises(DataError, match="is there already"):
        write_template(sheet, tmp_path / "items.csv", ["anna"])
    empty = pd.read_csv(sheet)
    saved(empty.iloc[: 40 * 7].assign(score=1), tmp_path / "filled.csv")
    pd.concat([empty.iloc[: 40 * 7].assign(score=1), empty.iloc[40 * 7 :]]).to_csv(tmp_path / "half.csv", index=False)
    report, _ = evaluate_experts(tmp_path / "half.csv", "human")
    assert report["set_aside"]["blank"] == 40 * 7
    assert {row["ratios"]["ai"]["mean"] for row in report["aspects"]} == {1.0}
    with pytest.raises(DataError, match="row 41 is unnamed or repeated"):
        write_template(tmp_path / "s.csv", saved(pd.concat([items, items]), tmp_path / "twice.csv"), ["anna"])
    with pytest.raises(DataError, match="a name of its own"):
        write_template(tmp_path / "s.csv", tmp_path / "items.csv", ["anna", "anna"])
