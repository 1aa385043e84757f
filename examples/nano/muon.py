"""
Muon, the optimiser of the weight matrices: Nesterov momentum, orthogonalised by Newton-Schulz steps. Knows no model.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Iterable

import torch

MOMENTUM, WEIGHT_DECAY = 0.95, 0.02


class Muon(torch.optim.Optimizer):
    """For matrices only; embeddings, norms and biases take AdamW."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        """One update of every matrix."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                momentum = state["momentum"] if state else torch.zeros_like(p)
                state["momentum"] = momentum.mul_(MOMENTUM).add_(p.grad)
                update = orthogonalised(p.grad + MOMENTUM * momentum)
                # the same change of the layer's output, whatever its shape
                shape = max(1, p.size(0) / p.size(1)) ** 0.5
                p.mul_(1 - group["lr"] * WEIGHT_DECAY).add_(update, alpha=-group["lr"] * shape)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest semi-orthogonal matrix, (rows, columns): five steps in bfloat16 leave singular values from about 0.7 to 1.2."""
    x: torch.Tensor = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).float()
