"""SIGTERM ends a run promptly, whatever the run is waiting for."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from tasks.process import stop_running

__all__ = ["end_promptly"]


def end_promptly(patience: float = 10.0) -> None:
    """From now on SIGTERM stops the running stage, and ends this process `patience` seconds later if it still lives.

    Prefect makes the signal the flow's crash and reports that to its server: again and again, where the server is gone.
    Its handler is left as it is. The signal is seen beside it, by a thread, through Python's wakeup descriptor.
    """
    ours, pythons = socket.socketpair()  # the thread below keeps both alive
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.fileno())

    def watch(_: socket.socket) -> None:
        while signal.SIGTERM not in ours.recv(64):
            pass
        stop_running()
        time.sleep(patience)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, args=(pythons,), name="end-promptly", daemon=True).start()
