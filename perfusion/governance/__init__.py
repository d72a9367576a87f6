"""Gates, lineage and drift: pure functions that return decisions with reasons."""

from perfusion.governance.decision import Check, Decision, Verdict, at_least, at_most, decide
from perfusion.governance.gates import load_gate, reward_gate
from perfusion.governance.lineage import compare_lineage, lineage_record
from perfusion.governance.promotion import promotion_gate

__all__ = [
    "Check",
    "Decision",
    "Verdict",
    "at_least",
    "at_most",
    "compare_lineage",
    "decide",
    "lineage_record",
    "load_gate",
    "promotion_gate",
    "reward_gate",
]
