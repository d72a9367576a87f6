"""Child processes that never outlive the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["cpu_environment", "die_with_parent", "group", "stop_group", "stop_running"]

_PR_SET_PDEATHSIG = 1
_running: set[subprocess.Popen[str]] = set()


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent ends, however it ends; does nothing outside Linux.

    Killing `dvc` alone would otherwise leave a trainer running, and the next run would start a second writer. The
    kernel tells of a parent that ends from now on; where it ended before, this process ends here.

    Args:
        parent: process id of whoever started this process, where that is known. Otherwise a parent outside this
            process's session is taken for a stranger that adopted it, unless this process leads the session.
    """
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if _adopted() if parent is None else os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _adopted() -> bool:
    """Whether a stranger is this process's parent: the one that started it has ended."""
    session = os.getsid(0)
    try:
        return session != os.getpid() and os.getsid(os.getppid()) != session
    except ProcessLookupError:  # ended between the two questions
        return True


@contextmanager
def group(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nobody is left when the block ends, however it ends.

    Args:
        command: program and arguments.
        options: of `subprocess.Popen`; its output is text.
    """
    dies = partial(die_with_parent, os.getpid())
    process = subprocess.Popen(
        command, text=True, errors="replace", start_new_session=True, preexec_fn=dies, **options
    )  # fmt: skip
    _running.add(process)
    try:
        yield process
    finally:
        stop_group(process)
        _running.discard(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def stop_running() -> None:
    """Stop every group that runs now; whoever waits for one finds it ended."""
    for process in list(_running):
        stop_group(process)


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
