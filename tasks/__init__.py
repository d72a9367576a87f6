"""Adapters between the library and the tools: DVC stages, Great Expectations, MLflow, reports."""
