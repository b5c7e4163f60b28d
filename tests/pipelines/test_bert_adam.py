from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recsys.models import registry
from recsys.pipelines import checkpoint
from recsys.pipelines.bert_adam import BertAdam
from recsys.pipelines.optimization import OptimizationConfig, build_optimizer

B1, B2, EPS = 0.9, 0.999, 1e-6


def test_two_steps_are_those_worked_by_hand() -> None:
    """x = 1, then gradients 0.5 and -0.25 at lr .1 and decay .01; nothing corrects that both moments begin at 0."""
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = BertAdam([x], lr=0.1, betas=(B1, B2), weight_decay=0.01)
    x.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    # m = .05, v = .00025, root .0158113883: .05 / .0158123883 = 3.1620777; + .01 * 1
    assert float(x.detach()) == pytest.approx(1.0 - 0.1 * (0.05 / (0.00025**0.5 + EPS) + 0.01), abs=1e-12)
    assert float(x.detach()) == pytest.approx(0.68279221, abs=1e-7)
    before = float(x.detach())
    x.grad = torch.tensor([-0.25], dtype=torch.float64)
    optimizer.step()
    m, v = B1 * 0.05 - 0.1 * 0.25, B2 * 0.00025 + 0.001 * 0.0625
    assert float(x.detach()) == pytest.approx(before - 0.1 * (m / (v**0.5 + EPS) + 0.01 * before), abs=1e-12)


def test_many_parameters_of_unlike_groups_step_as_the_formula_says() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 5), (7,), (2, 2), (4,))]
    idle = nn.Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": [p], "weight_decay": 0.3 if p.dim() > 1 else 0.0} for p in parameters]
    optimizer = BertAdam([*groups, {"params": [idle]}], lr=1.0, betas=(B1, B2))
    copies = [p.detach().clone() for p in parameters]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in copies]
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        for number, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            m, v = moments[number]
            m.mul_(B1).add_(gradient, alpha=1 - B1)
            v.mul_(B2).add_(gradient**2, alpha=1 - B2)
            decay = 0.3 if parameter.dim() > 1 else 0.0
            copies[number] -= 0.01 * (step + 1) * (m / (v.sqrt() + EPS) + decay * copies[number])
        optimizer.step()
    for parameter, wanted in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-12)
    assert idle.tolist() == [1.0, 1.0], "no gradient, no step, not even by decay"
    assert set(optimizer.state[parameters[0]]) == {"exp_avg", "exp_avg_sq"}


def test_a_closure_is_called_with_gradients_on() -> None:
    x = nn.Parameter(torch.tensor([2.0]))
    optimizer = BertAdam([x], lr=0.1, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (x**2).sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert float(x.detach()) < 2.0


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        ("adamw", {"encoder.blocks.0.qkv.weight", "encoder.blocks.0.out.weight", "transform.weight"}),
        (
            "bert_adam",
            {"item.weight", "encoder.position.weight", "mask", "token_type"}
            | {"encoder.blocks.0.qkv.weight", "encoder.blocks.0.out.weight", "transform.weight"},
        ),
    ],
)
def test_the_decayed_parameters_are_named(optimizer: str, wanted: set[str]) -> None:
    """With no gradient but zeros a step changes what decays, and nothing else."""
    wanted = wanted | {"encoder.blocks.0.up.weight", "encoder.blocks.0.down.weight"}
    config = {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "token_type": True}
    model = registry.build("bert4rec", config, 6)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, OptimizationConfig(optimizer=optimizer, weight_decay=0.5, lr=0.1)).step()  # type: ignore[arg-type]  # one of the two
    moved = {name for name, parameter in model.named_parameters() if not parameter.eq(1.0).all()}
    assert moved == wanted


def test_a_config_gets_the_optimizer_it_names() -> None:
    """The first step of Adam is lr whatever the gradient; without bias correction it is lr * .1 / sqrt(1 - beta2)."""
    moved = {}
    for name in ("adamw", "bert_adam"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        layer.weight.grad = torch.ones(1, 1)
        build_optimizer(layer, OptimizationConfig(optimizer=name, lr=0.01, beta2=0.96)).step()
        moved[name] = 1.0 - float(layer.weight.detach())
    assert moved == pytest.approx({"adamw": 0.01, "bert_adam": 0.01 * 0.1 / 0.2}, rel=1e-4)


def test_a_checkpoint_brings_the_moments_back(tmp_path: Path) -> None:
    def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        optimizer = build_optimizer(module, OptimizationConfig(optimizer="bert_adam", weight_decay=0.01))
        more(module, optimizer, steps)
        return module, optimizer

    def more(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(module(torch.full((1, 3), step + 1.0)).square().sum() + module[0].weight.sum())  # type: ignore[index]  # a Sequential
            optimizer.step()

    module, optimizer = trained(3)
    path = checkpoint.save_checkpoint(tmp_path, 3, model=module, optimizer=optimizer, best={}, state={})
    other, other_optimizer = trained(0)
    checkpoint.load_checkpoint(path, model=other, optimizer=other_optimizer)
    more(module, optimizer, 2)
    more(other, other_optimizer, 2)
    for mine, theirs in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(other_optimizer.state[mine]["exp_avg_sq"], optimizer.state[theirs]["exp_avg_sq"])
