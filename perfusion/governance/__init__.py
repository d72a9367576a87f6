"""Gates, lineage and drift: pure functions that return decisions with reasons."""

from perfusion.governance.decision import Check, Decision, Verdict, at_least, at_most, decide

__all__ = ["Check", "Decision", "Verdict", "at_least", "at_most", "decide"]
