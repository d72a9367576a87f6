"""What the pipeline costs when there is nothing to do: `python -m benchmarks.pipeline`.

An unchanged `make retrain` beside the bare costs it stands on: python, torch (which it no longer imports), Prefect and
MLflow, `dvc status`, Prefect's server. Everything runs in a process of its own, in turn, as a person would start it.

The workspace must be finished: every stage cached. `--params params/smoke.yaml` trains the small models first, where
they are not there yet (minutes); without it the repository's own workspace is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import measure, record, show

PERFUSION = ("-m", "flows.cli")
#: Waits until Prefect's server answers, as the flow does, and stops it.
SERVER = """
from pathlib import Path
from flows.environment import quieten
from flows.server import start_server
quieten(Path.cwd())
start_server()()
"""


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, help="parameter file; the repository's own workspace otherwise")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run")
    options = parser.parse_args()
    workspace = Path("work/workspaces") / options.params.stem if options.params else Path()
    retrain = [*PERFUSION, "retrain", *(["--params", str(options.params)] if options.params else [])]
    finish(workspace, retrain)
    arms = {
        "unchanged retrain": lambda: run(retrain),
        "perfusion --help": lambda: run([*PERFUSION, "--help"]),
        "python": lambda: run(["-c", "pass"]),
        "import torch": lambda: run(["-c", "import torch"]),
        "import prefect, mlflow": lambda: run(["-c", "import prefect, mlflow"]),
        "dvc status, once": lambda: run(["-m", "dvc", "status", "--json"], workspace),
        "Prefect's server, start to answer": lambda: run(["-c", SERVER]),
    }
    timings = measure(arms, "unchanged retrain", rounds=options.rounds, warmup=0)  # `finish` has warmed what there is
    assert_unchanged(workspace)
    show("Pipeline: nothing to do", timings, "run")
    seconds = {timing.arm: statistics.median(timing.seconds) for timing in timings}
    headlines = {
        "pipeline": {"unchanged_seconds": seconds["unchanged retrain"], "help_seconds": seconds["perfusion --help"]}
    }
    record("pipeline", timings, headlines, workspace=str(workspace))


def run(arguments: Sequence[str], folder: Path = Path()) -> None:
    """A python process in a folder, with this checkout's code; its output is kept back unless it fails.

    Raises:
        RuntimeError: it fails; holds the end of its output.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-2000:]}")


def finish(workspace: Path, retrain: Sequence[str]) -> None:
    """Retrain until there is nothing left to do: once where the workspace is finished, else twice."""
    for _ in range(2):
        run(retrain)
        if outcome(workspace)["cached"]:
            return
    assert_unchanged(workspace)


def assert_unchanged(workspace: Path) -> None:
    """See that the last run of a workspace found every stage cached.

    Raises:
        RuntimeError: a stage ran, so that what was measured is not an unchanged run.
    """
    if not (last := outcome(workspace))["cached"]:
        raise RuntimeError(f"{workspace}: a stage ran ({last['status']}: {last['reasons']}); nothing is measured so")


def outcome(workspace: Path) -> dict[str, object]:
    """How the last run of a workspace ended."""
    return dict(json.loads((workspace / "work" / "outcome.json").read_text()))


if __name__ == "__main__":
    main()
