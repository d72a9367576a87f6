"""The words of the pages: what each thing is called, what it means, and how a number is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tasks.reporting_record import Figure

__all__ = [
    "ARMS",
    "GATES",
    "GLOSSARY",
    "ICONS",
    "METRICS",
    "PAIRS",
    "SCORERS",
    "STAGES",
    "flatten",
    "humane",
    "interval",
    "metric_name",
    "number",
    "percent",
    "seconds",
    "signed",
    "split_reason",
]

#: scorer -> (name, tone, one line), in the order of the table: from knowing nothing to knowing all.
SCORERS = {
    "random": ("Random order", "base", "the floor"),
    "clip": ("CLIP, as pretrained", "base", "does the picture fit the words?"),
    "aesthetic": ("Aesthetics", "base", "is it a nice picture?"),
    "user_blind": ("PickScore, tuned on these picks", "blind", "what merchants in general pick; blind to who asks"),
    "wrong_user": ("PerFusionRM, another merchant's features", "wrong", "control: must not gain"),
    "perfusion_rm": ("PerFusionRM", "ours", "this run's personal reward model"),
    "text_consistency": ("Perfect fit to the words", "limit", "counts the stated attributes that a picture shows"),
    "user_blind_oracle": ("Perfect, but blind to the merchant", "limit", "best possible without knowing who asks"),
    "reachable": ("Reachable ceiling", "limit", "true attributes, taste learned from the same history"),
    "feature_oracle": ("Features' oracle", "limit", "knows what a merchant's features say about taste"),
    "full_oracle": ("Full oracle", "limit", "knows every merchant's true taste"),
}

#: arm -> (name, tone, one line), in the order of the table.
ARMS = {
    "base": ("Base", "base", "the backbone, prompt only"),
    "sft": ("SFT", "base", "fine-tuned on picked pictures (Eq. 1)"),
    "dpo": ("DPO", "blind", "aligned with merchants in general (Eq. 19)"),
    "perfusion": ("PerFusion", "ours", "for the merchant who asks (Eq. 13)"),
    "wrong_user": ("PerFusion, wrong merchant", "wrong", "control: another merchant's features"),
}

#: paired difference of arms -> its name, in the order of the table.
PAIRS = {
    "perfusion - base": "PerFusion minus base",
    "perfusion - dpo": "PerFusion minus DPO",
    "perfusion - wrong_user": "PerFusion for the right merchant minus for a wrong one",
    "dpo - base": "DPO minus base",
    "sft - base": "SFT minus base",
    "wrong_user - base": "PerFusion for a wrong merchant minus base",
}

#: metric of a picture -> (name, one line).
METRICS = {
    "true_utility": ("True utility", "what the merchant would really gain; known only in a planted marketplace"),
    "perfusion_rm": ("PerFusionRM", "personal reward, in units of scale times cosine"),
    "personal": ("Personal part", "the part of true utility that differs between merchants"),
    "prompt_fit": ("Fit to the prompt", "the part of true utility that asks whether the words were followed"),
    "everybody": ("General taste", "the part of true utility that all merchants share"),
    "clip_score": ("CLIP Score", "fit of picture and words, 100 times a cosine"),
    "pickscore": ("PickScore", "what people in general would pick"),
    "aesthetic": ("Aesthetic", "beauty of the picture alone"),
    "cleanness_db": ("Cleanness, dB", "closeness to a clean drawing of the same garment"),
    "diversity": ("Diversity", "1 minus the mean cosine between an arm's pictures; 0 when it always draws the same"),
}

#: gate -> the question it answers.
GATES = {
    "data": "Is this dataset fit to train on?",
    "reward": "Does knowing the merchant help to predict what is picked?",
    "load": "Does the saved model load in a clean process and give the same numbers?",
    "promotion": "Is this model better than the one that serves now, and no worse in general?",
}

#: stage -> what it does, in the order of the graph.
STAGES = {
    "validate": "check every row and picture",
    "split": "filter users, split records",
    "backbones": "CLIP and diffusion backbones",
    "pickscore": "tune the user-blind baseline",
    "reward": "train PerFusionRM",
    "evaluate-reward": "rank held-out groups",
    "encode": "cache latents and text",
    "dpo": "align the backbone (DPO)",
    "sft": "fine-tune the SFT baseline",
    "generator": "train PerFusion",
    "evaluate-generator": "generate and score pictures",
}

GLOSSARY = {
    "Group": "What one merchant saw at once for one prompt: a handful of candidate pictures, some of them picked.",
    "MAP": "Mean average precision: how near the top of the ranking the picked pictures stand. 1 is perfect. Random "
    "order does not give 0: its value depends on how many were picked and stands beside every MAP as the floor.",
    "GAUC": "The chance that a picked picture is ranked above one that was not, within a group. 0.5 is random, 1 is "
    "perfect; equal scores count one half.",
    "Share of the gap closed": "How far PerFusionRM gets from the tuned user-blind model (0 %) to the reachable "
    "ceiling (100 %), in GAUC.",
    "Reachable ceiling": "A scorer that sees every garment's true attributes and learns taste from the same history. "
    "Only a planted marketplace, whose merchants' tastes are known, has one.",
    "Interval": "Where the figure would fall in 95 of 100 repetitions with other merchants from the same market. "
    "Merchants are resampled, not single records, because one merchant's records resemble each other.",
    "Paired difference": "Two models on the same merchants, prompts and noise, subtracted item by item. If its "
    "interval stays on one side of 0, the difference is not luck.",
    "True utility": "How much the merchant likes a picture in the planted marketplace, free of noise. Our own reward "
    "model could flatter our own generator; this judge cannot.",
    "Right minus wrong merchant": "The same prompt and noise, generated for the merchant and for another one, both "
    "judged by the merchant. If this is 0 the generator learned general taste, not personal taste.",
    "User-swap win rate": "The share of merchants for whom the picture made for them beats the one made for another.",
    "Twin": "A tiny model of the same class as a published scorer, used where its weights are not at hand. A twin's "
    "score is marked [twin] and is not comparable with published numbers.",
    "Inconclusive": "The data cannot tell. It never opens a gate, and a tie never promotes.",
    "Quarantined": "Rows that break a rule; kept in work/quarantine with the rule and the value.",
    "Filtered": "Records of merchants with too few usable records to learn from; kept for the cold-start slice.",
    "Dropped": "Groups without a comparison: nothing picked, or everything.",
}

ICONS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading: fixed digits, a real minus sign, an en dash for what does not exist."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return number(value, digits) if round(value, digits) == 0 else f"{value:+,.{digits}f}".replace("-", MINUS)


def interval(figure: Figure | None, digits: int = 3) -> str:
    """The bounds alone, "[.., ..]"; says so when there were too few merchants for them."""
    if figure is None or not figure.bounded:
        return ""
    if not figure.certain:
        return "too few merchants"
    return f"[{number(figure.low, digits)},{SPACE}{number(figure.high, digits)}]"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.{digits}f}{SPACE}%".replace("-", MINUS)


def seconds(value: float | None) -> str:
    """A duration: "4.2 s", "3 min 20 s", "1 h 05 min"."""
    if value is None:
        return "\N{EN DASH}"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def split_reason(reason: str) -> tuple[str, str]:
    """ "fail: too few" -> ("fail", "too few"); a reason without a verdict keeps its text."""
    verdict, colon, text = reason.partition(": ")
    return (verdict, text) if colon and verdict in ICONS else ("", reason)


def humane(text: str) -> str:
    """A reason with the names of the pages instead of those of the tables."""
    for name in sorted((*METRICS, *SCORERS), key=len, reverse=True):
        title = METRICS.get(name, SCORERS.get(name))
        if "_" in name and title is not None:
            text = re.sub(rf"\b{name}\b", title[0], text)
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def metric_name(metric: str) -> str:
    """The name of a picture metric; a twin keeps its mark."""
    plain, twin, _ = metric.partition("[")
    name = METRICS.get(plain, (plain.replace("_", " "), ""))[0]
    return f"{name} [twin]" if twin else name


def flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of a nested parameter file, in its own order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in record.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
