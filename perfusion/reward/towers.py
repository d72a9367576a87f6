"""Towers run as a reward model needs them, CLIP's in full: cut where users are first heard, and short at the end.

Before the first layer nobody is heard, so what comes out there can be kept for each picture. After the last layer one
token of each row is read (the class token, the end of the prompt), so that layer computes that token alone: its query
sees the keys and values of all. Scores are those of transformers' own forward pass up to rounding; the backbone with
and without users goes through the same operations, so that knowledge of zero is no knowledge, bit for bit. Where the
end of a tower reads all tokens (SigLIP's pooling head) every layer is whole.

Legend: R rows (pictures or prompts), T tokens, L layers and D width of a tower, P width of the joint embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask

__all__ = ["all_layers", "layers_of_one_token", "picture_embeds", "picture_start", "prompt_embeds"]


def picture_start(clip: CLIPModel, pixel_values: Tensor) -> Tensor:
    """What the first layer of the vision tower is given, whoever looks: patches, positions, norm.

    Args:
        clip: the model; its layers may be injectable or not.
        pixel_values: (R, 3, S, S), prepared.

    Returns:
        (R, T, D).
    """
    tower = clip.vision_model
    return tower.pre_layrnorm(tower.embeddings(pixel_values))


def picture_embeds(clip: CLIPModel, start: Tensor, knowledge: Tensor | None = None) -> Tensor:
    """Embeddings of pictures, (R, P), not normalised.

    Args:
        start: (R, T, D) of `picture_start`.
        knowledge: (R, L, 2, D) from a plug-in, for injectable layers; None runs them untouched.
    """
    tower = clip.vision_model
    read = torch.zeros(len(start), dtype=torch.long, device=start.device)
    hidden = layers_of_one_token(tower.encoder.layers, start, None, None, read, knowledge)
    return clip.visual_projection(tower.post_layernorm(hidden))


def prompt_embeds(
    clip: CLIPModel, input_ids: Tensor, attention_mask: Tensor | None = None, knowledge: Tensor | None = None
) -> Tensor:
    """Embeddings of prompts, (R, P), not normalised.

    Args:
        input_ids, attention_mask: (R, T).
        knowledge: see `picture_embeds`.
    """
    tower = clip.text_model
    start = tower.embeddings(input_ids)
    mask: Any = create_causal_mask(
        config=tower.config, inputs_embeds=start, attention_mask=attention_mask, past_key_values=None
    )
    read = _end(input_ids, tower.eos_token_id)
    seen = torch.arange(start.shape[1], device=start.device) <= read[:, None]
    if attention_mask is not None:
        seen = seen & attention_mask.bool()
    hidden = layers_of_one_token(tower.encoder.layers, start, mask, seen, read, knowledge, is_causal=True)
    return clip.text_projection(tower.final_layer_norm(hidden))


def _end(input_ids: Tensor, eos: int) -> Tensor:
    """Place of each prompt's end token, (R,); eos 2 is transformers' mark of old models: the largest id."""
    ends = input_ids if eos == 2 else (input_ids == eos).int()
    return ends.argmax(dim=-1)


def all_layers(layers: Any, hidden: Tensor, mask: Tensor | None, knowledge: Tensor | None, **options: bool) -> Tensor:
    """All layers of all tokens, (R, T, D): transformers' own pass, bit for bit, where `knowledge` is None or zero.

    Args:
        layers: of a tower; injectable where there is knowledge.
        hidden: (R, T, D).
        mask: as transformers builds it, or None.
        knowledge: (R, L, 2, D), or None.
        options: of the layers.
    """
    told = {} if knowledge is None else {"knowledge": knowledge}
    for layer in layers:
        hidden = layer(hidden, attention_mask=mask, **told, **options)
    return hidden


def layers_of_one_token(
    layers: Any, hidden: Tensor, mask: Tensor | None, seen: Tensor | None, read: Tensor,
    knowledge: Tensor | None, **options: bool,
) -> Tensor:  # fmt: skip
    """All layers, of the last one only the token `read` (R,), which sees the tokens `seen` (R, T), or all: (R, D).

    Other arguments are those of `all_layers`, with which it agrees up to rounding.
    """
    hidden = all_layers(layers[:-1], hidden, mask, knowledge, **options)
    return _last_layer(layers[-1], hidden, seen, read, None if knowledge is None else knowledge[:, -1])


def _last_layer(
    layer: Any, hidden: Tensor, seen: Tensor | None, read: Tensor, knowledge: Tensor | None
) -> Tensor:  # fmt: skip
    """A layer, as `PersonalEncoderLayer` has it, for one token of each row; `knowledge` (R, 2, D) is this layer's."""
    attention = layer.self_attn
    rows = torch.arange(len(hidden), device=hidden.device)
    normed = layer.layer_norm1(hidden)
    if knowledge is not None:
        normed = normed + knowledge[:, None, 0]
    split = (attention.num_heads, attention.head_dim)
    query = attention.q_proj(normed[rows, read]).unflatten(-1, split)[:, :, None]  # (R, heads, 1, width)
    keys, values = (part(normed).unflatten(-1, split).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
    attended = functional.scaled_dot_product_attention(
        query, keys, values, None if seen is None else seen[:, None, None],
        dropout_p=attention.dropout if attention.training else 0.0, scale=attention.scale,
    )  # fmt: skip
    token = hidden[rows, read] + attention.out_proj(attended.flatten(1))
    normed = layer.layer_norm2(token)
    if knowledge is not None:
        normed = normed + knowledge[:, 1]
    return token + layer.mlp(normed)
