"""Optimisers: AdamW, or Muon for matrices and convolutions with AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) turns the momentum of each weight matrix into the
nearest orthogonal one before stepping along it. The tiny twins reach the same loss in less than half as many steps.
torch.optim.Muon leaves convolutions out, and both it and timm's compute in bfloat16, which processors without such
instructions emulate at a hundredth of the speed; hence this one, tested against timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perfusion.config import OptimiserConfig

__all__ = ["Muon", "build_optimisers", "is_matrix", "orthogonalise"]

_QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)  # a, b, c of the five Newton-Schulz steps, as in modded-nanogpt: singular values end between .7 and 1.2
_SMALLEST_SIDE = 16


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, (m, n) -> (m, n): all singular values near 1.

    Five steps X <- (a + b X X^T + c (X X^T)^2) X. Each is a polynomial of the first X X^T, so that only the smaller
    Gram matrix is iterated and X multiplied once.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    x = matrix / (matrix.norm() + 1e-7)
    gram = x @ x.T
    product = step = _polynomial(gram, *_QUINTIC[0])
    for coefficients in _QUINTIC[1:]:
        gram = step @ (gram @ step)
        step = _polynomial(gram, *coefficients)
        product = step @ product
    return product @ x


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b G + c G^2."""
    value = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    value.diagonal().add_(a)
    return value


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon steps a parameter: two sides of 16 or more, a convolution's kernel flattened into the second."""
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= _SMALLEST_SIDE


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay.

    The step is scaled to the size that AdamW's has, .2 lr sqrt(longer side) (Liu et al. 2025), so that rates and decay
    carry over.

    Args:
        parameters: matrices and convolution kernels, or groups of them.
        lr: learning rate.
        momentum: decay of the gradient's average, in [0, 1).
        weight_decay: as AdamW's.
    """

    def __init__(
        self, parameters: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients; no closure is evaluated."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1.0 - momentum)
        direction = orthogonalise(gradient.lerp(average, momentum).flatten(1))
        parameter.mul_(1.0 - lr * weight_decay)
        parameter.add_(direction.view_as(parameter), alpha=-0.2 * lr * max(direction.shape) ** 0.5)


def build_optimisers(
    parameters: Sequence[nn.Parameter], config: OptimiserConfig, groups: Sequence[Mapping[str, Any]] | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers of a training run: one, or with `method: muon` one for matrices and one for the rest.

    Args:
        parameters: all that train.
        config: method, learning rate and decays.
        groups: parameter groups in torch's form, whose own "lr" is kept; default: one group of all.
    """
    given = [dict(group) for group in groups] if groups is not None else [{"params": list(parameters)}]
    adamw: dict[str, Any] = {"lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay}
    if config.method == "adamw":
        return [torch.optim.AdamW(given, **adamw)]
    split = {
        wanted: [
            {**group, "params": chosen}
            for group in given
            if (chosen := [p for p in group["params"] if is_matrix(p) == wanted])
        ]
        for wanted in (True, False)
    }
    built: list[torch.optim.Optimizer] = []
    if split[True]:
        built.append(Muon(split[True], lr=config.lr, weight_decay=config.weight_decay))
    if split[False]:
        built.append(torch.optim.AdamW(split[False], **adamw))
    return built
