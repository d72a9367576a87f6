"""`perfusion data import-*`: public datasets of preferences in the dataset layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.cli_common import AsJson, print_json, print_table

__all__ = ["COMMANDS"]

Split = Annotated[
    Literal["record", "prompt", "user"], typer.Option("--split", help="How records will be split: recorded.")
]
Folder = Annotated[Path, typer.Argument(help="Folder to create.")]
Replace = Annotated[bool, typer.Option("--replace", help="Put it in the place of an older dataset.")]


def import_pickapic(
    source: Annotated[str, typer.Argument(help="Folder of parquet shards, one shard, or a pattern like 'x/train-*'.")],
    out: Folder,
    split: Split = "record",
    ties: Annotated[
        Literal["drop", "keep"], typer.Option("--ties", help="Keep ties as groups with both pictures picked.")
    ] = "drop",
    partial: Annotated[bool, typer.Option("--partial", help="Import what is there though shards are missing.")] = False,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Turn the public Pick-a-Pic shards (v1 or v2, with pictures) into a dataset.

    Streams the shards once; interrupted, the same command goes on after the last shard it finished. Says how many rows
    each rule removed, and how much of the test records each way of splitting lets training see; to split by prompt or
    user, set data.split_by in the parameters as well.

    Examples:

      perfusion data import-pickapic ~/pickapic_v1/data data
      perfusion data import-pickapic '~/pickapic_v2/data/validation-*' data --split prompt
    """
    from perfusion.data.pickapic import import_pickapic as run

    report = run(Path(source).expanduser(), out, split=split, ties=ties, partial=partial, replace=replace)
    _show(out, report, "rows", ("best_image_uid_disagrees", "seconds", "mb_per_s"), as_json)


def import_hpd(
    source: Annotated[Path, typer.Argument(help="Unzipped folder with preference_train.json, or one such list.")],
    out: Folder,
    split: Split = "record",
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Turn the Human Preference Dataset v1 (json beside preference_images/) into a dataset.

    Groups of one prompt with one picked picture; users are the hashes of the dataset. Says how many entries each rule
    removed.

    Examples:

      perfusion data import-hpd ~/hpd data
      perfusion data import-hpd ~/hpd/preference_test.json data --split user
    """
    from perfusion.data.hpd import import_hpd as run

    _show(out, run(source, out, split=split, replace=replace), "entries", ("published", "seconds"), as_json)


def import_imagereward(
    source: Annotated[Path, typer.Argument(help="Folder of ImageRewardDB, pictures unzipped, or one of its lists.")],
    out: Folder,
    top: Annotated[
        int, typer.Option("--top", help="Picked are candidates with fewer than this many of a better rank; ties alike.")
    ] = 1,
    split: Split = "record",
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Turn ImageRewardDB (json or metadata tables beside pictures) into a dataset.

    Ranks become picks: with --top 1, all that share the best rank. Who ranked is not published, so that all records
    belong to one user: the dataset can train and judge what is blind to the user, and nothing personal.

    Examples:

      perfusion data import-imagereward ~/ImageRewardDB data
      perfusion data import-imagereward ~/ImageRewardDB/metadata-test.parquet data --top 2
    """
    from perfusion.data.imagereward import import_imagereward as run

    report = run(source, out, top=top, split=split, replace=replace)
    _show(out, report, "entries", ("top", "tied_records", "published", "seconds"), as_json)


def _show(out: Path, report: dict[str, Any], came: str, more: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    rules = [(row["rule"], row["says"], row["removed"], row["left"]) for row in report["rules"]]
    what = came.removesuffix("s").replace("entrie", "entry")
    print_table(f"{out}: {report[came]} {came}", ("rule", f"an imported {what}", "removed", "left"), rows=rules)
    keys = ("records", "users", "records_of_active_users", "pictures", *more)
    print_table("imported", ("", ""), [(key, report[key]) for key in keys])
    leaks = [
        (way + (" (chosen)" if way == report["split"] else ""), *(f"{share:.1%}" for share in shares.values()))
        for way, shares in report["leakage"].items()
    ]
    print_table("of the test records, seen in training", ("split by", "pictures", "prompts", "users"), leaks)
    if report["split"] != "record":
        typer.echo(f"set data.split_by: {report['split']} in the parameters, so that the split stage does so")


COMMANDS = (import_pickapic, import_hpd, import_imagereward)
