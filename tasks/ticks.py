"""What became of a schedule's ticks, and whether there is anything new since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.livelog import append_record, read_log

__all__ = ["Inputs", "last_settled", "nothing_new", "record_tick"]

#: Outcomes after which the same inputs would only give the same again. A failed run is tried again at the next tick.
SETTLED = ("promoted", "unchanged", "refused")


@dataclass(frozen=True)
class Inputs:
    """What a scheduled run is made from.

    Attributes:
        commit: full hash; code, and the version of the data that data.dvc pins.
        params: hash of the parameter file's text.
        folder: the dataset folder that the schedule names, None for the commit's pinned data.
        content: canonical content hash of that folder, None for the pinned data or where it was not looked at.
    """

    commit: str
    params: str
    folder: str | None = None
    content: str | None = None


def nothing_new(last: Mapping[str, Any] | None, now: Inputs) -> str | None:
    """Why a run would be in vain, in a sentence; None where something is new.

    Args:
        last: the record of the last settled run, None where there was none.
        now: the inputs that a run of today would have.
    """
    if last is None or last["inputs"] != asdict(now):
        return None
    when = datetime.fromtimestamp(last["time"], UTC).isoformat(timespec="seconds")
    data = f"the content of {now.folder}" if now.folder is not None else "the data it pins"
    return (
        f"commit {now.commit[:12]}, the parameters and {data} are those of the run that ended {when}"
        f" ({last['outcome']}); force: true runs it all the same"
    )


def last_settled(ticks: Path) -> dict[str, Any] | None:
    """The record of the last run whose outcome the same inputs would only repeat."""
    return next((tick for tick in reversed(read_log(ticks)) if tick["outcome"] in SETTLED), None)


def record_tick(
    ticks: Path, inputs: Inputs | None, outcome: str, reasons: tuple[str, ...], run_id: str | None
) -> None:  # fmt: skip
    """Append what became of a tick, with the time, to the schedule's log: one JSON object a line.

    Args:
        ticks: the log.
        inputs: None where the run was killed and its inputs are not known.
        outcome: promoted, unchanged, refused, failed, crashed or nothing-new.
        reasons: why.
        run_id: of MLflow.
    """
    made_from = None if inputs is None else asdict(inputs)
    append_record(ticks, inputs=made_from, outcome=outcome, reasons=list(reasons), run_id=run_id)
