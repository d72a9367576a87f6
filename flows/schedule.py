"""Scheduled retrainings as a deployment. prefect.yaml says the same for a server with work pools.

One run at a time is the flow's business, by a lock that goes away with its process. Prefect's concurrency limit of a
deployment would do it too, but it is a lease: the run is stopped when the lease cannot be renewed while the server
restarts, and where run and server die together, the place stays taken and every later tick is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefect import serve as serve_deployments
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron

from flows.scheduled import scheduled
from perfusion.errors import ConfigError

__all__ = ["deployment", "serve"]


def deployment(cron: str, name: str, parameters: Mapping[str, str | bool]) -> RunnerDeployment:
    """A deployment of scheduled retrainings.

    Args:
        cron: minute hour day month weekday, in UTC.
        name: of the deployment.
        parameters: of the flow `scheduled`.

    Raises:
        ConfigError: `cron` is no cron expression.
    """
    try:
        schedule = Cron(cron, timezone="UTC")
        return RunnerDeployment.from_flow(scheduled, name, schedule=schedule, parameters=dict(parameters))
    except ValueError:
        raise ConfigError(
            f"--cron {cron!r}: not a cron expression; it has five fields, minute hour day month weekday: '0 3 * * *'"
        ) from None


def serve(cron: str, name: str, parameters: Mapping[str, str | bool]) -> None:
    """Make the deployment and run what falls due, in processes started from here, until interrupted."""
    serve_deployments(deployment(cron, name, parameters), pause_on_shutdown=False)
