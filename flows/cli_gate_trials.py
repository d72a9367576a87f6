"""`perfusion benchmark gates`: the gates' test bench, told as tables and a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from flows.cli_common import print_table

if TYPE_CHECKING:
    from tasks.workspace import Workspace

__all__ = ["run_gate_trials"]

WIDTH = 50  # characters of the curve at a share of 1


def run_gate_trials(workspace: Workspace, times: float) -> None:
    """Run `times` as many trials as usual and print what came of them."""
    from perfusion.trials.bench import FULL, Size
    from tasks.gate_trials import gate_trials

    size = Size(**{name: max(1, round(times * count)) for name, count in vars(FULL).items()})
    found = gate_trials(workspace, size)
    _show_errors(found)
    _show_power(found["power"])
    _show_flattery(found["flattery"])
    typer.echo(f"{found['seconds']:.0f} s; {workspace.gate_trials}")


def _show_errors(found: dict[str, Any]) -> None:
    null, reward = found["null"], found["random_reward"]
    rows = [
        (
            "promoted though no better",
            f"{null['promoted']} of {null['pairs']}",
            f"{_percent(null['false_promotion_rate'])}, at most {_percent(null['upper95'])}",
        ),
        (
            "... asked every night",
            f"{null['asked_every_night']['expected_a_year']:.1f} a year",
            f"at most {null['asked_every_night']['expected_a_year_upper95']:.1f}, were nights independent",
        ),
        ("random reward model passed", f"{reward['passed']} of {reward['tries']}", ""),
        ("reward model blind to merchants passed", f"{reward['blind_passed']} of {reward['blind_tries']}", ""),
    ]
    for case in found["slice_regressions"]:
        what = f"{case['slice']} loses {case['effect']:g} sd: caught"
        rows.append((what, f"{round(case['caught'] * case['pairs'])} of {case['pairs']}", _share(case, "caught")))
    print_table("The gates on trial", ("", "trials", "share and exact 95 % interval"), rows)
    typer.echo("")


def _show_power(power: list[dict[str, Any]]) -> None:
    """The power curve: one bar a true improvement."""
    rows = []
    for point in power:
        closed = ", ".join(f"{kind} {_percent(share)}" for kind, share in list(point["closed_by"].items())[:3])
        bar = "█" * round(WIDTH * point["promoted"])
        rows.append((f"+{point['effect']:g}", _share(point, "promoted"), _percent(point["judges_agree"]), bar, closed))
    columns = ("true improvement", "promoted", "judges agree", "", "what else kept it closed")
    print_table("Truly better challengers", columns, rows)
    typer.echo("")


def _show_flattery(cases: list[dict[str, Any]]) -> None:
    rows = []
    for case in cases:
        gains = case["gains"]
        rows.append((
            "known" if case["truth"] else "not known",
            f"{case['shared_error']:g}",
            f"{gains['perfusion_rm']:+.2f}",
            f"{gains['champion_rm']:+.2f}",
            f"{gains['true_utility']:+.2f}",
            _percent(case["judges_agree"]),
            _share(case, "promoted"),
        ))  # fmt: skip
    columns = ("truth", "shared error", "own reward model", "champion's", "true utility", "judges agree", "promoted")
    print_table("Challengers that flatter their reward model and are no better", columns, rows)
    typer.echo("")


def _share(record: dict[str, Any], name: str) -> str:
    return f"{_percent(record[name])} [{_percent(record['low'])}, {_percent(record['high'])}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
