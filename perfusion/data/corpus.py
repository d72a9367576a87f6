"""Captioned pictures: what the small backbones are pretrained on. Nobody's picks are in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Corpus"]


@dataclass(frozen=True)
class Corpus:
    """Pictures and what is known about each.

    Attributes:
        pixels: (n, 3, S, S) uint8 RGB.
        families: name of a family of phrases -> its phrases, e.g. {"fit": ["slim-fit", "loose-fit"]}.
        labels: (n, len(families)) int64, the phrase of each family that is true of the picture; -1 = not known.
    """

    pixels: Tensor
    families: Mapping[str, list[str]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def phrases(self, row: int) -> list[str]:
        """Every known phrase of picture `row`, in the order of the families."""
        known = zip(self.families.values(), self.labels[row].tolist(), strict=True)
        return [values[label] for values, label in known if label >= 0]

    def caption(self, row: int, generator: torch.Generator, keep: float) -> str:
        """A caption of picture `row`: each known phrase kept with probability `keep`, at least one, in random order."""
        phrases = self.phrases(row)
        if not phrases:
            return ""
        kept = torch.rand(len(phrases), generator=generator) < keep
        if not kept.any():
            kept[torch.randint(len(phrases), (), generator=generator)] = True
        order = torch.randperm(len(phrases), generator=generator).tolist()
        return ", ".join(phrases[i] for i in order if kept[i])
