"""Commands that change which model serves, and tell how it came to be: promote, rollback, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, open_store, print_json

if TYPE_CHECKING:
    from tasks.registry import Registry, Transition

__all__ = ["COMMANDS", "history", "promote", "rollback"]

ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the log for whoever asks later.")]


def promote(
    version: Annotated[
        int | None, typer.Argument(help="Version of the generator; the challenger otherwise.", show_default=False)
    ] = None,
    reward: Annotated[
        int | None, typer.Option("--reward", help="Version of the reward model; the one that judged the generator.")
    ] = None,
    reason: ReasonOption = "",
    force: Annotated[
        bool, typer.Option("--force", help="Without passed gates; needs --reason, which the log keeps.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a generator, and the reward model that judged it, the champions.

    It rests on the gates' decisions of the run that made the version, and is refused when one did not pass, or when the
    champion they compared with is no longer the champion.

    Examples:

      perfusion promote
      perfusion promote 4 --reason "reviewed by hand"
      perfusion promote 4 --force --reason "gate inconclusive, too few users; agreed with the shop"
    """
    from perfusion.errors import GateError

    registry, family = open_store(find_workspace(workspace))
    registry.recover()
    versions = _versions(registry, family, version, reward)
    if not versions:
        raise GateError(f"{family}: nothing new to promote: there is no challenger; name a version to promote that one")
    evidence = registry.evidence_for(versions)
    expected = evidence.expected if evidence is not None and not force else registry.champions(family)
    decisions = evidence.decisions if evidence is not None else ()
    done = registry.promote(versions, expected=expected, decisions=decisions, reason=reason, force=force)
    _tell(done, as_json)


def rollback(
    model: Annotated[
        str | None, typer.Argument(help="A registered model; all of the family otherwise.", show_default=False)
    ] = None,
    to: Annotated[
        int | None, typer.Option("--to", help="Version that was champion once; the one before otherwise.")
    ] = None,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Return to an earlier champion and its partner.

    Every byte of both is checked before, and the hashes are printed. Rolling back again goes one champion further back.

    Examples:

      perfusion rollback --reason "returns rose"
      perfusion rollback perfusion-generator --to 3
    """
    registry, family = open_store(find_workspace(workspace))
    done = registry.rollback(model or family, to=to, reason=reason)
    _tell(done, as_json)


def history(
    model: Annotated[
        str | None, typer.Argument(help="A registered model; all of the family otherwise.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """List every promotion and rollback.

    They are read from the hash-chained log; exit code 2 when the log or the aliases are not in order.

    Examples:

      perfusion history
      perfusion history perfusion-generator --json
    """
    registry, family = open_store(find_workspace(workspace))
    problems = registry.verify()
    told = [] if problems and not _readable(registry) else registry.history(model or family)
    if as_json:
        print_json({"transitions": [_record(transition) for transition in told], "problems": problems})
    else:
        for transition in told:
            typer.echo(_told(transition))
        serving = ", ".join(f"{name} {version or 'none'}" for name, version in registry.champions(family).items())
        typer.echo(f"champions: {serving}")
        typer.echo("\n".join(problems) if problems else f"log intact: {registry.ledger.path}")
    if problems:
        raise typer.Exit(2)


def _versions(registry: Registry, family: str, generator: int | None, reward: int | None) -> dict[str, int]:
    """Registered name -> version to promote."""
    from tasks.registry import CHALLENGER, JUDGED_BY

    names = {"reward": f"{family}-reward", "generator": f"{family}-generator"}
    if generator is None and reward is None:
        generator = registry.version(names["generator"], CHALLENGER)
        if generator is None:
            reward = registry.version(names["reward"], CHALLENGER)
    if generator is not None and reward is None:
        tags = registry.client.get_model_version(names["generator"], str(generator)).tags
        reward = int(tags[JUDGED_BY]) if JUDGED_BY in tags else None
    wanted = {names["reward"]: reward, names["generator"]: generator}
    return {name: number for name, number in wanted.items() if number is not None}


def _readable(registry: Registry) -> bool:
    from perfusion.errors import GateError

    try:
        registry.ledger.entries()
    except GateError:
        return False
    return True


def _tell(done: Transition, as_json: bool) -> None:
    if as_json:
        print_json({**_record(done), "files": done.files})
        return
    from tasks.registry import manifest_digest

    for name, hashes in done.files.items():
        typer.echo(f"{name} version {done.moves[name][1]}: {len(hashes)} files are those registered, by SHA-256:")
        code = {file: digest for file, digest in hashes.items() if file.startswith("code/")}
        for file in sorted(hashes.keys() - code.keys()):
            typer.echo(f"{hashes[file]}  {file}")
        typer.echo(f"{manifest_digest(code)}  code/ ({len(code)} files; --json lists them)\n")
    typer.echo(f"{done.action} #{done.number}: {_moves(done)}")
    typer.echo("a running `mlflow models serve` keeps the old model until it is started again")


def _moves(transition: Transition) -> str:
    return ", ".join(f"{name} {a or 'none'} -> {b or 'none'}" for name, (a, b) in transition.moves.items())


def _told(transition: Transition) -> str:
    """A transition in three lines: what and when, on what evidence, why and by whom."""
    gates = ", ".join(f"{decision.gate} {decision.verdict}" for decision in transition.decisions) or "none asked"
    what = f"{transition.action}, forced" if transition.forced else transition.action
    when = transition.time[:19].replace("T", " ")
    return (
        f"#{transition.number}  {when} UTC  {what}, {transition.status}: {_moves(transition)}\n"
        f"    gates: {gates}\n"
        f"    reason: {transition.reason or 'none given'}; by {transition.by}"
    )


def _record(transition: Transition) -> dict[str, Any]:
    return {
        "number": transition.number,
        "time": transition.time,
        "action": transition.action,
        "moves": {name: {"from": before, "to": after} for name, (before, after) in transition.moves.items()},
        "status": transition.status,
        "forced": transition.forced,
        "reason": transition.reason,
        "by": transition.by,
        "decisions": [decision.to_dict() for decision in transition.decisions],
    }


COMMANDS = {"promote": promote, "rollback": rollback, "history": history}
