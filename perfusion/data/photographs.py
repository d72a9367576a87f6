"""A captioned corpus of a dataset's own pictures: what prompts call them, and how they look. No pick is read."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from perfusion.data.appearance import APPEARANCE, appearance
from perfusion.data.corpus import Corpus
from perfusion.data.layout import Dataset
from perfusion.data.pictures import decode_image, decode_pixels
from perfusion.data.prompts import phrases
from perfusion.errors import DataError
from perfusion.progress import Progress

__all__ = ["dataset_corpus", "noun_family"]

_LEAST_SHARE = 0.005  # a noun rarer than this among prompts is left out
_LEAST_COVER = 0.5  # nouns that fewer prompts name are not what pictures are of
_STARTS = 100  # commonest phrases that a family is grown from
_MAJORITY = 0.5  # share of its prompts that must agree before a picture is called so


def dataset_corpus(dataset: Dataset, size: int) -> Corpus:
    """Every decodable picture that a group shows, with families category and `APPEARANCE`.

    A picture's category is the noun that most prompts of the groups it stands in use; a picture whose prompts disagree
    has none. Pictures that cannot be decoded are left out and counted on stderr.

    Args:
        dataset: as read; may hold defects that validation would quarantine.
        size: S, pixels a side.

    Raises:
        DataError: no picture is left.
    """
    nouns = noun_family(prompt for prompt in dataset.groups["prompt"] if isinstance(prompt, str))
    votes = _votes(dataset, nouns)
    kept, pixels = _decodable(dataset, sorted(votes), size)
    category = torch.tensor([_majority(votes[image_id]) for image_id in kept], dtype=torch.int64)
    families = {name: list(values) for name, values in APPEARANCE.items()}
    looks = appearance(pixels)
    if not nouns:
        return Corpus(pixels, families, looks)
    return Corpus(pixels, {"category": nouns, **families}, torch.cat([category[:, None], looks], dim=1))


def noun_family(prompts: Iterable[str]) -> list[str]:
    """The family of phrases that name what a picture is of: never two in one prompt, and one in most prompts.

    A family is grown greedily from each common phrase; the one that names most prompts wins. Empty when no family names
    half of them (free text).
    """
    together: defaultdict[str, set[str]] = defaultdict(set)
    count: Counter[str] = Counter()
    total = 0
    for prompt in prompts:
        said = set(phrases(prompt))
        total += 1
        count.update(said)
        for phrase in said:
            together[phrase] |= said - {phrase}
    common = [phrase for phrase in sorted(count, key=lambda p: (-count[p], p)) if count[phrase] >= _LEAST_SHARE * total]
    best: list[str] = []
    for first in common[:_STARTS]:
        family = [first]
        for phrase in common:
            if phrase != first and together[phrase].isdisjoint(family):
                family.append(phrase)
        if sum(count[phrase] for phrase in family) > sum(count[phrase] for phrase in best):
            best = family
    return sorted(best) if sum(count[phrase] for phrase in best) >= _LEAST_COVER * total else []


def _votes(dataset: Dataset, nouns: list[str]) -> dict[str, Counter[int]]:
    """Stored picture that a group shows -> how often prompts call it each noun."""
    votes: dict[str, Counter[int]] = {}
    for prompt, image_ids in zip(dataset.groups["prompt"], dataset.groups["image_ids"], strict=True):
        said = set(phrases(prompt)) if isinstance(prompt, str) else set()
        named = [code for code, noun in enumerate(nouns) if noun in said]
        for image_id in image_ids or []:
            if image_id in dataset.images:
                votes.setdefault(image_id, Counter()).update(named)
    return votes


def _majority(votes: Counter[int]) -> int:
    """The noun that more than half of the votes agree on; -1 without one."""
    best = votes.most_common(1)
    return best[0][0] if best and best[0][1] > _MAJORITY * votes.total() else -1


def _decodable(dataset: Dataset, image_ids: list[str], size: int) -> tuple[list[str], Tensor]:
    kept: list[str] = []
    parts: list[Tensor] = []
    progress = Progress("corpus", max(1, len(image_ids)))
    for start in range(0, len(image_ids), 1024):
        chunk = image_ids[start : start + 1024]
        whole = [item for item in zip(chunk, dataset.images.encoded(chunk), strict=True) if _decodes(*item)]
        kept += [image_id for image_id, _ in whole]
        parts.append(decode_pixels(whole, len(whole), size))
        progress.show(start + len(chunk), {})
    if not kept:
        raise DataError(f"{dataset.images.folder}: none of {len(image_ids)} pictures shown in groups can be decoded")
    if len(kept) < len(image_ids):
        sys.stderr.write(f"corpus: {len(image_ids) - len(kept)} of {len(image_ids)} pictures cannot be decoded\n")
    return kept, torch.cat(parts)


def _decodes(image_id: str, data: bytes) -> bool:
    try:
        decode_image(data, image_id)
    except DataError:
        return False
    return True
