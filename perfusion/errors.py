"""The project's exceptions: one small family, so that a caller can tell a user's mistake from a defect."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "DivergenceError", "GateError", "PerFusionError", "WeightsError"]


class PerFusionError(Exception):
    """Base of every error a user can cause and mend. Its text names the value, the bound and the remedy."""


class ConfigError(PerFusionError):
    """A parameter file holds an unknown key, a wrong type or a value out of its range."""


class DataError(PerFusionError):
    """A dataset breaks a rule of the layout, or nothing usable is left of it."""


class WeightsError(PerFusionError):
    """Pretrained weights are absent, unreadable or not what their hash says."""


class DivergenceError(PerFusionError):
    """Training left the region in which its numbers mean anything."""


class GateError(PerFusionError):
    """A registry transition was asked for that a gate or the registry's own rules refuse."""
