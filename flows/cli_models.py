"""Commands that ask the champions: score, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_common import AsJson, WorkspaceOption, open_store, print_json, print_table, threaded_workspace

if TYPE_CHECKING:
    from tasks.models.served import Served
    from tasks.workspace import Workspace

__all__ = ["COMMANDS", "generate", "score"]

UserOption = Annotated[str | None, typer.Option("--user", "-u", help="User id; left out or unknown: user-blind.")]
PromptOption = Annotated[str, typer.Option("--prompt", help='Comma-joined phrases, e.g. "dress, v-neck, slim-fit".')]
VersionOption = Annotated[int | None, typer.Option("--version", help="A registered version instead of the champion.")]
FeatureOption = Annotated[
    list[str] | None,
    typer.Option("--feature", "-f", help="NAME=VALUE of the user, wins over the stored one; may be repeated."),
]
BLIND = "nothing is known about this user: served user-blind, for nobody's taste in particular"


def score(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files: PNG, JPEG, WebP, ...", show_default=False)],
    prompt: PromptOption,
    user: UserOption = None,
    feature: FeatureOption = None,
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Rank pictures by how likely a user is to pick them, with the champion reward model.

    A score is scale times cosine: compare scores of one user and prompt only. The share is what a softmax over the
    given pictures makes of them (Eq. 8).

    Examples:

      perfusion score --user m00007 --prompt "dress, v-neck" candidates/*.png
      perfusion score --prompt "coat, long sleeves" -f style=bold a.png b.png --json
    """
    import numpy as np
    import pandas as pd

    place = threaded_workspace(workspace)
    encoded = [_read(path) for path in pictures]
    served = _served(place, "reward", version)
    answer = served.ask(pd.DataFrame([{"prompt": prompt, "images": encoded, **_who(user, feature, served)}]))
    weights = np.exp(answer["score"] - answer["score"].max())
    answer = answer.assign(picture=list(map(str, pictures)), share=weights / weights.sum())
    answer = answer.sort_values("score", ascending=False)[["picture", "score", "share", "user_blind"]]
    blind = bool(answer["user_blind"].any())
    if as_json:
        made_by = {"model": served.name, "version": served.version, "user_blind": blind}
        print_json({**made_by, "pictures": answer[["picture", "score", "share"]].to_dict("records")})
        return
    print_table(f"{served.name} version {served.version}", ("picture", "score", "share"), answer.to_numpy()[:, :3])
    if blind:
        typer.echo(BLIND)


def generate(
    prompt: PromptOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures; made when absent.")],
    user: UserOption = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Pictures to draw, 1 to 64.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="The same seed starts from the same noise for every user.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Sampling steps; the model's own otherwise.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Weight of the prompt.")] = None,
    user_scale: Annotated[float | None, typer.Option("--user-scale", help="Weight of the user; 0 is nobody.")] = None,
    feature: FeatureOption = None,
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures for a user and a prompt with the champion generator.

    The folder gets a PNG file for each, and strip.png with all of them side by side.

    Examples:

      perfusion generate --user m00007 --prompt "dress, v-neck, slim-fit" -n 5 --out pictures
      perfusion generate --user m00007 --prompt "coat" --seed 3 --user-scale 4 --out bold
      perfusion generate --prompt "top, short sleeves" -f style=bold -f season=summer --out for-a-new-merchant
    """
    import io

    import pandas as pd
    from PIL import Image

    from perfusion.errors import DataError
    from tasks.models.requests import MAX_PICTURES

    if not 1 <= count <= MAX_PICTURES:
        raise DataError(f"-n {count}: draw between 1 and {MAX_PICTURES} pictures a call")
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: this is a file; name a folder")
    served = _served(threaded_workspace(workspace), "generator", version)
    asked = pd.DataFrame([{"prompt": prompt, "n": count, "seed": seed, **_who(user, feature, served)}])
    options = {"steps": steps, "guidance_scale": guidance, "user_scale": user_scale}
    given = {name: value for name, value in options.items() if value is not None}
    answer = served.ask(asked, given)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{index}.png" for index in range(count)]
    for file, data in zip(files, answer["image"], strict=True):
        file.write_bytes(data)
    from tasks.models.served import contact_strip

    strip = out / "strip.png"
    contact_strip([Image.open(io.BytesIO(data)) for data in answer["image"]]).save(strip)
    blind = bool(answer["user_blind"].any())
    if as_json:
        made_by = {"model": served.name, "version": served.version, "user_blind": blind}
        print_json({**made_by, "seed": seed, "pictures": list(map(str, files)), "strip": str(strip)})
        return
    typer.echo(f"{served.name} version {served.version}: {count} pictures in {out}/, all of them in {strip}")
    if blind:
        typer.echo(BLIND)


def _served(place: Workspace, role: str, version: int | None) -> Served:
    registry, family = open_store(place)
    from tasks.models.served import load_served

    return load_served(registry, f"{family}-{role}", version)


def _read(path: Path) -> bytes:
    """A file's bytes, which are a picture's."""
    from perfusion.data import decode_image
    from perfusion.errors import DataError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name picture files that exist") from None
    decode_image(data, str(path))
    return data


def _who(user: str | None, features: list[str] | None, served: Served) -> dict[str, object]:
    """The request columns that say who asks; feature names and numbers are checked against the model's signature."""
    from perfusion.errors import DataError

    known = served.features
    said: dict[str, object] = {} if user is None else {"user_id": user}
    for pair in features or []:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise DataError(f"--feature {pair!r}: want NAME=VALUE with NAME one of {', '.join(known)}")
        said[name] = _number(pair, value) if known[name] is float else value
    return said


def _number(pair: str, value: str) -> float:
    from perfusion.errors import DataError

    try:
        return float(value)
    except ValueError:
        raise DataError(f"--feature {pair!r}: {value!r} is not a number") from None


COMMANDS = {"score": score, "generate": generate}
