"""Kill retrainings anywhere and see what is lost: `python -m benchmarks.kills`.

An uninterrupted run of very small models comes first: its outputs are the reference. Then runs are killed, by SIGKILL
and SIGTERM, in every stage and in every step that acts on the registry; the flow's process, DVC's or the trainer's.
After each kill nothing of the run may live, nothing may stand half-written under its final name, and the champions must
be what the log says. The next run, started as a person would start it, must end with the reference's outputs, byte for
byte.

    python -m benchmarks.kills --kills 12                      # a quarter of an hour on two idle cores
    python -m benchmarks.kills --kills 100 --workers 2
    python -m benchmarks.kills --kills 0 --disturbances all    # full disk, store and server gone

Figures go to work/benchmarks/kills.json, after every kill, so that nothing is lost of an interrupted benchmark either.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import OUT, hardware
from benchmarks.kills.attacks import Result, Siege
from benchmarks.kills.disturb import DISTURBANCES, Disturbed, disturb
from benchmarks.kills.place import make_place
from benchmarks.kills.plan import Attack, plan
from benchmarks.kills.table import disturbance_table, kill_table
from perfusion.checkpoint import atomic_write

FILE = OUT / "kills.json"


def main() -> None:
    """Attack, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments")
    parser.add_argument("--workers", type=int, default=1, help="places attacked at the same time")
    parser.add_argument("--folder", type=Path, help="where the places are made, and kept; a temporary one otherwise")
    parser.add_argument("--disturbances", nargs="*", choices=[*DISTURBANCES, "all"], default=["all"])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further kill after that time")
    options = parser.parse_args()
    names = list(DISTURBANCES) if "all" in options.disturbances else options.disturbances
    with tempfile.TemporaryDirectory(prefix="perfusion-kills-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        record = Record(options.seed)
        attacks = plan(options.kills, options.seed)
        with ThreadPoolExecutor(options.workers) as pool:
            shares = [attacks[number :: options.workers] for number in range(options.workers)]
            done = [pool.submit(_besiege, folder, n, share, record, options.minutes) for n, share in enumerate(shares)]
            for share in done:
                share.result()
        if names:
            for found in disturb(names, folder / "small-disk", folder / "data", print):
                record.disturbed(found)
    print(f"\n{hardware()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print(kill_table(record.results))
    print(disturbance_table(record.disturbances))


class Record:
    """Everything seen so far, in a file after every addition."""

    def __init__(self, seed: int) -> None:
        self.results: list[Result] = []
        self.disturbances: list[Disturbed] = []
        self._seed = seed
        self._lock = threading.Lock()

    def killed(self, result: Result) -> None:
        with self._lock:
            self.results.append(result)
            self._write()
        attack = result.attack
        lost = "; ".join(result.losses + result.orphans) or "nothing lost"
        print(
            f"kill {attack.number}: {attack.signal.name} to the {attack.target} in {attack.step} at {attack.at:.2f} "
            f"(hit in {result.hit}), ended after {result.seconds:.1f} s; next run {result.mended.ended} in "
            f"{result.mended.seconds:.0f} s, {' '.join(result.mended.resumed) or 'resumed nothing'}: {lost}",
            flush=True,
        )

    def disturbed(self, found: Disturbed) -> None:
        self.disturbances.append(found)
        self._write()
        print(found, flush=True)

    def _write(self) -> None:
        told = {
            "hardware": hardware(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self._seed,
            "kills": len(self.results),
            "orphans": sum(len(result.orphans) for result in self.results),
            "losses": sum(bool(result.losses) for result in self.results),
            "results": [
                {**asdict(result), "attack": {**asdict(result.attack), "signal": result.attack.signal.name}}
                for result in self.results
            ],
            "disturbances": [asdict(found) for found in self.disturbances],
        }
        atomic_write(FILE, json.dumps(told, indent=1).encode())


_drawing = threading.Lock()


def _besiege(folder: Path, number: int, attacks: list[Attack], record: Record, minutes: float) -> None:
    """Attack one place again and again."""
    if not attacks:
        return
    began = datetime.now(UTC)
    with _drawing:  # the dataset is shared
        place = make_place(folder / f"place{number}", folder / "data")
    with Siege(place, lambda said: print(f"place {number}: {said}", flush=True)) as siege:
        for attack in attacks:
            if (datetime.now(UTC) - began).total_seconds() > 60 * minutes:
                return
            try:
                result = siege.attack(attack)
            except (RuntimeError, TimeoutError) as error:
                result = Result(attack, losses=(f"not carried out: {error}",))
            record.killed(result)


if __name__ == "__main__":
    main()
