"""The optimizer BERT was trained with: Adam without bias correction, weight decay apart from the gradient.

    m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2;   x = x - lr (m / (sqrt(v) + eps) + decay x)

Paper: Devlin et al. 2019, arXiv:1810.04805; BERT4Rec's authors kept it (Sun et al. 2019, arXiv:1904.06690).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class BertAdam(torch.optim.Optimizer):
    """Steps by torch's fused AdamW, told that infinitely many steps are done: bias corrections are then 1.

    Args:
        params: parameters, or groups with `weight_decay` of their own.
        lr: at least 0.
        betas: in [0, 1).
        eps: added to the root of v.
        weight_decay: of groups that name none.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch types it by overloads
        """One step of every parameter that has a gradient; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for (lr, beta1, beta2, eps, decay), parameters in self._alike().items():
            states = [self._state_of(parameter) for parameter in parameters]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [torch.full((), torch.inf, device=parameter.device) for parameter in parameters],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr,
                weight_decay=decay,
                eps=eps,
                maximize=False,
            )
        return loss

    def _alike(self) -> dict[tuple[float, ...], list[Tensor]]:
        """Parameters with a gradient by (lr, beta1, beta2, eps, weight_decay): one fused call each."""
        alike: dict[tuple[float, ...], list[Tensor]] = defaultdict(list)
        for group in self.param_groups:
            key = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
            alike[key] += [parameter for parameter in group["params"] if parameter.grad is not None]
        return {key: parameters for key, parameters in alike.items() if parameters}

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return state
