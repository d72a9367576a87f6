"""Model folders: what somebody else wrote is read without running code of theirs, what is written tells of no call.

Weights are safetensors, or torch's format read by its restricted reader, which builds tensors and plain values alone.
What the libraries raise for a file that is broken or asks for more becomes one error with place and remedy.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from perfusion.errors import PerFusionError, WeightsError
from perfusion.paths import escaping_link

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["UNREADABLE", "check_model_folder", "first_line", "forget_calls", "reading"]

#: What torch, safetensors, transformers and diffusers raise for a file that is absent, broken or not to be trusted.
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, RuntimeError, EOFError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip


def check_model_folder(folder: Path) -> Path:
    """The folder, if all it names is in it.

    Raises:
        WeightsError: a symbolic link leads out of the folder, or an index of shards names a file that is not beside it.
    """
    if (link := escaping_link(folder)) is not None:
        raise WeightsError(
            f"{link[0]}: a link to {link[1]}, outside the model's folder; put the file itself there if it belongs to it"
        )
    for index in sorted(folder.rglob("*.index.json")):
        for shard in sorted({str(name) for name in _weight_map(index).values()}):
            if Path(shard).name != shard:
                raise WeightsError(f"{index}: names the shard {shard!r}; want the name of a file beside the index")
    return folder


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error!r}); fetch the model again") from None


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries raise inside the block into one error.

    Args:
        what: place and kind, as in "models/clip: a CLIPModel".
        remedy: what to do.

    Raises:
        WeightsError: anything of `UNREADABLE` was raised.
    """
    try:
        yield
    except PerFusionError:
        raise
    except UNREADABLE as error:
        raise WeightsError(f"{what}: cannot load: {first_line(error)}. {remedy}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters of it; the error's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def forget_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Undo what the last call left in a tokenizer, to be asked before it is saved.

    A fast tokenizer keeps the padding and truncation of its last call, and writes them. One that was never called, as
    in a training that is resumed after its last step, would give other bytes. Every call here says what it wants.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # None: one in Python, which keeps nothing
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
