"""One retraining to be attacked: `python -m benchmarks.kills.flow PARAMS DATA ROOT MLRUNS [--any-disk]`.

It is what `perfusion retrain` does, in places of its own. Two things differ: models as small as these would not earn a
promotion, so that the promotion gate is told to pass, and `--any-disk` leaves out the refusal of a disk with too little
space.
"""

from __future__ import annotations

import sys

from flows import server
from flows.cli_common import run_flow
from flows.environment import quieten
from perfusion.errors import PerFusionError
from tasks.workspace import REPOSITORY


def main(places: list[str], any_disk: bool) -> int:
    """Run the flow to its end; 2 when it failed."""
    quieten(REPOSITORY)
    server.PATIENCE = 3600.0  # several runs at a time on a busy machine
    ready = server.start_server()
    from flows import retrain as module
    from perfusion.governance import Decision
    from tasks import gates

    def passes(workspace: object, params: gates.Params, registered: object) -> Decision:
        told = ("pass: told so by the kill matrix",)
        return Decision("promotion", "pass", told, thresholds=params.gates.model_dump())

    gates.promotion = passes
    if any_disk:
        module.require_disk = lambda workspace, least_mib=0: None
    ready()
    try:
        state = run_flow(module.retrain, *places)
    except PerFusionError as error:
        print(f"error: {error}", flush=True)
        return 2
    print(f"{state.name}: {state.message}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if word != "--any-disk"], "--any-disk" in sys.argv))
