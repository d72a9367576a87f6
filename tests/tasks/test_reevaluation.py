"""Recorded figures against new ones: what counts as equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import main
from tasks.reevaluation import Reevaluated, compare_metrics

RECORDED = {
    "judge": "true_utility",
    "arms": {"perfusion": {"true_utility": 1.17, "true_utility_ci": [1.06, 1.27]}},
    "rank_agreement": None,
    "costs": {"seconds_per_picture": 0.4},
}


def different(found: dict[str, object], tolerance: float = 0.0) -> list[str]:
    stage = Reevaluated("evaluate-generator", compare_metrics(RECORDED, {**RECORDED, **found}, tolerance), 0, ())
    return [metric.name for metric in stage.different]


def test_the_same_figures_are_equal_and_every_one_is_told() -> None:
    metrics = compare_metrics(RECORDED, RECORDED)
    assert all(metric.equal for metric in metrics)
    assert [metric.name for metric in metrics] == [
        "judge", "arms.perfusion.true_utility", "arms.perfusion.true_utility_ci", "rank_agreement",
        "costs.seconds_per_picture",
    ]  # fmt: skip


def test_a_cost_need_not_be_equal() -> None:
    assert different({"costs": {"seconds_per_picture": 0.5}}) == []


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({"judge": "perfusion_rm"}, ["judge"]),
        ({"rank_agreement": 0.1}, ["rank_agreement"]),
        ({"new": 1}, ["new"]),
        ({"arms": {"perfusion": {"true_utility": 1.17}}}, ["arms.perfusion.true_utility_ci"]),
        (
            {"arms": {"perfusion": {"true_utility": math.nextafter(1.17, 2), "true_utility_ci": [1.06, 1.28]}}},
            ["arms.perfusion.true_utility", "arms.perfusion.true_utility_ci"],
        ),
    ],
)
def test_anything_else_is_different(found: dict[str, object], names: list[str]) -> None:
    assert different(found) == names


def test_a_tolerance_forgives_the_last_digits_and_no_more() -> None:
    close = {"arms": {"perfusion": {"true_utility": 1.17 * (1 + 1e-9), "true_utility_ci": [1.06, 1.27]}}}
    far = {"arms": {"perfusion": {"true_utility": 1.17 * (1 + 1e-4), "true_utility_ci": [1.06, 1.27]}}}
    assert different(close) == ["arms.perfusion.true_utility"]
    assert different(close, 1e-6) == []
    assert different(far, 1e-6) == ["arms.perfusion.true_utility"]


@pytest.mark.parametrize(("gain", "code", "verdict"), [(0.1, 0, "0 different"), (0.2, 2, "DIFFERENT")])
def test_the_command_exits_with_2_when_a_figure_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., Path],
    gain: float, code: int, verdict: str,
) -> None:  # fmt: skip
    told = [Reevaluated("evaluate-reward", compare_metrics({"gain": 0.1}, {"gain": gain}), 3, ())]
    monkeypatch.setattr("tasks.reevaluation.reevaluate", lambda *_: told)
    folder = make_run()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--workspace", str(folder)])
    assert int(stopped.value.code or 0) == code
    assert verdict in capsys.readouterr().out


def test_not_a_number_equals_itself() -> None:
    nan = {"gain": math.nan}
    assert all(metric.equal for metric in compare_metrics(nan, {"gain": float("nan")}))
