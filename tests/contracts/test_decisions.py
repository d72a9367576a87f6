"""Every departure of the sample's parameters from the paper's has its reason in docs/decisions.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perfusion.config import load_params

REPOSITORY = Path(__file__).resolve().parents[2]
#: What differs by scale alone: sizes of the computation, and names.
BY_SCALE = {
    "name", "seed", "threads", "steps", "lr", "warmup", "schedule", "final_factor", "accumulate", "beta2", "grad_clip",
    "ema_decay", "checkpoint_seconds", "log_every", "batch_groups", "batch_images", "batch_captions", "batch_pictures",
    "batch_prompts",
    "pictures", "pairs", "image_size", "min_groups", "evaluate_every", "evaluate_groups", "sheet_users", "resamples",
    "orders", "device", "precision", "gradient_checkpointing", "channels_last", "compile", "attention", "dtype",
}  # fmt: skip
#: Shapes of the twins, which the paper has no counterpart of.
TWINS = ("clip.", "diffusion.codec.", "diffusion.text.", "diffusion.unet.")


def values(record: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def resolved(name: str) -> dict[str, Any]:
    return dict(values(load_params(REPOSITORY / name).model_dump(mode="json")))


def departures() -> str:
    """The section of docs/decisions.md on the sample's recipe."""
    text = (REPOSITORY / "docs/decisions.md").read_text()
    return text.split("## Departures of the sample's recipe")[1].split("\n## ")[0]


def test_every_departure_has_its_reason() -> None:
    sample, paper = resolved("params.yaml"), resolved("params/paper.yaml")
    argued = " ".join(re.findall(r"`([^`]+)`", departures()))
    departs = [key for key in sample if sample[key] != paper[key] and key.rpartition(".")[2] not in BY_SCALE]
    silent = [key for key in departs if not key.startswith(TWINS) and key.rpartition(".")[2] not in argued]
    assert departs
    assert not silent, f"docs/decisions.md does not say why {', '.join(silent)}"


def test_every_departure_is_still_a_parameter() -> None:
    known = resolved("params.yaml")
    sections = {key.partition(".")[0] for key in known if "." in key}
    told = [name for name in re.findall(r"`(\w+\.\w+)", departures()) if name.partition(".")[0] in sections]
    assert told
    assert not [name for name in told if not any(key == name or key.startswith(f"{name}.") for key in known)]
