"""Is everything here as it should be: environment, versions, space, weights, data, store, registry."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

import psutil

from perfusion.config import Params
from perfusion.errors import PerFusionError
from tasks.dvc_push import credentials_under_git, remote_home
from tasks.quiet import QUIET
from tasks.run_stage import LEAST_FREE_MIB
from tasks.store import require_answer
from tasks.workspace import Workspace

__all__ = ["Finding", "examine", "machine_findings", "workspace_findings"]

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        state: "ok"; "note": works, but know it; "wrong": mend it.
        detail: the value, and for "wrong" the remedy.
    """

    name: str
    state: State
    detail: str


def examine(workspace: Workspace | None, environment: Mapping[str, str]) -> list[Finding]:
    """Look at the machine and, where there is one, at the workspace. What cannot be seen is "wrong", not an error."""
    findings = list(machine_findings(environment))
    return findings if workspace is None else [*findings, *workspace_findings(workspace, environment)]


def machine_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Interpreter, machine, package versions, torch and its torchvision."""
    memory = psutil.virtual_memory()
    recent: State = "ok" if sys.version_info >= (3, 11) else "wrong"
    yield Finding("python", recent, f"{platform.python_version()}, needs 3.11 or newer")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "machine", "ok", f"{cores} cores, {memory.total / 2**30:.0f} GiB of memory, {memory.available / 2**30:.0f} free"
    )
    yield _versions()
    yield _torch()
    yield _torchvision()
    yield _telemetry(environment)


def workspace_findings(workspace: Workspace, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Space, parameters, weights, data, a run going on, the MLflow store and the registry's log."""
    free = shutil.disk_usage(workspace.root).free // 2**20
    enough: State = "ok" if free >= LEAST_FREE_MIB else "wrong"
    yield Finding("disk", enough, f"{free} MiB free at {workspace.root}, a retraining needs {LEAST_FREE_MIB}")
    try:
        params = workspace.params()
    except PerFusionError as error:
        yield Finding("parameters", "wrong", str(error))
        return
    yield Finding("parameters", "ok", f"{workspace.params_file}, models {params.name}-reward, {params.name}-generator")
    yield from _weights(params, environment)
    yield _data(workspace)
    yield _runs(workspace)
    yield _remote(workspace)
    yield from _registry(workspace, params.name)


def _versions() -> Finding:
    """Installed packages against the pins that this package declares."""
    wrong = []
    for requirement in requires("perfusion") or []:
        pinned = re.fullmatch(r"([A-Za-z0-9_.-]+)==([^;\s]+)", requirement)
        if pinned is None:
            continue
        try:
            found = version(pinned[1]).partition("+")[0]
        except PackageNotFoundError:
            found = "absent"
        if found != pinned[2]:
            wrong.append(f"{pinned[1]} {found}, pinned {pinned[2]}")
    if wrong:
        return Finding("versions", "wrong", f"{'; '.join(wrong)}: run `make install`")
    return Finding("versions", "ok", "installed packages are those pinned")


def _torch() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__} on the CPU, attention by SDPA")
    try:
        attention = f"xformers {version('xformers')}"
    except PackageNotFoundError:
        attention = "SDPA"
    return Finding("torch", "ok", f"{torch.__version__} on {torch.cuda.get_device_name()}, attention by {attention}")


def _torchvision() -> Finding:
    from perfusion import torchvision_guard

    guarded = torchvision_guard.install()
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        return Finding("torchvision", "wrong", f"does not import ({error}): run `make install`")
    how = "its compiled part does not fit this torch; the guard stands in for it" if guarded else "whole"
    return Finding("torchvision", "note" if guarded else "ok", f"{torchvision.__version__}: {how}")


def _telemetry(environment: Mapping[str, str]) -> Finding:
    loud = [name for name, value in QUIET.items() if environment.get(name) != value]
    if loud:
        return Finding("telemetry", "wrong", f"not off: {', '.join(loud)}; start tools by `perfusion` or `make`")
    return Finding("telemetry", "ok", "off for prefect, mlflow, dvc, great expectations and the hub")


def _weights(params: Params, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Which backbones are real and which are twins that are trained here."""
    given = {
        "clip.path": params.clip.path,
        "diffusion.path": params.diffusion.path,
        "evaluate.aesthetic_clip": params.evaluate.aesthetic_clip,
        "evaluate.aesthetic_head": params.evaluate.aesthetic_head,
        "evaluate.clip_score_clip": params.evaluate.clip_score_clip,
    }
    twins = [name for name, path in given.items() if path is None]
    if twins:
        yield Finding("twins", "note", f"small stand-ins trained here, no real weights: {', '.join(twins)}")
    for name, path in given.items():
        if path is not None and os.path.exists(path):
            yield Finding(name, "ok", path)
        elif path is not None:
            offline = environment.get("HF_HUB_OFFLINE") == "1"
            remedy = "HF_HUB_OFFLINE=1 forbids to fetch it as a hub id" if offline else "will be asked of the hub"
            yield Finding(name, "wrong" if offline else "note", f"{path}: no such file or folder here; {remedy}")


def _data(workspace: Workspace) -> Finding:
    if (workspace.data / "groups.parquet").is_file():
        return Finding("data", "ok", str(workspace.data.resolve()))
    if workspace.is_default:
        return Finding("data", "note", f"{workspace.data}: not there yet; `perfusion retrain` makes the sample")
    return Finding("data", "wrong", f"{workspace.data}: no groups.parquet there; name a dataset: --data FOLDER")


def _runs(workspace: Workspace) -> Finding:
    try:
        with workspace.held():
            pass
    except PerFusionError as error:
        return Finding("runs", "note", str(error).splitlines()[0])
    return Finding("runs", "ok", "none going on here")


def _remote(workspace: Workspace) -> Finding:
    home = remote_home(workspace)
    if home is None:
        return Finding("remote", "note", "DVC has no default remote: what was computed is on this disk alone")
    if found := credentials_under_git(home):
        return Finding(
            "remote", "wrong", f"{home / '.dvc' / 'config'}: holds {', '.join(found)}, and git keeps that file: take "
            "them out (`dvc remote modify --unset`), change them, and give them in the environment",
        )  # fmt: skip
    return Finding("remote", "ok", f"DVC's default remote of {home}; what is promoted is pushed there")


def _registry(workspace: Workspace, family: str) -> Iterator[Finding]:
    try:
        if not workspace.has_store:
            yield Finding("store", "note", f"{workspace.mlruns}: nothing yet; the first run makes it")
            return
        from tasks.registry import open_registry

        registry = open_registry(workspace.tracking_uri, workspace.mlruns)
        require_answer(workspace.tracking_uri)
    except PerFusionError as error:
        yield Finding("store", "wrong", str(error))
        return
    yield Finding("store", "ok", workspace.tracking_uri)
    problems = registry.verify()
    entries = "" if problems else f"{len(registry.ledger.entries())} entries, chain and aliases in order"
    yield Finding("promotion log", "wrong" if problems else "ok", "; ".join(problems) or entries)
    champions = registry.champions(family)
    for name, number in champions.items():
        try:
            detail = (
                "no champion"
                if number is None
                else f"version {number}, {len(registry.files(name, number))} files intact"
            )
            yield Finding(name, "ok" if number is not None else "note", detail)
        except PerFusionError as error:
            yield Finding(name, "wrong", str(error))
