"""Parameter files: frozen sections, one per stage; an unknown key is an error. Every field says unit, range, source."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from perfusion.errors import ConfigError

__all__ = ["OptimiserConfig", "Params", "Section", "load_params"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every parameter section: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class OptimiserConfig(Section):
    """AdamW and its schedule (App. B.3 names AdamW, warm-up and weight decay)."""

    steps: Count = Field(description="optimiser steps")
    lr: Positive = Field(description="peak learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up, from lr/warmup")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_factor: Share = Field(0.0, description="learning rate at the end, as a share of lr")
    weight_decay: float = Field(0.01, ge=0.0)
    beta2: Share = Field(0.999, description="AdamW's second moment decay")
    grad_clip: Positive = Field(1.0, description="largest global gradient norm")
    accumulate: Count = Field(1, description="micro-batches per step")
    ema_decay: Share = Field(0.999, description="decay of averaged weights, where a stage keeps them")
    checkpoint_seconds: Positive = Field(30.0, description="seconds between resumable states")
    log_every: Count = Field(10, description="steps between logged metrics")


class DataConfig(Section):
    """Validation limits, the record filter and the split (Sec. 5.1.1)."""

    min_records: Count = Field(10, description="usable group records a user needs (Sec. 5.1.1)")
    ratios: tuple[int, int, int] = Field((8, 1, 1), description="train : valid : test per user, by record")
    cold_users: Share = Field(0.08, description="share of kept users held out entirely, for cold start")
    max_group_size: Count = Field(16, description="candidates a group may have")
    max_bad_share: Share = Field(0.1, description="data gate: largest share of quarantined group records")
    min_coverage: Share = Field(0.5, description="data gate: least share of users with a value, per feature")
    max_drift: Positive = Field(0.25, description="data gate: largest population stability index per feature")
    image_size: Count = Field(48, description="pixels; pictures are resized to this square")


class ClipConfig(Section):
    """The CLIP backbone: real weights by path or hub id, else a tiny twin trained in the `backbones` stage."""

    path: str | None = Field(None, description="directory or hub id of a CLIPModel; None trains the twin")
    sha256: str | None = Field(None, description="expected hash of the weights file; None skips the check")
    optimiser: OptimiserConfig = OptimiserConfig(steps=1400, lr=3e-3, warmup=50)
    width: Count = 96
    layers: Count = 3
    heads: Count = 4
    patch: Count = 16
    projection: Count = 64
    batch_images: Count = 128


class PickScoreConfig(Section):
    """The user-blind baseline: CLIP tuned on the same picks (Table 2, 'PickScore ... tuned on both datasets')."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=200, lr=1e-4, warmup=20)
    batch_groups: Count = 64


class RewardConfig(Section):
    """PerFusionRM (Eq. 2-9)."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=450, lr=3e-3, warmup=30, weight_decay=0.1)
    batch_groups: Count = 64
    variant: Literal["full", "shared", "vision_only", "text_only"] = Field("full", description="Fig. 5")
    embedding_dim: Count = Field(16, description="width of each feature embedding")
    cross_layers: Count = Field(3, description="layers of the cross network (Eq. 2)")
    cross_norm: bool = Field(True, description="LayerNorm on the cross network's output; off in the paper")
    adaptive_hidden: Count = Field(128, description="hidden width of AdaNet (Eq. 4)")
    vision_lr_factor: Positive = Field(0.15, description="learning rate of vision AdaNets, relative")
    unknown_dropout: Share = Field(0.5, description="share of training records whose user id is masked")
    scale: Literal["frozen", "one"] = Field("frozen", description="temperature in Eq. 8; 'one' is the literal form")
    shuffle_users: bool = Field(False, description="control: permute users' features; must gain nothing")


class DiffusionConfig(Section):
    """The Stable Diffusion backbone: real weights by path or hub id, else a tiny twin."""

    path: str | None = Field(None, description="directory or hub id of a StableDiffusionPipeline")
    optimiser: OptimiserConfig = OptimiserConfig(steps=1650, lr=1e-3, warmup=50)
    batch_images: Count = 32


class EncodeConfig(Section):
    """Cached latents and text embeddings."""

    batch_images: Count = 256


class PreferenceConfig(Section):
    """One preference-trained arm: DPO (Eq. 19), SFT (Eq. 1) or PerFusion (Eq. 13)."""

    optimiser: OptimiserConfig
    batch_groups: Count = 14


class EvaluateConfig(Section):
    """Offline evaluation of generated pictures."""

    pairs: Count = Field(320, description="held-out (user, prompt) pairs")
    steps: Count = Field(20, description="sampling steps")
    bootstrap: Count = Field(2000, description="resamples over users")


class GatesConfig(Section):
    """Thresholds of the gates (see docs/operations.md)."""

    reward_min_relative_map_gain: float = Field(0.02, description="PerFusionRM over tuned PickScore")
    confidence: Share = Field(0.95, description="two-sided confidence of every interval")


class Params(Section):
    """A whole parameter file."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = Field(
        "perfusion", description="prefix of registered models: {name}-reward, {name}-generator"
    )
    seed: int = 0
    threads: Count = Field(1, description="torch threads per process")
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    pickscore: PickScoreConfig = PickScoreConfig()
    reward: RewardConfig = RewardConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    encode: EncodeConfig = EncodeConfig()
    dpo: PreferenceConfig = PreferenceConfig(optimiser=OptimiserConfig(steps=200, lr=1e-4))
    sft: PreferenceConfig = PreferenceConfig(optimiser=OptimiserConfig(steps=200, lr=1e-4))
    generator: PreferenceConfig = PreferenceConfig(optimiser=OptimiserConfig(steps=548, lr=3e-4))
    evaluate: EvaluateConfig = EvaluateConfig()
    gates: GatesConfig = GatesConfig()

    @model_validator(mode="after")
    def _ratios_add_up(self) -> Self:
        if min(self.data.ratios) < 0 or self.data.ratios[0] == 0:
            raise ValueError(f"data.ratios {self.data.ratios}: need a training share above 0 and none below 0")
        return self


def load_params(path: Path | str) -> Params:
    """Read a parameter file.

    Raises:
        ConfigError: the file is absent or not YAML, or a key is unknown, mistyped or out of range; names file and key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameter file; shipped ones are params.yaml and params/*.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate(raw or {})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None


def _explain(path: Path, item: Any) -> str:
    """One line per mistake: file, key, value, rule, and the nearest known key for an unknown one."""
    key = ".".join(map(str, item["loc"]))
    if item["type"] != "extra_forbidden":
        return f"{path}: {key} = {item.get('input')!r}: {item['msg']}"
    section: Any = Params
    for part in item["loc"][:-1]:
        section = section.model_fields[part].annotation
    near = difflib.get_close_matches(str(item["loc"][-1]), section.model_fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(section.model_fields)}"
    return f"{path}: {key}: unknown key{hint}"
