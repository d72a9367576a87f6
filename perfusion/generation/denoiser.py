"""One request's guided predictions: what stays the same from step to step is computed once and held here.

Guidance with a user: e0 + g (text - e0) + w (user - text), where e0 sees neither prompt nor user, text the prompt
alone, user both. A prediction that cancels is not computed: w = g needs no text term (a third of the decoder less), no
user needs no adaptive network. The frozen encoder runs once for text and user, the decoder once for all predictions.
With w = g that batch has the shape it has without a user, so that a network that says nothing leaves every picture as
it was, bit for bit; otherwise to rounding.

The user's map and a prompt's keys and values are computed once a request, which is exact; approximations are off by
default and stand in `Shortcuts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from perfusion.errors import ConfigError
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.split import (
    Encoded,
    Residuals,
    decode_deep,
    decode_finest,
    embed_time,
    encode,
    encode_finest,
    expand_timesteps,
    stack,
)

__all__ = ["Denoiser", "Shortcuts", "Unconditional", "guide", "remembered_projections"]

Unconditional = Literal["blind", "personal"]


@dataclass(frozen=True)
class Shortcuts:
    """What a step may borrow from the steps before it. A number of 1 borrows nothing and is exact.

    Attributes:
        pan_every: the adaptive network runs at every k-th step; its residuals serve the steps between.
        encoder_every: encoder, mid block and adaptive network run at every k-th step; between them the decoder alone
            runs, on the same features at the new noise level (encoder propagation, "Faster Diffusion").
        deep_every: all but the finest resolution runs at every k-th step; between them the finest resolution's blocks
            alone run, on what the deeper ones said last (DeepCache).

    Raises:
        ConfigError: a number below 1, or `encoder_every` and `deep_every` together.
    """

    pan_every: int = 1
    encoder_every: int = 1
    deep_every: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field.name} is {value!r}: give a whole number of steps, at least 1 (exact)")
        if self.encoder_every > 1 and self.deep_every > 1:
            raise ConfigError(
                f"encoder_every {self.encoder_every} and deep_every {self.deep_every} both say which blocks a step "
                "leaves out: leave one of them at 1"
            )


@dataclass(frozen=True)
class _View:
    """A prediction that guidance needs: of which half of the batch, and whether the adaptive network joins."""

    half: str
    personal: bool


def guide(none: Tensor | None, text: Tensor | None, user: Tensor | None, g: float, w: float) -> Tensor:
    """e0 + g (text - e0) + w (user - text).

    Args:
        none: e0, may be None where g = 1.
        text: may be None where w = g and there is a user.
        user: None where there is no user, or w = 0.
    """
    prompted = user if text is None else text
    assert prompted is not None
    guided = prompted if none is None else none + g * (prompted - none)
    return guided if text is None or user is None else guided + w * (user - text)


class Denoiser:
    """The guided prediction of one request, called once a step, from noise to picture.

    Args:
        unet: the frozen U-Net.
        pan: the adaptive network; may be None without a user.
        none, text: conditions of the empty prompt and of the prompts, (B, T, D) each.
        user_map: (B, C, H, W) of `PersonalAdaptiveNetwork.user_map`; None without a user.
        g, w: weights of the prompt and of the user.
        unconditional: what e0 sees: "blind" is no prompt and no user; "personal" is no prompt but the user, which runs
            the adaptive network on both halves, as ControlNet does, and leaves w without a part to play.
        shortcuts: approximations.

    Raises:
        ConfigError: `unconditional` is neither.
    """

    def __init__(
        self, unet: UNet2DConditionModel, pan: PersonalAdaptiveNetwork | None, none: Tensor, text: Tensor,
        user_map: Tensor | None, g: float, w: float, unconditional: Unconditional = "blind",
        shortcuts: Shortcuts | None = None,
    ) -> None:  # fmt: skip
        if unconditional not in get_args(Unconditional):
            raise ConfigError(f"unconditional {unconditional!r}: known are {', '.join(get_args(Unconditional))}")
        self.unet, self.pan, self.g, self.w = unet, pan, g, w
        self.both = unconditional == "personal"
        self.user_map = user_map if self.both or w != 0.0 else None
        self.shortcuts = Shortcuts() if shortcuts is None else shortcuts
        self.halves = ("text",) if g == 1.0 else ("none", "text")
        stacked = torch.cat([{"none": none, "text": text}[half] for half in self.halves])
        self._contexts: dict[tuple[str, ...], Tensor] = {}
        self._contexts |= {(half,): rows for half, rows in zip(self.halves, stacked.split(len(text)), strict=True)}
        self._contexts[self.halves] = stacked
        self._encoded: dict[str, Encoded] = {}  # by half
        self._residuals: dict[str, Residuals] = {}  # by half
        self._deep: dict[tuple[str, ...], Tensor] = {}  # by the predictions it is of
        self._steps_since_whole = self._steps_since_pan = 0

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within, keys and values of this request's prompts are computed once and not at every step; exact."""
        networks = [network for network in (self.unet, self.pan) if network is not None]
        with remembered_projections(networks, self._contexts.values()):
            yield

    def __call__(self, z: Tensor, t: Tensor | int) -> Tensor:
        """z (B, C, H, W) at noise level t -> the guided prediction, of the same shape and dtype."""
        latents, views = z.to(self.unet.dtype), self._views(t)
        whole = self._whole_step(views)
        self._encode(latents, t, whole)
        self._run_pan(latents, t, views, whole)
        predictions = self._decode(views, whole)
        if self.shortcuts.pan_every == self.shortcuts.encoder_every == self.shortcuts.deep_every == 1:
            self._encoded, self._residuals, self._deep = {}, {}, {}  # nothing is borrowed: give the memory back
        none, text, user = (
            predictions[name].to(z.dtype) if name in predictions else None for name in ("none", "text", "user")
        )
        return guide(none, text, user, self.g, self.w)

    def _views(self, t: Tensor | int) -> dict[str, _View]:
        """The predictions that guidance needs at this noise level, by name."""
        speaks = self.user_map is not None and self.pan is not None and int(t) >= self.pan.config.min_timestep
        views = {} if self.g == 1.0 else {"none": _View("none", speaks and self.both)}
        if not speaks or (self.w != self.g and not self.both):
            views["text"] = _View("text", False)
        if speaks:
            views["user"] = _View("text", True)
        return views

    def _whole_step(self, views: Mapping[str, _View]) -> bool:
        """Whether the whole U-Net is due, or nothing is there to borrow."""
        if self.shortcuts.deep_every > 1:
            whole = self._steps_since_whole >= self.shortcuts.deep_every or tuple(views) not in self._deep
        else:
            whole = self._steps_since_whole >= self.shortcuts.encoder_every or not self._encoded
        self._steps_since_whole = 1 if whole else self._steps_since_whole + 1
        return whole

    def _encode(self, z: Tensor, t: Tensor | int, whole: bool) -> None:
        """Both halves in one pass: all of the encoder, its finest resolution, or the new noise level alone."""
        if not whole and self.shortcuts.encoder_every > 1:
            temb = embed_time(self.unet, z, expand_timesteps(t, z))
            self._encoded = {half: replace(known, temb=temb) for half, known in self._encoded.items()}
            return
        run = encode if whole else encode_finest
        encoded = run(self.unet, z.repeat(len(self.halves), 1, 1, 1), t, self._contexts[self.halves])
        self._encoded = {half: encoded.rows(slice(i * len(z), (i + 1) * len(z))) for i, half in enumerate(self.halves)}

    def _run_pan(self, z: Tensor, t: Tensor | int, views: Mapping[str, _View], whole: bool) -> None:
        """The adaptive network, where it joins and is due."""
        halves = {view.half for view in views.values() if view.personal}
        if not halves:
            return
        assert self.pan is not None
        assert self.user_map is not None
        if (whole and self._steps_since_pan >= self.shortcuts.pan_every) or not self._residuals:
            self._residuals = {half: self.pan(z, t, self._contexts[half,], self.user_map) for half in sorted(halves)}
            self._steps_since_pan = 0
        self._steps_since_pan += 1

    def _decode(self, views: Mapping[str, _View], whole: bool) -> dict[str, Tensor]:
        """The predictions, each of its half's features, steered where the adaptive network joins."""
        encoded, names = self._gather(list(views.values())), tuple(views)
        if whole or self.shortcuts.deep_every == 1:
            self._deep = {names: decode_deep(self.unet, encoded)}
        rows = decode_finest(self.unet, encoded, self._deep[names]).chunk(len(names))
        return dict(zip(names, rows, strict=True))

    def _gather(self, views: Sequence[_View]) -> Encoded:
        """What the decoder reads, with the request's own context tensors, whose projections are remembered."""
        parts = [
            self._encoded[view.half].plus(self._residuals[view.half]) if view.personal else self._encoded[view.half]
            for view in views
        ]
        halves = tuple(view.half for view in views)
        if halves not in self._contexts:
            self._contexts[halves] = torch.cat([self._contexts[half,] for half in halves])
        return replace(stack(parts), context=self._contexts[halves])


@contextmanager
def remembered_projections(networks: Sequence[nn.Module], contexts: Collection[Tensor]) -> Iterator[None]:
    """Within, cross-attention projects each of `contexts` to keys and values once: exact, whatever computes attention.

    A tensor is known by its identity; others are projected as ever.
    """
    layers = [
        layer
        for network in networks
        for part in network.modules()
        if isinstance(part, Attention) and part.is_cross_attention and not part.fused_projections
        for layer in (part.to_k, part.to_v)
    ]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _once(layer.forward, contexts)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _once(forward: Callable[..., Tensor], contexts: Collection[Tensor]) -> Callable[..., Tensor]:
    """`forward` that answers at once for a context seen before."""
    answers: dict[int, Tensor] = {}  # by id: the contexts outlive this

    def remembered(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not any(x is context for context in contexts):
            return forward(x, *args, **kwargs)
        if id(x) not in answers:
            answers[id(x)] = forward(x, *args, **kwargs)
        return answers[id(x)]

    return remembered
