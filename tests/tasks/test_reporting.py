"""Summary and page of a run: the contract, nothing invented, nothing fetched from outside."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perfusion.governance.checks import above
from perfusion.governance.decision import decide
from perfusion.governance.meanings import MEANINGS
from perfusion.statistics import Interval
from tasks import reporting_artifacts
from tasks.reporting import summary, write_report
from tasks.reporting_charts import axis_for, curve_svg, panels
from tasks.reporting_pictures import contact_sheet
from tasks.reporting_record import Figure, ReportError, RunRecord, figure, read_record
from tasks.reporting_views import generator_view
from tasks.reporting_words import GATES, humane, interval, number, percent, seconds, signed
from tasks.workspace import Workspace, open_workspace

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """What a page says and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def workspace(make_run: MakeRun) -> Workspace:
    root = make_run()
    return open_workspace(root, root / "mlruns")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def close_reward_gate(root: Path, low: float, high: float) -> None:
    """What the flow leaves when the reward gate stays closed: nothing of the stages behind it."""
    gain = Interval((low + high) / 2, low, high, 0.95, 40, 240)
    decision = decide("reward", [above("MAP gain over tuned PickScore", gain)], {}, {})

    def change(gates: Any) -> None:
        gates["reward"] = decision.to_dict()
        for gate in ("load", "promotion"):
            gates.pop(gate)

    edit(root / "work/metrics/gates.json", change)
    edit(root / "work/outcome.json", lambda outcome: outcome.update(status="refused", reasons=["closed"]))
    (root / "work/metrics/evaluate-generator.json").unlink()
    shutil.rmtree(root / "work/evaluation/generator")


def test_the_summary_has_the_keys_of_its_contract(workspace: Workspace) -> None:
    told = summary(workspace)
    assert told["data"] == {"groups_in": 300, "quarantined": 3, "filtered": 15, "dropped": 12, "used": 270}
    assert set(told["reward"]) >= {"floor_map", "user_blind_gauc", "reachable_gauc", "perfusion_rm", "gap_closed"}
    assert set(told["reward"]["perfusion_rm"]) == {"map", "gauc", "gauc_ci"}
    assert set(told["generator"]) >= {"base", "sft", "dpo", "perfusion", "wrong_user", "user_swap_win_rate"}
    assert set(told["generator"]["perfusion"]) >= {"true_utility", "ci"}
    assert told["gates"] == dict.fromkeys(("data", "reward", "load", "promotion"), "pass")
    assert told["champion"] == {"reward": None, "generator": None}
    assert told["seconds"]["reward"] == 75.3
    json.dumps(told, allow_nan=False)


def test_the_summary_repeats_what_was_measured(workspace: Workspace) -> None:
    measured = json.loads((workspace.work / "metrics/evaluate-reward.json").read_text())
    told = summary(workspace)["reward"]
    assert told["perfusion_rm"]["gauc_ci"] == measured["perfusion_rm"]["gauc_ci"]
    assert told["user_blind_gauc"] == measured["user_blind"]["gauc"]
    assert told["gap_closed"] == measured["gap_closed"]


def test_what_is_missing_is_null_with_a_reason(make_run: MakeRun) -> None:
    root = make_run(truth=False)
    told = summary(open_workspace(root, root / "mlruns"))
    assert told["reward"]["reachable_gauc"] is None
    assert "no planted truth" in told["missing"]["reward.reachable_gauc"]
    assert told["generator"]["perfusion"]["true_utility"] is None
    assert told["generator"]["perfusion"]["perfusion_rm"] > 10
    assert "no planted truth" in told["missing"]["generator.perfusion.true_utility"]


def test_counts_that_do_not_add_up_are_refused(workspace: Workspace) -> None:
    edit(workspace.work / "metrics/split.json", lambda split: split.update(used=269))
    with pytest.raises(ReportError, match=r"300 group records came in, but 299"):
        summary(workspace)


def test_a_stage_behind_a_closed_gate_is_missing_because_of_it(workspace: Workspace) -> None:
    close_reward_gate(workspace.root, -0.02, -0.01)
    told = summary(workspace)
    assert told["generator"] is None
    assert "the reward gate is closed" in told["missing"]["generator"]
    assert told["reward"] is not None


def test_nothing_recorded_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no run was recorded here.*\nremedy: run `make retrain`"):
        summary(open_workspace(tmp_path, tmp_path))


def test_a_damaged_record_is_named(workspace: Workspace) -> None:
    (workspace.work / "metrics/split.json").write_text('{"used": ')
    with pytest.raises(ReportError, match=r"split\.json: damaged"):
        summary(workspace)


def test_the_page_loads_nothing_from_outside(workspace: Workspace) -> None:
    text = write_report(workspace).read_text()
    assert all(value.startswith(("data:image/", "#")) for value in Page(text).loads)
    assert not re.search(r"https?:|//[a-z]+\.|url\((?!#)|@import", text.replace("data:", ""))


def test_the_page_opens_with_the_verdict_and_holds_the_evidence(workspace: Workspace) -> None:
    said = Page(write_report(workspace).read_text()).text
    assert said.index("Promoted:") < said.index("Does it know") < said.index("Same words") < said.index("The gates")
    assert "random 0.457" in said
    for part in (
        "picture decodes",
        "nothing picked",
        "train PerFusionRM",
        "Slice by slice",
        "reward · loss",
        "dress, v-neck, slim-fit",
    ):
        assert part in said


def test_two_pages_of_one_run_differ_in_the_clock_alone(workspace: Workspace, tmp_path: Path) -> None:
    pages = [write_report(workspace, tmp_path / name).read_text() for name in ("a.html", "b.html")]
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    assert re.sub(clock, "", pages[0]) == re.sub(clock, "", pages[1])


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.03, -0.01, "the reward gate said no"), (-0.01, 0.02, "the reward gate could not tell")],
)
def test_a_closed_gate_is_the_headline(workspace: Workspace, low: float, high: float, words: str) -> None:
    close_reward_gate(workspace.root, low, high)
    said = Page(write_report(workspace).read_text()).text
    assert said.index("Not promoted:") < said.index(words)
    assert "Knowing the merchant does not help enough to predict what is picked" in said
    assert "MAP gain over tuned PickScore is" in said
    assert "No pictures: stage 'evaluate-generator' was not reached" in said


def test_the_word_of_an_earlier_run_is_not_taken_for_this_ones(workspace: Workspace) -> None:
    edit(workspace.work / "metrics/gates.json", lambda gates: gates.pop("promotion"))
    said = Page(write_report(workspace).read_text()).text
    assert "No verdict yet: not every gate was asked" in said


def test_models_that_serve_already_are_no_refusal(workspace: Workspace) -> None:
    told = ["nothing new to promote: perfusion-generator version 3 and perfusion-reward version 3 serve already"]
    edit(workspace.work / "outcome.json", lambda outcome: outcome.update(status="unchanged", reasons=told))
    edit(workspace.work / "metrics/gates.json", lambda gates: gates.pop("load"))
    edit(workspace.work / "metrics/gates.json", lambda gates: gates.pop("promotion"))
    said = Page(write_report(workspace).read_text()).text
    assert "Nothing new to promote: perfusion-generator version 3 and perfusion-reward version 3 serve already." in said
    assert "Not asked: these very models serve already." in said


def test_gates_of_an_earlier_run_are_told_with_that_run(workspace: Workspace) -> None:
    """Models that serve already are not judged again; one of them may have been promoted by force."""
    last = json.loads((workspace.work / "outcome.json").read_text())["run_id"]
    told = ["nothing new to promote: perfusion-generator version 3 and perfusion-reward version 3 serve already"]
    edit(workspace.work / "outcome.json", lambda outcome: outcome.update(status="unchanged", reasons=told))
    asked = {"data": last, "reward": last, "load": "earlier7", "promotion": "earlier7"}

    def change(gates: dict[str, Any]) -> None:
        for gate, run_id in asked.items():
            gates[gate]["run_id"] = run_id
        gates["promotion"]["verdict"] = "fail"

    edit(workspace.work / "metrics/gates.json", change)
    figures = summary(workspace)
    assert figures["gate_runs"] == asked
    assert figures["gates"]["promotion"] == "fail"
    said = Page(write_report(workspace).read_text()).text
    assert "Nothing new to promote:" in said
    assert said.count("Asked in the MLflow run earlier7") == 2
    assert f"Asked in the MLflow run {last}" not in said


def test_every_gate_of_the_flow_has_its_words() -> None:
    assert set(MEANINGS) == set(GATES)


def test_rows_of_the_sheet_do_not_depend_on_scores(workspace: Workspace) -> None:
    def shown(record: RunRecord) -> list[str]:
        sheet = contact_sheet(record)
        assert sheet is not None
        return [row["user"] for block in sheet["blocks"] for row in block["rows"]]

    before = shown(read_record(workspace.root))
    file = workspace.work / "evaluation/generator/pictures.parquet"
    pictures = pd.read_parquet(file)
    pictures.assign(true_utility=-pictures["true_utility"]).to_parquet(file)
    assert shown(read_record(workspace.root)) == before
    assert len(before) == len(set(before)) > 4


def test_reasons_are_told_in_the_words_of_the_page() -> None:
    text = humane("true_utility of PerFusion minus base is -0.05 [-0.3, 0.4], wrong_user")
    assert text == "True utility of PerFusion minus base is −0.05 [−0.3, 0.4], PerFusionRM, another merchant's features"


def test_a_failed_run_says_so(workspace: Workspace) -> None:
    change = {"status": "failed", "reasons": ["stage reward: loss is nan at step 3"], "versions": {}}
    edit(workspace.work / "outcome.json", lambda outcome: outcome.update(change))
    for stage in ("gates", "evaluate-reward", "evaluate-generator"):
        workspace.metrics(stage).unlink()
    shutil.rmtree(workspace.work / "evaluation")
    assert summary(workspace)["missing"]["reward"] == "stage 'evaluate-reward' was not reached"
    said = Page(write_report(workspace).read_text()).text
    assert "The run failed. Stage reward: loss is nan at step 3." in said


def test_text_from_the_data_cannot_become_markup(workspace: Workspace) -> None:
    table = read_record(workspace.root).pictures
    assert table is not None
    file = workspace.work / "evaluation/generator/pictures.parquet"
    table.assign(prompt="<script>alert(1)</script>").to_parquet(file)
    text = write_report(workspace).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_an_absent_picture_is_a_clear_error(workspace: Workspace) -> None:
    for file in (workspace.work / "evaluation/generator/pictures").glob("*-base.png"):
        file.unlink()
    with pytest.raises(ReportError, match="picture is absent"):
        write_report(workspace)


def test_the_judge_is_our_own_model_only_where_no_truth_is_known(make_run: MakeRun) -> None:
    views = [generator_view(read_record(make_run(name, truth=truth))) for name, truth in (("a", True), ("b", False))]
    assert [view["judge"] for view in views if view] == ["true_utility", "perfusion_rm"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"map": 0.5, "map_ci": [0.4, 0.6]}, Figure(0.5, 0.4, 0.6)),
        ({"map": {"mean": 0.5, "low": 0.4, "high": 0.6}}, Figure(0.5, 0.4, 0.6)),
        ({"map": 0.5}, Figure(0.5, None, None, bounded=False)),
        ({"map": 0.5, "map_ci": [None, None]}, Figure(0.5, None, None, bounded=True)),
        ({"map": None, "map_ci": [None, None]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_figure_is_read_as_it_was_written(record: dict[str, Any] | None, expected: Figure | None) -> None:
    assert figure(record, "map") == expected


def test_numbers_for_reading() -> None:
    assert number(-1234.5, 1) == "−1,234.5"
    assert number(float("nan")) == number(None) == "–"
    assert (signed(0.25, 2), signed(-0.25, 2), signed(-0.001, 2)) == ("+0.25", "−0.25", "−0.00")
    assert percent(0.876) == "88\N{NO-BREAK SPACE}%"
    assert [seconds(value) for value in (0.048, 4.21, 200.0, 3900.0)] == ["48 ms", "4.2 s", "3 min 20 s", "1 h 05 min"]
    assert interval(Figure(0.5)) == "too few merchants"
    assert interval(Figure(0.5, bounded=False)) == ""


def test_an_axis_holds_every_bound() -> None:
    axis = axis_for([Figure(0.5, 0.2, 0.9), None, Figure(-1.0, -1.5, -0.5)], zero=True)
    assert axis is not None
    assert 0 < axis.at(-1.5) < axis.at(0.0) < axis.at(0.9) < 100
    assert axis.ticks == tuple(sorted(axis.ticks))
    assert axis_for([None]) is None


def test_a_curve_is_one_bare_drawing_in_the_pages_colours() -> None:
    table = pd.DataFrame({"step": np.arange(50), "loss": np.exp(-np.arange(50) / 9), "lr": 1e-3})
    drawing = curve_svg(table, "loss", "a")
    assert drawing.startswith("<svg")
    assert "http" not in drawing
    assert "currentColor" in drawing
    assert "var(--ours)" in drawing
    assert drawing == curve_svg(table, "loss", "a")
    assert panels(table) == ["loss"]


def test_artifacts_for_other_tools(workspace: Workspace) -> None:
    told = summary(workspace)
    text = reporting_artifacts.headline_markdown(told)
    assert "| PerFusionRM, GAUC | 0." in text
    assert "- ✓ promotion gate: pass" in text
    rows = reporting_artifacts.data_table(told["data"])
    assert sum(row["records"] for row in rows) == 300
    assert [row["stage"] for row in reporting_artifacts.seconds_table(told["seconds"])][-1] == "clip"
