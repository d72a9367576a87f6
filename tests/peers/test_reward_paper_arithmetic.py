"""The paper's own arithmetic: which identities its tables obey, and which they do not."""

import pytest

ROUNDING = 0.5e-4  # of a figure printed with four decimals
PICKAPIC = {  # Table 2: MAP, GAUC
    "Aesthetics": (0.7569, 0.5138), "CLIP-H": (0.8148, 0.6295), "ImageReward": (0.8216, 0.6431),
    "HPSv1": (0.8293, 0.6585), "HPSv2": (0.8177, 0.6353), "PickScore": (0.8711, 0.7422),
    "PerFusionRM": (0.8822, 0.7644),
}  # fmt: skip
INDUSTRIAL = {
    "Aesthetics": (0.4571, 0.5000), "CLIP-H": (0.6352, 0.7060), "ImageReward": (0.5538, 0.6115),
    "HPSv1": (0.4565, 0.5030), "HPSv2": (0.5783, 0.6420), "PickScore": (0.5241, 0.5820),
    "PerFusionRM": (0.9220, 0.9564),
}  # fmt: skip
IMPROVEMENTS = {"PickaPic": (1.27, 2.99), "Industrial": (45.15, 35.47)}  # percent
BACKBONES = {"CLIP": (0.8822, 0.7644), "SigLIP": (0.8798, 0.7601), "ViLT": (0.8776, 0.7577)}  # Table 5
ASPECTS = {  # Table 6: AI-generated, human-designed, ratio in percent
    "Material Quality": (1.5168, 1.6260, 93.28), "Model Realism": (1.7020, 1.8888, 90.11),
    "Craft Design": (1.4520, 1.7648, 82.28), "Pattern Appropriateness": (1.6972, 1.8464, 91.92),
    "Design Aesthetics": (1.7932, 1.8708, 95.85), "Color Coordination": (1.7532, 1.7932, 97.77),
}  # fmt: skip
OVERALL = (1.6720, 1.7730, 94.30)


def of_pairs(gauc: float) -> float:
    """MAP of groups of two, one picked: the pick is first (precision 1) or second (1/2)."""
    return (1 + gauc) / 2


@pytest.mark.parametrize(("name", "rows"), [("PickaPic", PICKAPIC), ("Industrial", INDUSTRIAL)])
def test_table_2_improves_by_what_it_says(name: str, rows: dict[str, tuple[float, float]]):
    for metric, printed in enumerate(IMPROVEMENTS[name]):
        best = max(values[metric] for model, values in rows.items() if model != "PerFusionRM")
        assert 100 * (rows["PerFusionRM"][metric] / best - 1) == pytest.approx(printed, abs=0.005 + 1e-9)


@pytest.mark.parametrize("model", PICKAPIC)
def test_table_2s_pickapic_rows_are_those_of_pairs(model: str):
    average_precision, gauc = PICKAPIC[model]
    assert average_precision == pytest.approx(of_pairs(gauc), abs=1.5 * ROUNDING + 1e-9)


def test_table_2s_industrial_rows_are_not_those_of_pairs():
    """Groups are larger there: Aesthetics is random, and random MAP of pairs is .75."""
    assert INDUSTRIAL["Aesthetics"] == (0.4571, 0.5000)
    assert sum(1 / rank for rank in range(1, 6)) / 5 == pytest.approx(0.4571, abs=0.0005)  # five, one picked


def test_table_5_breaks_the_identity_of_pairs_in_two_rows():
    errors = {name: row[0] - of_pairs(row[1]) for name, row in BACKBONES.items()}
    assert errors["CLIP"] == pytest.approx(0, abs=1e-9)
    assert errors["SigLIP"] == pytest.approx(-0.00025, abs=1e-9)
    assert errors["ViLT"] == pytest.approx(-0.00125, abs=1e-9)
    assert min(abs(errors["SigLIP"]), abs(errors["ViLT"])) > 1.5 * ROUNDING  # more than rounding can explain
    assert BACKBONES["CLIP"] == PICKAPIC["PerFusionRM"]


def test_table_6_ratios_hold():
    for generated, designed, ratio in (*ASPECTS.values(), OVERALL):
        assert 100 * generated / designed == pytest.approx(ratio, abs=0.005 + 1e-9)


def test_table_6s_overall_is_a_rating_of_its_own():
    """Not the mean of the six aspects, in neither column."""
    for column, gap in ((0, 0.0196), (1, -0.0253)):
        mean = sum(row[column] for row in ASPECTS.values()) / len(ASPECTS)
        assert OVERALL[column] - mean == pytest.approx(gap, abs=1e-4)


def test_table_7s_average_holds():
    search, recommendation = 17.81, 13.35
    assert (search + recommendation) / 2 == pytest.approx(15.58)
