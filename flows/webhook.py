"""Tell a webhook how a scheduled run ended. The address is a secret: it is read where it is used, and never told."""

from __future__ import annotations

import os
from typing import Any

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from perfusion.errors import PerFusionError

__all__ = ["ADDRESS", "announce"]

ADDRESS = "PERFUSION_WEBHOOK"  # environment variable
PATIENCE = 10.0  # seconds for one answer
PAUSES = [2.0, 10.0, 30.0]  # seconds before each further attempt


class WebhookError(PerFusionError):
    """The webhook did not take a message; names the status or the kind of error, not the address."""


def announce(message: dict[str, Any]) -> None:
    """Post a message as JSON to the address in the environment; without one nothing happens.

    A webhook that does not take it changes nothing about the run: a warning says so.
    """
    if not os.environ.get(ADDRESS):
        return
    state = post(message, return_state=True)
    if not state.is_completed():
        try:
            logger = get_run_logger()
        except MissingContextError:  # a hook, which has no run of its own
            logger = get_logger("webhook")
        logger.warning("the webhook was not told: %s", state.message)


@task(name="webhook", retries=len(PAUSES), retry_delay_seconds=PAUSES, cache_policy=NO_CACHE, persist_result=False)
def post(message: dict[str, Any]) -> None:
    """One attempt.

    Raises:
        WebhookError: no answer, or another one than 2xx.
    """
    try:
        answer = httpx.post(os.environ[ADDRESS], json=message, timeout=PATIENCE)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WebhookError(f"{type(error).__name__}, no answer") from None
    if not answer.is_success:
        raise WebhookError(f"it answered with status {answer.status_code}")
