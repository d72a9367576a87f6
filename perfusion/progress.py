"""Progress told on the screen, by whatever takes long."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Progress"]


@dataclass
class Progress:
    """Progress lines with rate and time to go, on a terminal as a bar that redraws, in a log as a line now and then."""

    name: str
    total: int
    start: int = 0
    every_seconds: float = 5.0
    _began: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if done < self.total and now - self._shown < (0.2 if terminal else self.every_seconds):
            return
        self._shown = now
        rate = (done - self.start) / max(now - self._began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else math.inf
        eta = f"{int(left // 60)}:{int(left % 60):02d}" if math.isfinite(left) else "?"
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        line = (
            f"{self.name}  {done}/{self.total}  {100 * done / self.total:3.0f}%  eta {eta}  {rate:.2f} it/s  {values}"
        )
        end = "\n" if not terminal or done == self.total else ""
        sys.stderr.write(("\r\x1b[2K" if terminal else "") + line + end)
        sys.stderr.flush()
