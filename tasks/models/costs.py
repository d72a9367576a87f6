"""What registered generators cost to serve: seconds a picture and peak memory, each in a clean process of its own.

The processes live side by side and take turns, so that whatever else the machine does falls on each of them alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import IO

import pandas as pd
import torch

from perfusion.errors import GateError
from tasks.models.clean_process import clean_environment
from tasks.process import group

__all__ = ["serving_costs"]

#: Draws the probe once for each line it reads, and answers with seconds and the process's largest memory so far.
_SCRIPT = """
import json, logging, resource, sys, time
logging.disable(logging.WARNING)
import mlflow, pandas
probe, uri = sys.argv[1:]
told, sys.stdout = sys.stdout, sys.stderr
model, rows = mlflow.pyfunc.load_model(uri), pandas.read_parquet(probe)
for _ in sys.stdin:
    began = time.perf_counter()
    drawn = len(model.predict(rows))
    seconds = (time.perf_counter() - began) / drawn
    import torch
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + device
    print(json.dumps({"seconds": seconds, "memory_mib": memory}), file=told, flush=True)
"""


def serving_costs(
    models: Mapping[str, str], probe: pd.DataFrame, tracking_uri: str, rounds: int = 5, timeout: float = 600.0
) -> dict[str, dict[str, float]]:
    """Measure registered generators side by side.

    Args:
        models: name -> e.g. "models:/perfusion-generator/3".
        probe: a request.
        tracking_uri: of the store.
        rounds: how often each takes its turn; one more turn before them is not counted.
        timeout: seconds of a turn, loading included.

    Returns:
        name -> `seconds_per_picture`, the median over rounds, and `memory_mib`, the process's largest: resident, and
        allocated on the accelerator where there is one.

    Raises:
        GateError: one does not load or answer; holds the last lines of what it said.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perfusion-costs-")))
        probe.to_parquet(folder / "probe.parquet")
        running = {name: stack.enter_context(_server(folder, uri, tracking_uri)) for name, uri in models.items()}
        told = {name: [_turn(server, models[name], timeout)] for name, server in running.items()}
        for _ in range(rounds):
            for name, server in running.items():
                told[name].append(_turn(server, models[name], timeout))
    return {
        name: {
            "seconds_per_picture": median(answer["seconds"] for answer in answers[1:]),
            "memory_mib": answers[-1]["memory_mib"],
        }
        for name, answers in told.items()
    }


Server = tuple["subprocess.Popen[str]", IO[str]]


@contextmanager
def _server(folder: Path, uri: str, tracking_uri: str) -> Iterator[Server]:
    """A process with the model loaded, and the file it complains to; it ends with the block."""
    command = [sys.executable, "-c", _SCRIPT, str(folder / "probe.parquet"), uri]
    environment = clean_environment(tracking_uri, torch.get_num_threads())
    with (
        tempfile.TemporaryFile("w+", dir=folder) as said,
        group(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment
        ) as process,
    ):
        assert process.stdin is not None
        with process.stdin:
            yield process, said


def _turn(server: Server, uri: str, timeout: float) -> dict[str, float]:
    """Have a server draw the probe once; one that takes too long is killed, and so gives no answer."""
    process, said = server
    assert process.stdin is not None
    assert process.stdout is not None
    watch = threading.Timer(timeout, process.kill)
    watch.start()
    with contextlib.suppress(BrokenPipeError):  # then there is no answer
        os.write(process.stdin.fileno(), b"draw\n")  # not through its buffer, which would be flushed again at the end
    answer = process.stdout.readline()
    watch.cancel()
    if not answer:
        process.wait()
        said.seek(0)
        lines = "\n  ".join(said.read().strip().splitlines()[-6:]) or "nothing"
        raise GateError(
            f"{uri}: a clean process ended with status {process.returncode}, or was ended after {timeout:g} s; "
            f"it said:\n  {lines}"
        )
    return dict(json.loads(answer))
