"""Prompts are comma-joined phrases whose order means nothing (Sec. 6.4)."""

from __future__ import annotations

import torch

__all__ = ["phrases", "shuffle_phrases"]


def phrases(prompt: str) -> list[str]:
    """The phrases of a prompt, trimmed, empty ones left out: "dress,  v-neck," -> ["dress", "v-neck"]."""
    return [phrase for part in prompt.split(",") if (phrase := part.strip())]


def shuffle_phrases(prompt: str, generator: torch.Generator) -> str:
    """The same phrases in random order."""
    parts = phrases(prompt)
    order = torch.randperm(len(parts), generator=generator).tolist()
    return ", ".join(parts[i] for i in order)
