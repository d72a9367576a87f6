"""The card beside a saved PerFusionRM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.checkpoint import atomic_write

if TYPE_CHECKING:
    from perfusion.reward.model import PerFusionRM

__all__ = ["write_card"]

_CARD = """---
library_name: transformers
tags: [reward-model, personalization, {backbone}]
---
# PerFusionRM

Scores candidate pictures for one merchant: how well a picture matches a prompt, both read by a frozen backbone
({backbone}) whose layers are told who the merchant is (after "Sell It Before You Make It", KDD 2026, Eq. 2-9).

| | |
|---|---|
| backbone | {backbone} |
| variant | {variant} |
| user features | {features} |
| trained parameters | {trained:,} |
| frozen parameters | {frozen:,} |
| scale | {scale} |
| picture side | {side} px |

```python
from perfusion.reward import PerFusionRM

model = PerFusionRM.from_pretrained("{folder}")
users = model.encoder.transform(users_frame)           # (B, F) ids; an unseen value becomes 0, "unknown"
scores = model.score(prompts, pixels, users)           # pixels uint8 (B, N, 3, H, W) -> (B, N)
blind = model.score(prompts, pixels)                   # the same backbone without the merchant
```

Scores order the candidates of one prompt; they say nothing across prompts. A merchant's taste is inferred from profile
and history, so the scores of a merchant the model has not seen rest on the profile alone. `config.json` holds the
sizes, `training.json`, where present, the resolved parameters of the run.
"""


def write_card(model: PerFusionRM, folder: Path) -> None:
    """Write README.md."""
    frozen = sum(parameter.numel() for parameter in model.backbone.parameters())
    names = (
        model.encoder.names
        if model.encoder is not None
        else [f"id {i}" for i in range(len(model.config.cardinalities))]
    )
    text = _CARD.format(
        backbone=model.blind.kind,
        variant=model.config.variant,
        features=", ".join(f"{name} ({count})" for name, count in zip(names, model.config.cardinalities, strict=True)),
        trained=sum(parameter.numel() for parameter in model.parameters()) - frozen,
        frozen=frozen,
        scale=model.config.scale,
        side=model.blind.side,
        folder=folder.name,
    )
    atomic_write(folder / "README.md", text.encode())
