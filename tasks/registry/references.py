"""From what a person types to a registered version: 3, champion, generator@3, perfusion-generator/3."""

from __future__ import annotations

import re

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from perfusion.errors import GateError
from tasks.registry.transitions import ROLES

__all__ = ["version_named"]

_REFERENCE = re.compile(r"(?:(?P<model>[a-z][a-z0-9-]*)[@/])?(?P<version>[1-9]\d*|[a-z]+)")


def version_named(client: MlflowClient, family: str, text: str) -> tuple[str, int]:
    """The registered model and version that a text names.

    Args:
        client: of the store.
        family: whose models "generator" and "reward" are.
        text: a version or alias of the generator, or MODEL@VERSION or MODEL/VERSION, where MODEL is a role or a
            registered name and VERSION a number or an alias.

    Raises:
        GateError: it names none.
    """
    how = "name a version such as 3, champion, reward@2 or perfusion-generator/3; `perfusion history` lists champions"
    matched = _REFERENCE.fullmatch(text)
    if matched is None:
        raise GateError(f"{text!r} names no version\nremedy: {how}")
    model, version = matched["model"] or "generator", matched["version"]
    name = f"{family}-{model}" if model in ROLES else model
    try:
        if version.isdigit():
            client.get_model_version(name, version)
            return name, int(version)
        return name, int(client.get_model_version_by_alias(name, version).version)
    except MlflowException as error:
        raise GateError(f"{text}: there is no such version of {name} ({error.message})\nremedy: {how}") from None
