"""The headline figures of a run on one terminal screen, the outcome first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from flows.cli_common import print_table, shown

__all__ = ["print_headline"]

ARMS = {"base": "base", "sft": "SFT", "dpo": "DPO", "perfusion": "PerFusion", "wrong_user": "PerFusion, wrong user"}
PAIRS = ("dpo - base", "perfusion - base", "perfusion - dpo", "perfusion - wrong_user")
METRICS = ("true_utility", "perfusion_rm", "wins")


def print_headline(figures: Mapping[str, Any]) -> None:
    """Print what `perfusion report --json` holds, for people; the page has the rest."""
    if outcome := figures.get("outcome"):
        told = [reason for reason in outcome["reasons"] if not reason.startswith("pass")]
        typer.echo("\n  ".join([f"outcome: {outcome['status']}", *told]))
    if data := figures["data"]:
        fates = ", ".join(f"{data[fate]} {fate}" for fate in ("used", "quarantined", "filtered", "dropped"))
        typer.echo(f"data: {data['groups_in']} group records: {fates}")
    if gates := figures["gates"]:
        answers = (f"{name} {verdict}{_asked_earlier(figures, name)}" for name, verdict in gates.items())
        typer.echo(f"gates: {', '.join(answers)}")
    typer.echo(f"champion: {', '.join(f'{role} {shown(version)}' for role, version in figures['champion'].items())}")
    if seconds := figures["seconds"]:
        slowest = ", ".join(f"{stage} {spent:.0f}" for stage, spent in sorted(seconds.items(), key=lambda s: -s[1])[:4])
        typer.echo(f"slowest stages, in seconds: {slowest}\n")
    if reward := figures["reward"]:
        print_table("ranking held-out groups", ("", ""), _reward_rows(reward))
    if generator := figures["generator"]:
        _print_generator(generator)
    for name, why in figures.get("missing", {}).items():
        typer.echo(f"no {name}: {why}")


def _asked_earlier(figures: Mapping[str, Any], gate: str) -> str:
    """The run in which a gate was asked, where that is not the last run itself."""
    asked, last = figures.get("gate_runs", {}).get(gate), (figures.get("outcome") or {}).get("run_id")
    return f" (in run {asked[:8]})" if asked is not None and asked != last else ""


def _reward_rows(reward: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = reward["perfusion_rm"] or {}
    return [
        ("GAUC user-blind (tuned PickScore)", shown(reward["user_blind_gauc"])),
        ("GAUC PerFusionRM", _figure(model, "gauc")),
        ("GAUC reachable", shown(reward["reachable_gauc"])),
        ("gap closed", _figure(reward, "gap_closed")),
        ("MAP PerFusionRM (random order)", f"{shown(model.get('map'))} ({shown(reward['floor_map'])})"),
    ]


def _print_generator(generator: Mapping[str, Any]) -> None:
    arms = {label: generator[arm] for arm, label in ARMS.items() if generator.get(arm)}
    pairs = {pair: generator.get("paired", {}).get(pair) for pair in PAIRS}
    _print_rows("drawing for held-out users and prompts", arms)
    _print_rows("the same items, one arm minus the other", {pair: record for pair, record in pairs.items() if record})
    if generator.get("user_swap_win_rate") is not None:
        typer.echo(f"the right user's picture beats a wrong user's: {_figure(generator, 'user_swap_win_rate')}")


def _print_rows(title: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    metrics = [metric for metric in METRICS if any(record.get(metric) is not None for record in records.values())]
    if metrics:
        rows = [(label, *(_figure(record, metric) for metric in metrics)) for label, record in records.items()]
        print_table(title, ("", *(metric.replace("_", " ") for metric in metrics)), rows)


def _figure(record: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, e.g. "0.718 [0.663, 0.783]"."""
    interval = record.get(f"{name}_ci") or (record.get("ci") if name == "true_utility" else None)
    bounds = f" [{', '.join(map(_number, interval))}]" if interval else ""
    return _number(record.get(name)) + bounds


def _number(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 6):.3g}"
