"""The model registry: MLflow versions and aliases, with the compare-and-swap and the audit trail MLflow lacks.

registry = open_registry("sqlite:////path/mlruns/mlflow.db", Path("mlruns"))
registry.promote({"perfusion-reward": 3, "perfusion-generator": 3}, expected=..., decisions=[...])
registry.rollback("perfusion-generator", reason="returns rose")
"""

from tasks.registry.ledger import Entry, Ledger
from tasks.registry.manifest import changed_files, file_hashes, manifest_digest
from tasks.registry.references import version_named
from tasks.registry.registry import CHALLENGER, CHAMPION, JUDGED_BY, Registry, open_registry
from tasks.registry.transitions import Evidence, Transition, family_of

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "JUDGED_BY",
    "Entry",
    "Evidence",
    "Ledger",
    "Registry",
    "Transition",
    "changed_files",
    "family_of",
    "file_hashes",
    "manifest_digest",
    "open_registry",
    "version_named",
]
