"""Child processes that never outlive the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

__all__ = ["cpu_environment", "die_with_parent", "stop_group"]

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, however it ends; does nothing outside Linux.

    Killing `dvc` alone would otherwise leave a trainer running, and the next run would start a second writer.
    """
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def stop_group(process: subprocess.Popen[str] | subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Stop a process that leads a group of its own, with all its children: politely, then for certain."""
    deadline = time.monotonic() + patience
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        while _group_lives(process.pid) and time.monotonic() < deadline and number == signal.SIGTERM:
            process.poll()
            time.sleep(0.05)
    process.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def cpu_environment(threads: int) -> dict[str, str]:
    """Variables that keep numerical libraries to `threads` threads; they are read at import, hence the environment."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
