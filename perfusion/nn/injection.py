"""Injection of user knowledge into every layer of a frozen CLIP tower (Eq. 3 and 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPTextModel, CLIPVisionModel

from perfusion.errors import ConfigError

__all__ = ["PersonalEncoderLayer", "make_injectable"]


class PersonalEncoderLayer(CLIPEncoderLayer):
    """A CLIP encoder layer that adds user knowledge before attention and before the feed-forward network (Eq. 3, 5).

    It adopts the parts of the layer it replaces, so parameters and their names stay as they were. The knowledge comes
    as an argument, not as state: calls may overlap, and gradient checkpointing recomputes the right thing.

    The paper leaves out the normalisations. The knowledge is added after the layer norm, right before the block it
    informs; added before the norm, its size would be divided by that of the hidden state.

    Args:
        layer: the layer to replace.
        index: l, its place in the tower, from 0.
    """

    def __init__(self, layer: CLIPEncoderLayer, index: int) -> None:
        super(GradientCheckpointingLayer, self).__init__()
        self.embed_dim = layer.embed_dim
        self.index = index
        self.self_attn = layer.self_attn
        self.layer_norm1 = layer.layer_norm1
        self.mlp = layer.mlp
        self.layer_norm2 = layer.layer_norm2

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        knowledge: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One layer (Eq. 3, 5).

        Args:
            hidden_states: (R, T, D), R rows (sequences or pictures) of T tokens.
            attention_mask: as transformers builds it, or None.
            knowledge: (R, L, 2, D) from a plug-in, one entry per row; None runs the untouched layer.
        """
        normed = self.layer_norm1(hidden_states)
        if knowledge is not None:
            normed = normed + knowledge[:, None, self.index, 0]  # u_attn^l, the same for every token
        attended, _ = self.self_attn(hidden_states=normed, attention_mask=attention_mask, **kwargs)
        hidden_states = hidden_states + attended

        normed = self.layer_norm2(hidden_states)
        if knowledge is not None:
            normed = normed + knowledge[:, None, self.index, 1]  # u_ffn^l
        return hidden_states + self.mlp(normed)


def make_injectable(tower: CLIPTextModel | CLIPVisionModel) -> None:
    """Replace the tower's layers in place by `PersonalEncoderLayer`s; its forward then takes `knowledge=`.

    Raises:
        ConfigError: the tower is not built of CLIP encoder layers.
    """
    layers: nn.ModuleList = tower.encoder.layers
    for index, layer in enumerate(layers):
        if not isinstance(layer, CLIPEncoderLayer):
            raise ConfigError(f"layer {index} is a {type(layer).__name__}; injection knows CLIPEncoderLayer only")
        if not isinstance(layer, PersonalEncoderLayer):
            layers[index] = PersonalEncoderLayer(layer, index)
