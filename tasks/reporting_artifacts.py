"""Small pieces of a report for other tools: tables and markdown that Prefect and MLflow show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reporting_words import ICONS, STAGES, number, percent, seconds

__all__ = ["data_table", "headline_markdown", "seconds_table"]


def data_table(counts: Mapping[str, int] | None) -> list[dict[str, Any]]:
    """What became of the group records, as shares of what came in."""
    if counts is None:
        return []
    total = max(1, counts["groups_in"])
    fates = ("used", "quarantined", "filtered", "dropped")
    return [{"fate": fate, "records": counts[fate], "share": percent(counts[fate] / total, 1)} for fate in fates]


def seconds_table(taken: Mapping[str, float]) -> list[dict[str, str]]:
    """Seconds by stage, in the order of the graph."""
    names = [*(name for name in STAGES if name in taken), *(name for name in taken if name not in STAGES)]
    return [{"stage": name, "does": STAGES.get(name, ""), "took": seconds(taken[name])} for name in names]


def headline_markdown(summary: Mapping[str, Any]) -> str:
    """The headline figures of `summary` as a short markdown text; what is missing is named with its reason."""
    lines = ["| question | figure | interval |", "|---|---|---|"]
    if (reward := summary["reward"]) is not None:
        ours = reward["perfusion_rm"]
        lines += [
            f"| PerFusionRM, GAUC | {number(ours['gauc'])} | {_bounds(ours['gauc_ci'])} |",
            f"| user-blind, GAUC | {number(reward['user_blind_gauc'])} | |",
            f"| reachable, GAUC | {number(reward['reachable_gauc'])} | |",
            f"| MAP (random order gets {number(reward['floor_map'])}) | {number(ours['map'])} | |",
            f"| share of the gap closed | {percent(reward['gap_closed'])} | |",
        ]
    if (generator := summary["generator"]) is not None:
        for arm in ("base", "sft", "dpo", "perfusion", "wrong_user"):
            if (figures := generator[arm]) is not None and figures["true_utility"] is not None:
                lines.append(
                    f"| {arm}, true utility | {number(figures['true_utility'], 2)} | {_bounds(figures['ci'])} |"
                )
        lines.append(f"| merchants whose own picture wins | {percent(generator['user_swap_win_rate'])} | |")
    verdicts = [f"- {ICONS[verdict]} {gate} gate: {verdict}" for gate, verdict in summary["gates"].items()]
    gaps = [f"- {name}: {reason}" for name, reason in summary["missing"].items()]
    return "\n".join([*lines, "", *verdicts, *(["", "Not there:", *gaps] if gaps else [])])


def _bounds(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{number(bounds[0])}, {number(bounds[1])}]"
