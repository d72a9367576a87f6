"""PerFusionRM: a frozen CLIP whose two towers are told, layer by layer, for whom they look (Fig. 3, Eq. 2-6).

Legend: B groups, N candidates of a group, R rows (existing candidates of all groups), F user features, T tokens,
L layers and D width of a tower, P width of the joint embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel

from perfusion.config import RewardConfig
from perfusion.data import FeatureEncoder
from perfusion.errors import ConfigError, DataError, WeightsError
from perfusion.nn import AdaptiveNetwork, CrossNetwork, FeatureEmbedding, PersonalPlugIn, UserEncoder
from perfusion.nn.injection import make_injectable
from perfusion.reward.backbones import Backbone
from perfusion.reward.batches import Candidates, spread
from perfusion.reward.card import write_card
from perfusion.reward.frozen import (
    MOST_PROMPTS,
    Frozen,
    embed_pictures,
    embed_prompts,
    start_fits,
    start_pictures,
)
from perfusion.reward.losses import cosine_similarity
from perfusion.reward.towers import picture_embeds, picture_start, prompt_embeds

__all__ = ["PerFusionRM", "PerFusionRMConfig"]

Tower = Literal["text", "vision"]
VARIANTS: dict[str, dict[str, tuple[Tower, ...]]] = {  # plug-in -> towers it serves
    "full": {"text": ("text",), "vision": ("vision",)},
    "shared": {"both": ("text", "vision")},
    "vision_only": {"vision": ("vision",)},
    "text_only": {"text": ("text",)},
}
_FEATURES = "features.json"
_PROMPTS = 64  # a pass of the text tower


class PerFusionRMConfig(PreTrainedConfig):
    """Sizes of a PerFusionRM, saved as config.json.

    Attributes:
        backbone_config: the CLIP backbone's configuration.
        cardinalities: ids of each user feature, the unknown id 0 included.
        variant: which towers get a plug-in, and whether it is one (Fig. 5).
        scale: "frozen" scores exp(logit_scale) * cosine, "learned" trains that scale, "one" is the plain cosine.
        embedding_dim, embedding_std, cross_layers, cross_norm, adaptive_hidden: see `perfusion.config.RewardConfig`.
    """

    model_type = "perfusion_rm"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": CLIPConfig}

    backbone_config: Any = None
    cardinalities: list[int] | tuple[int, ...] = (1,)
    variant: str = "full"
    scale: str = "frozen"
    embedding_dim: int = 16
    embedding_std: float = 1.0
    cross_layers: int = 3
    cross_norm: bool = False
    adaptive_hidden: int = 128

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config = CLIPConfig(**(self.backbone_config or {}))
        self.cardinalities = list(self.cardinalities)
        super().__post_init__(**kwargs)


class PerFusionRM(PreTrainedModel):
    """The personalised reward model (Eq. 2-6). Build it with `from_backbone` or `from_pretrained`.

    The backbone is frozen; only the plug-ins train. `users=None` is the plain backbone, user-blind: bit for bit what
    `perfusion.reward.batches.blind_scores` makes of it, and transformers' own scores up to rounding.

    Attributes:
        tokenizer, processor: the backbone's; None until attached by one of the two builders.
        encoder: raw user features -> ids; None if the model was trained on bare ids.
    """

    config_class = PerFusionRMConfig
    base_model_prefix = "perfusion_rm"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["PersonalEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: PerFusionRMConfig) -> None:
        super().__init__(config)
        if config.variant not in VARIANTS:
            raise ConfigError(f"variant = {config.variant!r}: known are {', '.join(VARIANTS)}")
        self.backbone = CLIPModel._from_config(config.backbone_config)
        make_injectable(self.backbone.text_model)
        make_injectable(self.backbone.vision_model)
        self.backbone.requires_grad_(False)
        self.plugins = nn.ModuleDict(_plugins(config))
        if config.scale == "learned":
            self.log_scale = nn.Parameter(torch.tensor(float(config.backbone_config.logit_scale_init_value)))
        self.tokenizer: Any = None
        self.processor: Any = None
        self.encoder: FeatureEncoder | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Each part knows its own beginning; a part read from a file is not begun again."""
        if isinstance(module, FeatureEmbedding | CrossNetwork | AdaptiveNetwork):
            module.reset_parameters()

    @classmethod
    def from_backbone(
        cls,
        backbone: Backbone,
        cardinalities: Sequence[int],
        config: RewardConfig,
        encoder: FeatureEncoder | None = None,
    ) -> Self:
        """A new model around a copy of `backbone`; plug-in weights come from torch's global generator."""
        model = cls(
            PerFusionRMConfig(
                backbone_config=backbone.clip.config.to_dict(),
                cardinalities=list(cardinalities),
                variant=config.variant,
                scale=config.scale,
                embedding_dim=config.embedding_dim,
                embedding_std=config.embedding_std,
                cross_layers=config.cross_layers,
                cross_norm=config.cross_norm,
                adaptive_hidden=config.adaptive_hidden,
            )
        )
        model.backbone.load_state_dict(backbone.clip.state_dict())
        if config.scale == "learned":
            model.log_scale.data.copy_(backbone.clip.logit_scale.data)
        model.tokenizer, model.processor, model.encoder = backbone.tokenizer, backbone.processor, encoder
        return model

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the plug-ins; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, a scalar."""
        if self.config.scale == "one":
            return torch.ones((), device=self.device)
        return (self.log_scale if self.config.scale == "learned" else self.backbone.logit_scale).exp()

    @property
    def blind(self) -> Backbone:
        """The user-blind backbone with its helpers."""
        return Backbone(self.backbone, self.tokenizer, self.processor)

    def hears(self, tower: Tower) -> bool:
        """Whether a plug-in serves this tower; if not, what it computes is the same for everybody."""
        return any(tower in towers for towers in VARIANTS[self.config.variant].values())

    def knowledge(self, tower: Tower, users: Tensor | None) -> Tensor | None:
        """What `tower` is told about `users` (B, F): (B, L, 2, D), or None for no plug-in or no users (Eq. 4)."""
        if users is None:
            return None
        for name, towers in VARIANTS[self.config.variant].items():
            if tower in towers:
                return self.plugins[name](users, tower)
        return None

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor, users: Tensor | None) -> Tensor:
        """v_text^u, (B, P), not normalised; one per group."""
        return prompt_embeds(self.backbone, input_ids, attention_mask, self.knowledge("text", users))

    def image_embeds(self, image: Tensor, users: Tensor | None, group: Tensor) -> Tensor:
        """v_image^u, (R, P), not normalised; the plug-in runs once per group, `group` (R,) says whose a row is.

        Args:
            image: (R, 3, S, S) prepared pictures, or (R, T, D) of `perfusion.reward.frozen.start_pictures`.
            users: (B, F) long; None for user-blind.
            group: (R,) long.
        """
        start = picture_start(self.backbone, image) if image.ndim == 4 else image
        knowledge = self.knowledge("vision", users)
        return picture_embeds(self.backbone, start, None if knowledge is None else knowledge[group])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        group: Tensor,
        users: Tensor | None = None,
    ) -> Tensor:
        """Scores scale * cosine of R candidates, (R,) (Eq. 6).

        Args:
            input_ids, attention_mask: (B, T), one prompt per group.
            pixel_values: (R, 3, S, S), prepared.
            group: (R,) long, the group of each candidate.
            users: (B, F) long; None for user-blind.
        """
        text = self.text_embeds(input_ids, attention_mask, users)
        image = self.image_embeds(pixel_values, users, group)
        return self.scale * cosine_similarity(text[group], image)

    def score_candidates(self, batch: Candidates) -> Tensor:
        """Scores of a training batch, (R,), whatever of it is kept (see `freeze`).

        Raises:
            ConfigError: an embedding is given that this variant changes by user.
        """
        text, image = batch.text, batch.image
        if not isinstance(text, Tensor):
            text = self.text_embeds(**text, users=batch.users)
        elif self.hears("text"):
            raise ConfigError(f"variant {self.config.variant!r} changes prompt embeddings by user: pass tokens")
        if image.ndim > 2:
            image = self.image_embeds(image, batch.users, batch.group)
        elif self.hears("vision"):
            raise ConfigError(f"variant {self.config.variant!r} changes picture embeddings by user: pass pictures")
        return self.scale * cosine_similarity(text[batch.group], image)

    def freeze(self, pixels: Tensor, prompts: Collection[str] = ()) -> Frozen:
        """What the frozen backbone says of these pictures and prompts, as far as this variant's users leave it alone.

        Args:
            pixels: (M, 3, H, W) uint8.
            prompts: of which `MOST_PROMPTS` are kept at most.
        """
        pictures = None
        if not self.hears("vision"):
            pictures = embed_pictures(self.blind, pixels)
        elif start_fits(self.blind, pixels):
            pictures = start_pictures(self.blind, pixels)
        known = None if self.hears("text") else embed_prompts(self.blind, prompts, MOST_PROMPTS)
        return Frozen(pictures, known)

    def score(
        self, prompts: Sequence[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Scores of every candidate of every group, in units of scale * cosine.

        Args:
            prompts: B prompts of comma-joined phrases.
            pixels: (B, N, 3, H, W) uint8; resized to the tower's input.
            users: (B, F) feature ids; None for user-blind.
            valid: (B, N) bool, the candidates that exist; the others cost nothing and score 0. None takes all.

        Returns:
            (B, N) float32 on the CPU.

        Raises:
            DataError: the parts do not speak of the same number of groups.
        """
        shape = pixels.shape[:2]
        if pixels.ndim != 5 or len(prompts) != shape[0] or (valid is not None and valid.shape != shape):
            raise DataError(
                f"{len(prompts)} prompts, pixels {tuple(pixels.shape)}, valid "
                f"{None if valid is None else tuple(valid.shape)}: need B prompts, pixels (B, N, 3, H, W), valid (B, N)"
            )
        if valid is None:
            group = torch.arange(shape[0]).repeat_interleave(shape[1])
            return self.score_pictures(prompts, pixels.flatten(0, 1), group, users).view(shape)
        group = valid.nonzero()[:, 0]
        return spread(self.score_pictures(prompts, pixels[valid], group, users), valid)

    @torch.no_grad()
    def score_pictures(
        self, prompts: Sequence[str], pixels: Tensor, group: Tensor, users: Tensor | None = None,
        batch_pictures: int = 320,
    ) -> Tensor:  # fmt: skip
        """Scores of pictures of groups of any size: a prompt goes through the text tower once, a picture once.

        Args:
            prompts: B prompts of comma-joined phrases.
            pixels: (R, 3, H, W) uint8; resized to the tower's input.
            group: (R,) long in [0, B), the group of each picture.
            users: (B, F) feature ids; None for user-blind.
            batch_pictures: pictures a pass.

        Returns:
            (R,) float32 on the CPU.

        Raises:
            DataError: the parts do not speak of the same number of groups or pictures.
        """
        if len(group) != len(pixels) or (users is not None and len(users) != len(prompts)):
            raise DataError(
                f"{len(prompts)} prompts, pixels {tuple(pixels.shape)}, groups of {len(group)} pictures, "
                f"users {None if users is None else len(users)}: need B prompts, B users, R pictures and R groups"
            )
        if not len(group):
            return torch.empty(0)
        self.eval()
        told = None if users is None else users.to(self.device)
        group = group.to(self.device)
        text = torch.cat([self._prompts(prompts, told, at) for at in range(0, len(prompts), _PROMPTS)])
        parts = []
        for at in range(0, len(group), batch_pictures):
            rows = slice(at, at + batch_pictures)
            asked, place = group[rows].unique(return_inverse=True)
            pictures = self.blind.prepare(pixels[rows].to(self.device))
            image = self.image_embeds(pictures, None if told is None else told[asked], place)
            parts.append((self.scale * cosine_similarity(text[group[rows]], image)).float().cpu())
        return torch.cat(parts)

    def _prompts(self, prompts: Sequence[str], users: Tensor | None, first: int) -> Tensor:
        """Embeddings of one pass of prompts from the `first` on."""
        at = slice(first, first + _PROMPTS)
        return self.text_embeds(**self.blind.tokens(prompts[at]), users=None if users is None else users[at])

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write all that `from_pretrained` needs: weights, config, tokenizer, image processor, features.json, card."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        if self.encoder is not None:
            self.encoder.save(folder / _FEATURES)
        write_card(self, folder)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Self:
        """Load a model written by `save_pretrained`, in evaluation mode.

        Raises:
            WeightsError: the folder is absent or not a PerFusionRM.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no PerFusionRM here (config.json is absent); run the reward stage first")
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != cls.config_class.model_type:
            raise WeightsError(
                f"{folder}: model_type {kind!r}, need 'perfusion_rm'; point to a folder of the reward stage"
            )
        try:
            model = super().from_pretrained(folder, *args, **kwargs)
            model.backbone.requires_grad_(False)  # loading makes new parameters, which would train
            model.tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config.backbone_config)
            model.processor = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsError(f"{folder}: not a complete PerFusionRM: {error}; run the reward stage again") from error
        if (folder / _FEATURES).is_file():
            model.encoder = FeatureEncoder.load(folder / _FEATURES)
        return model


def _plugins(config: PerFusionRMConfig) -> dict[str, PersonalPlugIn]:
    """The plug-ins of the variant, by the tower they serve; "both" serves the two (Fig. 5)."""
    clip = config.backbone_config
    sizes = {
        "text": (clip.text_config.hidden_size, clip.text_config.num_hidden_layers),
        "vision": (clip.vision_config.hidden_size, clip.vision_config.num_hidden_layers),
    }
    return {
        name: PersonalPlugIn(
            UserEncoder(
                config.cardinalities, config.embedding_dim, config.cross_layers, config.cross_norm, config.embedding_std
            ),
            config.adaptive_hidden,
            {tower: sizes[tower] for tower in towers},
        )
        for name, towers in VARIANTS[config.variant].items()
    }
