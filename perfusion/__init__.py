"""PerFusion: personalised text-to-image retraining, after "Sell It Before You Make It" (KDD 2026)."""

__version__ = "0.1.0"
