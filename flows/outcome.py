"""How a retraining ended, as a value that flows show, keep and tell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

__all__ = ["Outcome", "Status"]

Status = Literal["promoted", "unchanged", "refused", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a flow run ended.

    Attributes:
        status: "promoted"; "unchanged": the champion is this model already; "refused": a gate stayed closed; "failed".
        reasons: why, one sentence each.
        run_id: MLflow's run of the flow run, None when it ended before there was one.
        versions: registered name -> version that this run made or met.
        seconds: wall time of the flow.
        cached: whether every stage was cached.
    """

    status: Status
    reasons: tuple[str, ...]
    run_id: str | None = None
    versions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False

    def state(self) -> State[Any]:
        """The Prefect state that shows it."""
        if self.status == "failed":
            return Failed(message="\n".join(self.reasons))
        return Completed(name=self.status.capitalize(), message="\n".join(self.reasons))

    def to_json(self) -> str:
        """The text of `work/outcome.json`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "reasons": tuple(values["reasons"])})
