"""The personal adaptive network (Sec. 4.3.1): a trainable copy of a U-Net's encoder, steered by the user.

    z' = z_t + zero_conv(reshape(linear(u)))          u from feature embeddings and crossing (Eq. 2)
    copy of the encoder and mid block runs on (z', t, c)
    a zero 1x1 convolution for each block's output adds it to the frozen U-Net's skips and mid block

What the paper leaves open, and what is done here:

* "12 encoding blocks" of SD1.5 are the outputs a decoder reads: conv_in, six residual-attention pairs, two residual
  blocks, three downsamplers. The copy holds them with its own conv_in and time embedding, as ControlNet does.
* The user enters *before* conv_in, in the latent's own shape (ControlNet adds its hint after conv_in).
* "Unconditional", in guidance, means no text and no user: the network runs on the conditional half only.
* Two zero layers stand in a row (input and output convolutions), so at the first step only the output convolutions
  receive a gradient, the input convolution at the second, the user path at the third. By then the copy is learning what
  everybody likes from an input without a user in it, and a short training may never come to the user. The output
  convolutions alone make the network silent at first: with `enter_gain` the user is in the input from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from perfusion.generation.split import Residuals, check_supported, expand_timesteps, run_encoder
from perfusion.nn import UserEncoder

__all__ = ["PersonalAdaptiveNetwork"]


class PersonalAdaptiveNetwork(ModelMixin, ConfigMixin):
    """PAN over any Stable-Diffusion-like `UNet2DConditionModel`.

    Args:
        unet: config of the U-Net it steers.
        cardinalities: ids per user feature, the unknown id 0 included.
        embedding_dim, embedding_std: width of each feature embedding, and standard deviation of its initial values.
        cross_layers: layers of the cross network (Eq. 2).
        cross_norm: LayerNorm on its output; the paper has none.
        min_timestep: below this noise level the network says nothing and need not be run; 0 in the paper.
        enter_gain: the input convolution starts as the identity times this; 0, a zero convolution, in the paper.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        unet: Mapping[str, Any],
        cardinalities: Sequence[int],
        embedding_dim: int = 16,
        embedding_std: float = 0.3,
        cross_layers: int = 3,
        cross_norm: bool = False,
        min_timestep: int = 0,
        enter_gain: float = 0.0,
    ) -> None:
        super().__init__()
        check_supported(unet)
        copy = UNet2DConditionModel.from_config(dict(unet))
        size = copy.config.sample_size
        channels = copy.config.in_channels
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (channels, height, width)
        self.user = UserEncoder(cardinalities, embedding_dim, cross_layers, cross_norm, embedding_std)
        self.to_map = nn.Linear(self.user.width, channels * height * width)
        self.enter = _scaled_identity(nn.Conv2d(channels, channels, 1), enter_gain)
        self.time_proj, self.time_embedding = copy.time_proj, copy.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = copy.conv_in, copy.down_blocks, copy.mid_block
        widths = skip_channels(copy)
        self.leave = nn.ModuleList(_zero(nn.Conv2d(count, count, 1)) for count in widths)
        self.leave_mid = _zero(nn.Conv2d(copy.config.block_out_channels[-1], copy.config.block_out_channels[-1], 1))

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, cardinalities: Sequence[int], **options: Any
    ) -> PersonalAdaptiveNetwork:
        """A network whose copied blocks start as the U-Net's own; with it in place the U-Net's output is unchanged."""
        config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
        network = cls(config, list(cardinalities), **options)
        network.copy_blocks(unet)
        return network

    def copy_blocks(self, unet: UNet2DConditionModel) -> None:
        """Take over the weights of the U-Net's encoder and middle block, conv_in and time embedding."""
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            getattr(self, name).load_state_dict(getattr(unet, name).state_dict())

    def user_map(self, users: Tensor) -> Tensor:
        """What users add to the latent, the same at every noise level: features (B, F) -> (B, C, H, W).

        Compute it once a request.
        """
        u = self.user(users)
        return self.enter(self.to_map(u).reshape(-1, *self.latent_shape))

    def forward(self, z: Tensor, t: Tensor | int, context: Tensor, user_map: Tensor) -> Residuals:
        """Residuals for the frozen decoder.

        Args:
            z: (B, C, H, W) noised latents.
            t: (B,) or one noise level.
            context: (B, T, D) condition.
            user_map: (B, C, H, W) from `user_map`.
        """
        encoded = run_encoder(self, z + user_map, expand_timesteps(t, z), context)
        skips = tuple(conv(skip) for conv, skip in zip(self.leave, encoded.skips, strict=True))
        return Residuals(skips, self.leave_mid(encoded.mid))

    def speaks_at(self, t: Tensor) -> Tensor:
        """Whether the network is run at each noise level, (B,) bool."""
        return t >= self.config.min_timestep

    def user_parameters(self) -> list[nn.Parameter]:
        """The user path: embeddings, crossing, linear map and the input convolution."""
        return [*self.user.parameters(), *self.to_map.parameters(), *self.enter.parameters()]

    def copy_parameters(self) -> list[nn.Parameter]:
        """All but the user path."""
        user = {id(parameter) for parameter in self.user_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in user]


def skip_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of each encoder output that the decoder reads: 12 numbers for SD1.5."""
    widths = [unet.config.block_out_channels[0]]
    for block in unet.down_blocks:
        widths += [resnet.out_channels for resnet in block.resnets]
        if block.downsamplers is not None:
            widths.append(block.resnets[-1].out_channels)
    return widths


def _scaled_identity(module: nn.Conv2d, gain: float) -> nn.Conv2d:
    nn.init.dirac_(_zero(module).weight)
    module.weight.data.mul_(gain)
    return module


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
