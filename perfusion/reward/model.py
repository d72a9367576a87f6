"""PerFusionRM: a frozen backbone whose encoders are told, layer by layer, for whom they look (Fig. 3, Eq. 2-6).

Legend: B groups, N candidates of a group, R rows (existing candidates of all groups), F user features, T tokens,
L layers and D width of an encoder, P width of the joint embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedModel

from perfusion.config import RewardConfig
from perfusion.data import FeatureEncoder
from perfusion.errors import ConfigError, DataError, WeightsError
from perfusion.model_folder import check_model_folder, forget_calls, reading
from perfusion.nn import AdaptiveNetwork, CrossNetwork, FeatureEmbedding, PersonalPlugIn, UserEncoder
from perfusion.nn.injection import make_injectable
from perfusion.reward.backbones import VARIANTS, Backbone, Told, TwoTowers
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
from perfusion.reward.weights import KINDS

__all__ = ["VARIANTS", "PerFusionRM", "PerFusionRMConfig"]

_FEATURES = "features.json"
_PROMPTS = 64  # a pass of the text tower


class PerFusionRMConfig(PreTrainedConfig):
    """Sizes of a PerFusionRM, saved as config.json.

    Attributes:
        backbone_config: the backbone's own configuration; its `model_type` says which kind it is.
        cardinalities: ids of each user feature, the unknown id 0 included.
        variant: which encoders get a plug-in, and whether it is one (Fig. 5).
        scale: "frozen" scores with the backbone's scale (of two towers exp(logit_scale) * cosine), "learned" trains
            it, "one" has none (the plain cosine).
        embedding_dim, embedding_std, cross_layers, cross_norm, adaptive_hidden: see `perfusion.config.RewardConfig`.
    """

    model_type = "perfusion_rm"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}

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
            sizes = dict(self.backbone_config or {})
            self.backbone_config = AutoConfig.for_model(sizes.pop("model_type", "clip"), **sizes)
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
        kind = KINDS[config.backbone_config.model_type]
        self.backbone = kind.model_class._from_config(config.backbone_config)
        self.tokenizer: Any = None
        self.processor: Any = None
        self.encoder: FeatureEncoder | None = None
        for layers in self.blind.layers.values():
            make_injectable(layers)
        self.backbone.requires_grad_(False)
        self.plugins = nn.ModuleDict(_plugins(config, self.blind))
        if config.scale == "learned":
            self.log_scale = nn.Parameter(self.blind.log_scale.detach().clone())
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
                backbone_config=backbone.model.config.to_dict(),
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
        model.backbone.load_state_dict(backbone.model.state_dict())
        if config.scale == "learned":
            model.log_scale.data.copy_(backbone.log_scale.data)
        model.tokenizer, model.processor, model.encoder = backbone.tokenizer, backbone.processor, encoder
        return model

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the plug-ins; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def scale(self) -> Tensor:
        """Factor of the match, a scalar."""
        if self.config.scale == "one":
            return torch.ones((), device=self.device)
        return (self.log_scale if self.config.scale == "learned" else self.blind.log_scale).exp()

    @property
    def blind(self) -> Backbone:
        """The user-blind backbone with its helpers."""
        return KINDS[self.config.backbone_config.model_type](self.backbone, self.tokenizer, self.processor)

    def hears(self, encoder: str) -> bool:
        """Whether a plug-in serves this encoder; if not, what it computes is the same for everybody."""
        return any(encoder in served for served in self.blind.plug_ins(self.config.variant).values())

    def knowledge(self, encoder: str, users: Tensor | None) -> Tensor | None:
        """What `encoder` is told about `users` (B, F): (B, L, 2, D), or None for no plug-in or no users (Eq. 4)."""
        if users is None:
            return None
        for name, served in self.blind.plug_ins(self.config.variant).items():
            if encoder in served:
                return self.plugins[name](users, encoder)
        return None

    def told(self, users: Tensor | None) -> Told:
        """What each encoder is told about `users` (B, F), when it asks."""
        return lambda encoder: self.knowledge(encoder, users)

    def text_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, users: Tensor | None = None
    ) -> Tensor:
        """v_text^u of a backbone of two towers, (B, P), not normalised; one per group."""
        return cast(TwoTowers, self.blind).prompt_embeds(input_ids, attention_mask, self.knowledge("text", users))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor,
        group: Tensor,
        users: Tensor | None = None,
    ) -> Tensor:
        """Scores of R candidates, of two towers scale * cosine, (R,) (Eq. 6).

        Args:
            input_ids, attention_mask: (B, T), one prompt per group.
            pixel_values: (R, 3, S, S), prepared.
            group: (R,) long, the group of each candidate.
            users: (B, F) long; None for user-blind.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        text = BatchEncoding({name: value for name, value in given.items() if value is not None})
        return self.blind.scores(text, pixel_values, group, self.told(users), self.scale)

    def score_candidates(self, batch: Candidates) -> Tensor:
        """Scores of a training batch, (R,), whatever of it is kept (see `freeze`).

        Raises:
            ConfigError: an embedding is given that this variant changes by user.
        """
        if isinstance(batch.text, Tensor) and self.hears("text"):
            raise ConfigError(f"variant {self.config.variant!r} changes prompt embeddings by user: pass tokens")
        if batch.image.ndim == 2 and self.hears("vision"):
            raise ConfigError(f"variant {self.config.variant!r} changes picture embeddings by user: pass pictures")
        return self.blind.scores(batch.text, batch.image, batch.group, self.told(batch.users), self.scale)

    def freeze(self, pixels: Tensor, prompts: Collection[str] = ()) -> Frozen:
        """What the frozen backbone says of these pictures and prompts, as far as this variant's users leave it alone.

        Args:
            pixels: (M, 3, H, W) uint8.
            prompts: of which `MOST_PROMPTS` are kept at most.
        """
        blind = self.blind
        pictures = known = None
        if isinstance(blind, TwoTowers) and not self.hears("vision"):
            pictures = embed_pictures(blind, pixels)
        elif start_fits(blind, pixels):
            pictures = start_pictures(blind, pixels)
        if isinstance(blind, TwoTowers) and not self.hears("text"):
            known = embed_prompts(blind, prompts, MOST_PROMPTS)
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
        text = self._read(prompts, told)
        parts = []
        for at in range(0, len(group), batch_pictures):
            rows = slice(at, at + batch_pictures)
            asked, place = group[rows].unique(return_inverse=True)
            pictures = self.blind.prepare(pixels[rows].to(self.device))
            users = None if told is None else told[asked]
            parts.append(self.blind.scores(_rows(text, asked), pictures, place, self.told(users), self.scale))
        return torch.cat(parts).float().cpu()

    def _read(self, prompts: Sequence[str], users: Tensor | None) -> BatchEncoding | Tensor:
        """Embeddings (B, P) of the prompts, a pass at a time; where prompts are not read alone, their tokens."""
        if not isinstance(self.blind, TwoTowers):
            return self.blind.tokens(prompts)
        parts = []
        for first in range(0, len(prompts), _PROMPTS):
            at = slice(first, first + _PROMPTS)
            asking = None if users is None else users[at]
            parts.append(self.text_embeds(**self.blind.tokens(prompts[at]), users=asking))
        return torch.cat(parts)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write all that `from_pretrained` needs: weights, config, tokenizer, image processor, features.json, card."""
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        if self.tokenizer is not None:
            forget_calls(self.tokenizer)
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
        check_model_folder(folder)
        with reading(f"{folder}: as a PerFusionRM", "Run the reward stage again"):
            model = super().from_pretrained(folder, *args, **kwargs)
            model.backbone.requires_grad_(False)  # loading makes new parameters, which would train
            config = model.config.backbone_config
            model.tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
            model.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        if (folder / _FEATURES).is_file():
            model.encoder = FeatureEncoder.load(folder / _FEATURES)
        return model


def _rows(text: BatchEncoding | Tensor, rows: Tensor) -> BatchEncoding | Tensor:
    """The prompts `rows` of embeddings or tokens."""
    if isinstance(text, Tensor):
        return text[rows]
    return BatchEncoding({name: values[rows] for name, values in text.items()})


def _plugins(config: PerFusionRMConfig, backbone: Backbone) -> dict[str, PersonalPlugIn]:
    """The plug-ins of the variant, by the encoder they serve; "both" serves two (Fig. 5)."""
    return {
        name: PersonalPlugIn(
            UserEncoder(
                config.cardinalities, config.embedding_dim, config.cross_layers, config.cross_norm, config.embedding_std
            ),
            config.adaptive_hidden,
            {encoder: backbone.sizes[encoder] for encoder in served},
        )
        for name, served in backbone.plug_ins(config.variant).items()
    }
