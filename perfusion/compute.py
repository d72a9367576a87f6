"""How a training computes: device, precision, attention, memory format, checkpointing, compilation. One place for all.

The defaults are the plain path: float32, nothing traded. What cannot be had is an error, never a quiet substitute.
Weights and optimiser states stay float32 whatever the precision; lower ones are autocast's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from perfusion.errors import ConfigError
from perfusion.seeding import repeatable

if TYPE_CHECKING:
    from perfusion.config import ComputeConfig

__all__ = ["Compute", "pick_device"]

P = ParamSpec("P")
Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, Tensor])
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Compute:
    """What a `ComputeConfig` means on this machine.

    Attributes:
        device: where networks and batches are.
        dtype: of matrix products and convolutions.

    Raises:
        ConfigError: something is asked for that this machine does not have.
    """

    def __init__(self, config: ComputeConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.dtype = _PRECISIONS[config.precision]
        self.attention = _pick_attention(config.attention, self.device)
        self._check_precision()
        if config.compile:
            _check_compiler(self.device)

    def prepare(self, *modules: nn.Module) -> None:
        """Set networks up in place: U-Nets and adaptive networks, trained or frozen, before the optimiser is made."""
        for module in modules:
            module.to(self.device)
            if self.config.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            _set_attention(module, self.attention)
            if self.config.gradient_checkpointing:
                network: Any = module
                network.enable_gradient_checkpointing()
            if self.config.compile:
                for block in _blocks(module):
                    block.compile()

    def settle(self, *modules: nn.Module) -> None:
        """Networks in main memory and in the plain format, as they are saved."""
        for module in modules:
            module.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def autocast(self) -> AbstractContextManager:
        """Forward passes run in this; backward passes and losses do not."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def casting(self, function: Callable[P, Tensors]) -> Callable[P, Tensors]:
        """The function with its inside in `autocast` and its results in float32."""

        def call(*args: P.args, **kwargs: P.kwargs) -> Tensors:
            with self.autocast():
                found = function(*args, **kwargs)
            return found.float() if isinstance(found, Tensor) else (found[0].float(), found[1].float())

        return call

    def repeatable(self) -> AbstractContextManager:
        """Losses and their backward passes run in this: on a CPU they have the same bits every time."""
        return repeatable() if self.device.type == "cpu" else nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that float16 gradients do not vanish; for other precisions it changes nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def _check_precision(self) -> None:
        if self.dtype == torch.float16 and self.device.type != "cuda":
            raise ConfigError(
                f"compute.precision fp16 on {self.device.type}: half precision trains on CUDA only; use bf16 or fp32"
            )
        if self.dtype == torch.bfloat16 and self.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            raise ConfigError(
                f"compute.precision bf16: {torch.cuda.get_device_name()} has no bfloat16 arithmetic; use fp16 or fp32"
            )


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: "cuda" where there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("compute.device cuda: torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _pick_attention(name: str, device: torch.device) -> str:
    if name not in ("auto", "xformers"):
        return name
    from diffusers.utils import is_xformers_available

    there = device.type == "cuda" and is_xformers_available()
    if name == "xformers" and not there:
        why = "xformers runs on CUDA only" if device.type != "cuda" else "the package xformers is not installed"
        raise ConfigError(f"compute.attention xformers on {device.type}: {why}; use auto or sdpa")
    return "xformers" if there else "sdpa"


def _set_attention(module: nn.Module, name: str) -> None:
    from diffusers.models import attention_processor as kinds

    processor = {"sdpa": kinds.AttnProcessor2_0, "math": kinds.AttnProcessor, "xformers": kinds.XFormersAttnProcessor}
    for part in module.modules():
        if isinstance(part, kinds.Attention):
            part.set_processor(processor[name]())


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("compute.compile on cuda: the package triton is not installed; install it or set it to false")
    if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ConfigError(
            "compute.compile on cpu: no C++ compiler (g++, clang++) is here; install one or set it to false"
        )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a U-Net or an adaptive network: what runs whole, by whichever path they are called."""
    network: Any = module
    return [*network.down_blocks, network.mid_block, *getattr(network, "up_blocks", ())]
