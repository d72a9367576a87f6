"""The verdict of a run in plain words, and the three figures behind it, for a reader who has thirty seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from perfusion.governance.meanings import meaning
from tasks.reporting_charts import Axis, Reference, axis_for
from tasks.reporting_record import Figure, RunRecord, figure
from tasks.reporting_words import GATES, humane, interval, metric_name, number, percent, signed, split_reason

__all__ = ["tiles_view", "verdict_view"]

View = dict[str, Any]
SHOWN_REASONS = 3


def verdict_view(record: RunRecord) -> View:
    """The verdict in a few words, and the because in one or two sentences."""
    outcome = record.outcome or {}
    closed = [name for name in GATES if record.gates.get(name, {}).get("verdict", "pass") != "pass"]
    told = " ".join(outcome.get("reasons", []))
    status = outcome.get("status")
    if closed and status != "unchanged":  # what serves was judged earlier, and promoted, if need be by force
        return _refusal(record, closed[0])
    if status == "failed":
        return _verdict("fail", "The run failed", "", f"{_sentence(told)} What served before goes on serving.")
    if status == "unchanged":
        serving = told.partition(": ")[2].rstrip(".")
        return _verdict("none", "Nothing new to promote", serving, _praise(record))
    if status == "promoted" and set(GATES) <= set(record.gates):
        names = " and ".join(f"{name} {version}" for name, version in outcome.get("versions", {}).items())
        return _verdict("pass", "Promoted", f"{names or 'the new models'} now serve", _praise(record))
    if record.gates:  # "promoted" or "refused" without its gates is the word of an earlier run
        because = f"The flow is still going on, or was cut off. {_praise(record)}"
        return _verdict("none", "No verdict yet", "not every gate was asked", because)
    because = f"The stages ran without the flow (dvc repro), which asks no gate. {_praise(record)}"
    return _verdict("none", "Not judged", "no gate was asked", because)


def _verdict(tone: str, word: str, rest: str, because: str, evidence: Sequence[str] = ()) -> View:
    return {"tone": tone, "word": word, "rest": rest, "because": because.strip(), "evidence": list(evidence)}


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text else text[0].upper() + text[1:].rstrip(".") + "."


def _closed_gate(gate: str, verdict: str) -> str:
    return f"the {gate} gate {'said no' if verdict == 'fail' else 'could not tell'}"


def _refusal(record: RunRecord, gate: str) -> View:
    """A closed gate as the headline: what it means in plain words, then the checks that kept it closed."""
    decision = record.gates[gate]
    reasons = [split_reason(reason) for reason in decision["reasons"]]
    shut = [text for verdict, text in reasons if verdict == decision["verdict"]]
    meanings = list(dict.fromkeys(meaning(gate, text).otherwise for text in shut))
    said = "" if decision["verdict"] == "fail" else "With this much data it cannot be ruled out: "
    shown = [*(humane(text) for text in shut[:SHOWN_REASONS]), *_and_more(len(shut) - SHOWN_REASONS)]
    because = f"{said}{' '.join(meanings[:SHOWN_REASONS])} What served before goes on serving."
    return _verdict(decision["verdict"], "Not promoted", _closed_gate(gate, decision["verdict"]), because, shown)


def _and_more(count: int) -> list[str]:
    return [f"and {count} more, below"] if count > 0 else []


def _praise(record: RunRecord) -> str:
    """What was measured, in words for somebody who never read the paper."""
    sentences = []
    if (closed := figure(record.reward, "gap_closed")) is not None:
        sentences.append(
            f"Of what past picks let anyone learn about merchants' own taste, the reward model has learned "
            f"{percent(closed.mean)}."
        )
    elif (ranked := _ranked(record)) is not None:
        sentences.append(ranked)
    gain = record.difference("perfusion", "base")
    swap = record.difference("perfusion", "wrong_user")
    if gain is not None and swap is not None:
        sentences.append(
            f"Pictures drawn for a merchant please that merchant {_more(gain)} than the base model's ({_told(gain)}), "
            f"{'and' if gain.side == swap.side else 'but'} {_more(swap)} than pictures drawn for another merchant "
            f"({_told(swap)})."
        )
        if record.judge != "true_utility":
            sentences.append("The judge is our own reward model: this dataset has no planted truth.")
    return " ".join(sentences)


def _ranked(record: RunRecord) -> str | None:
    """GAUC in words, for data whose ceiling nobody knows."""
    ours, blind = (figure(record.scorers.get(name), "gauc") for name in ("perfusion_rm", "user_blind"))
    if ours is None or blind is None:
        return None
    return (
        f"Of a picked picture and one that was not, the reward model ranks the picked one higher in "
        f"{percent(ours.mean)} of cases; a model that does not know the merchant does in {percent(blind.mean)}."
    )


def _more(gain: Figure) -> str:
    return {1: "more", -1: "less", 0: "not clearly more"}[gain.side]


def _told(gain: Figure) -> str:
    return f"{signed(gain.mean, 2)} {interval(gain, 2)}"


# -- tiles ------------------------------------------------------------------------------------------------------------


def tiles_view(record: RunRecord) -> list[View]:
    """The three questions a reader comes with."""
    return [tile for tile in (_taste_tile(record), _personal_tile(record), _better_tile(record)) if tile is not None]


def _taste_tile(record: RunRecord) -> View | None:
    ours = figure(record.scorers.get("perfusion_rm"), "gauc")
    if ours is None:
        return None
    blind = figure(record.scorers.get("user_blind"), "gauc")
    reachable = figure(record.scorers.get("reachable"), "gauc")
    closed = figure(record.reward, "gap_closed")
    marks = [Reference(0.5, "random", "base")]
    marks += [Reference(blind.mean, "user-blind", "blind")] if blind else []
    marks += [Reference(reachable.mean, "reachable", "limit")] if reachable else []
    ruler = _ruler(ours, blind.mean if blind else 0.5, marks)
    question = "Does it know a merchant's taste?"
    if closed is not None:
        text = "of the way from a user-blind model to the best that the same records allow."
        return _tile(question, percent(closed.mean), _percent_bounds(closed), text, ruler=ruler)
    gain = figure((record.reward or {}).get("gain_over_user_blind"), "gauc")
    text = "GAUC gained by knowing the merchant. How much could be gained is not known: there is no planted truth."
    if gain is None:
        return _tile(question, number(ours.mean), f"GAUC {interval(ours)}", "", ruler=ruler)
    return _tile(question, signed(gain.mean), interval(gain), text, ruler=ruler)


def _tile(question: str, big: str, unit: str, text: str, **drawing: Any) -> View:
    return {"question": question, "big": big, "unit": unit, "text": text, "ruler": None, **drawing}


def _ruler(value: Figure, start: float, marks: list[Reference]) -> View:
    """Marks along one line; names that would collide stand on two levels."""
    low = min(0.48, value.mean, *(mark.value for mark in marks))
    axis = Axis(low, 1.0, ())
    marks = sorted(marks, key=lambda mark: mark.value)
    at = [axis.at(mark.value) for mark in marks]
    crowded = any(right - left < 42 for left, right in pairwise(at))
    levels = [index % 2 if crowded else 0 for index in range(len(marks))]
    return {"axis": axis, "start": start, "value": value, "marks": marks, "levels": levels}


def _percent_bounds(value: Figure) -> str:
    """The bounds of a share, in percent."""
    if value.low is None or value.high is None:
        return ""
    return f"[{percent(value.low)}, {percent(value.high)}]"


def _personal_tile(record: RunRecord) -> View | None:
    swap = record.difference("perfusion", "wrong_user")
    if swap is None:
        return None
    rate = figure(record.generator, "user_swap_win_rate")
    share = f" The right picture wins for {percent(rate.mean)} of merchants." if rate else ""
    text = f"{metric_name(record.judge)} of a picture made for the merchant, minus one made for another.{share}"
    return _difference_tile("Does each merchant get their own pictures?", swap, text)


def _better_tile(record: RunRecord) -> View | None:
    gain = record.difference("perfusion", "base")
    if gain is None:
        return None
    dpo = record.difference("perfusion", "dpo")
    text = f"{metric_name(record.judge)} of PerFusion minus the base model, same prompts and noise."
    if dpo is not None:
        text += f" Against DPO, which knows no merchant: {_told(dpo)}."
    return _difference_tile("Are the pictures better?", gain, text)


def _difference_tile(question: str, value: Figure, text: str) -> View:
    axis = axis_for([value], zero=True, count=4)
    tone = "ours" if value.side > 0 else "wrong"
    return _tile(question, signed(value.mean, 2), interval(value, 2), text, axis=axis, figure=value, tone=tone)
