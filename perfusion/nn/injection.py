"""Injection of user knowledge into every layer of a frozen encoder (Eq. 3 and 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer
from transformers.models.vilt.modeling_vilt import ViltLayer

from perfusion.errors import ConfigError

__all__ = ["PersonalEncoderLayer", "PersonalSiglipLayer", "PersonalViltLayer", "make_injectable"]


class _Personal(nn.Module):
    """A layer that adopts the parts of the one it replaces, so parameters and their names stay as they were.

    Args:
        layer: the layer to replace.
        index: l, its place in the encoder, from 0.
    """

    def __init__(self, layer: nn.Module, index: int) -> None:
        nn.Module.__init__(self)
        _adopt(self, layer)
        self.index = index


class PersonalEncoderLayer(_Personal, CLIPEncoderLayer):
    """A CLIP encoder layer that adds user knowledge before attention and before the feed-forward network (Eq. 3, 5).

    The knowledge comes as an argument, not as state: calls may overlap, and gradient checkpointing recomputes the right
    thing.

    The paper leaves out the normalisations. The knowledge is added after the layer norm, right before the block it
    informs; added before the norm, its size would be divided by that of the hidden state.
    """

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


class PersonalSiglipLayer(PersonalEncoderLayer, SiglipEncoderLayer):  # type: ignore[misc]  # same parts, other classes
    """The same for SigLIP, whose layers have CLIP's parts under CLIP's names (Eq. 3, 5)."""


class PersonalViltLayer(_Personal, ViltLayer):
    """The same for ViLT, whose layers have parts of their own (Eq. 3, 5)."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        knowledge: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One layer (Eq. 3, 5); arguments and result are `ViltLayer`'s, and see `PersonalEncoderLayer`."""
        normed = self.layernorm_before(hidden_states)
        if knowledge is not None:
            normed = normed + knowledge[:, None, self.index, 0]  # u_attn^l
        attended, *weights = self.attention(normed, attention_mask, output_attentions=output_attentions)
        hidden_states = attended + hidden_states

        normed = self.layernorm_after(hidden_states)
        if knowledge is not None:
            normed = normed + knowledge[:, None, self.index, 1]  # u_ffn^l
        return self.output(self.intermediate(normed), hidden_states), *weights


_PERSONAL: dict[type[nn.Module], type[nn.Module]] = {
    CLIPEncoderLayer: PersonalEncoderLayer,
    SiglipEncoderLayer: PersonalSiglipLayer,
    ViltLayer: PersonalViltLayer,
}


def make_injectable(layers: nn.ModuleList) -> None:
    """Replace an encoder's layers in place by ones that take `knowledge=`.

    Raises:
        ConfigError: the encoder is not built of CLIP's, SigLIP's or ViLT's layers.
    """
    for index, layer in enumerate(layers):
        if isinstance(layer, tuple(_PERSONAL.values())):
            continue
        if type(layer) not in _PERSONAL:
            known = ", ".join(kind.__name__ for kind in _PERSONAL)
            raise ConfigError(f"layer {index} is a {type(layer).__name__}; injection knows {known} only")
        layers[index] = _PERSONAL[type(layer)](layer, index)


def _adopt(new: nn.Module, layer: nn.Module) -> None:
    """Make the parts of `layer` those of `new`, under their names and in their order."""
    for name, part in layer.named_children():
        new.add_module(name, part)
