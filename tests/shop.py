"""A workspace for tests of the flow, and how to retrain in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from prefect.client.schemas.objects import State

from tasks.workspace import REPOSITORY, Workspace, open_workspace


@dataclass(frozen=True)
class Shop:
    """A workspace for tests, and how to retrain in it."""

    workspace: Workspace
    params: Path
    data: Path

    @classmethod
    def at(cls, place: Path, data: Path) -> Self:
        """A shop in an empty folder."""
        return cls(open_workspace(place / "workspace", place / "mlruns"), place / "smoke.yaml", data)

    def retrain(self, **changes: Any) -> State[Any]:
        """Run the flow after changing parameters, e.g. `reward={"shuffle_users": True}`."""
        from flows.retrain import retrain

        values = yaml.safe_load((REPOSITORY / "params" / "smoke.yaml").read_text())
        for section, change in changes.items():
            values[section] = {**values[section], **change}
        self.params.write_text(yaml.safe_dump(values))
        given = (self.params, self.data, self.workspace.root, self.workspace.mlruns)
        return retrain(*map(str, given), return_state=True)

    def outcome(self) -> dict[str, Any]:
        return dict(json.loads(self.workspace.outcome.read_text()))
