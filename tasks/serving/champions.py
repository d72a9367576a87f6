"""What serves, and following the registry's aliases.

A new champion is checked and loaded beside the one that serves, and then takes its place by one assignment. Whoever is
being answered keeps the old one until the answer is given; nobody else holds it. What cannot be loaded, or is not what
was registered, changes nothing but what `/health` says.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from mlflow.exceptions import MlflowException

from perfusion.errors import GateError
from tasks.models.served import Served, load_served
from tasks.registry import Registry
from tasks.registry.transitions import ROLES, pending_intent
from tasks.serving.worker import Worker

__all__ = ["Champions", "NotServing", "Place", "settled_champions"]

_LONGEST_WAIT = 600.0  # seconds before a version that did not load is tried again
_log = logging.getLogger(__name__)


class NotServing(Exception):
    """No version of a model can answer; its text says why."""


class Place:
    """The place of one role's champion.

    Attributes:
        name: registered name.
        champion: version that the alias names, as last seen.
        problem: why another one, or none, serves; None when all is well.
        since: when the one that serves began to.
    """

    def __init__(self, name: str, worker: Worker) -> None:
        self.name = name
        self.worker = worker
        self.champion: int | None = None
        self.problem: str | None = None
        self.since: datetime | None = None
        self._served: Served | None = None
        self._failures = 0
        self._again = 0.0

    @property
    def version(self) -> int | None:
        """The version that serves; None: none does."""
        return None if self._served is None else self._served.version

    def model(self) -> Served:
        """What serves at this moment.

        Raises:
            NotServing: nothing does.
        """
        served = self._served
        if served is None:
            raise NotServing(
                f"{self.name}: {self.problem or 'no champion yet; `perfusion history` tells of promotions'}"
            )
        return served

    def see(self, champion: int | None) -> None:
        """Take note of what the alias names; another one than before is tried at once."""
        if champion != self.champion:
            self.champion, self._failures, self._again = champion, 0, 0.0
        if champion == self.version:
            self.problem = None

    def due(self) -> bool:
        """Whether the champion is to be loaded now: it does not serve, and did not fail a moment ago."""
        return self.champion != self.version and time.monotonic() >= self._again

    def failed(self, why: str, interval: float) -> None:
        """The champion cannot be loaded: keep what serves, and try again ever later."""
        self.problem = f"version {self.champion} cannot serve: {why}"
        self._again = time.monotonic() + min(_LONGEST_WAIT, interval * 2**self._failures)
        self._failures += 1

    def serve(self, served: Served | None) -> None:
        """From now on this one answers; the old one is let go when its last answer is given."""
        self._served, self.since, self.problem = served, datetime.now(UTC), None
        self.worker.after_those(gc.collect)


class Champions:
    """The champions of a family, loaded, and a thread that follows the registry.

    Args:
        registry: of the store.
        family: e.g. "perfusion".
        workers: role -> whoever asks its model.
        interval: seconds between two looks at the registry.
        say: told what changed, one line each.

    Attributes:
        places: by role.
        problem: why the registry could not be read, when it was last looked at; None when it could.
        looked: when that was.
    """

    def __init__(
        self, registry: Registry, family: str, workers: Mapping[str, Worker], interval: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.places = {role: Place(f"{family}-{role}", workers[role]) for role in ROLES}
        self.problem: str | None = None
        self.looked: datetime | None = None
        self.interval = interval
        self._registry, self._family, self._say = registry, family, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champions", daemon=True)

    def start(self) -> None:
        """Load what there is, then follow the aliases in a thread of its own."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the load that it may be at."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Read the aliases once, and load what is not there yet; both models of a pair change places together."""
        try:
            found = settled_champions(self._registry, self._family)
        except (GateError, MlflowException, OSError) as error:
            self._trouble(f"the registry cannot be read: {_short(error)}")
            return
        finally:
            self.looked = datetime.now(UTC)
        if found is None:
            self._trouble("a promotion or rollback is under way, or was interrupted; the next transition resolves that")
            return
        self.problem = None
        for place in self.places.values():
            place.see(found[place.name])
        ready = [(place, self._load(place)) for place in self.places.values() if place.due()]
        for place, served in ready:
            if served is not None or place.champion is None:
                self._say(f"{place.name}: version {_shown(place.champion)} serves, {_shown(place.version)} before")
                place.serve(served)

    def _load(self, place: Place) -> Served | None:
        """The champion of a place; None when there is none, or when it cannot serve, and then the place says why."""
        if place.champion is None:
            return None
        try:
            return load_served(self._registry, place.name, place.champion)
        except Exception as error:  # whatever an artifact or its code does wrong, the old one goes on serving
            place.failed(_short(error), self.interval)
            self._say(f"{place.name}: {place.problem}; version {_shown(place.version)} goes on serving")
            if not isinstance(error, GateError):
                _log.exception("%s version %s", place.name, place.champion)
            return None

    def _follow(self) -> None:
        while not self._ended.wait(self.interval):
            try:
                self.look()
            except Exception as error:  # the thread must outlive it, and whoever looks at /health must learn of it
                self._trouble(f"unexpected {type(error).__name__}: {_short(error)}")
                _log.exception("looking at the registry")

    def _trouble(self, problem: str) -> None:
        if problem != self.problem:
            self._say(f"{self._family}: {problem}")
        self.problem = problem


def settled_champions(registry: Registry, family: str) -> dict[str, int | None] | None:
    """The champions by registered name; None while a transition moves them, so that no half of a pair is seen.

    Raises:
        GateError: the promotion log was altered.
        MlflowException: the store does not answer.
    """
    before = len(registry.ledger.entries())
    found = registry.champions(family)
    after = registry.ledger.entries()
    return None if len(after) != before or pending_intent(after) is not None else found


def _short(error: Exception, most: int = 500) -> str:
    text = str(error.message if isinstance(error, MlflowException) else error) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


def _shown(version: int | None) -> str:
    return "none" if version is None else str(version)
