"""Parameter groups, the clip of each tensor, and the gate."""

import math

import pytest
import torch
from torch import nn

from glsd.training.optimizer import build_optimizer, clip_each, gated_step, set_hyperparameters


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_only_tensors_of_two_or_more_dimensions_decay():
    model = two_layers()
    optimizer = build_optimizer(model)
    set_hyperparameters(optimizer, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.1 * 0.5) if old.ndim >= 2 else old)


def test_each_tensor_is_clipped_by_its_own_norm():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.tensor([30.0, 40.0])
    parameters[1].grad = torch.tensor([2.0])
    assert clip_each(parameters, max_norm=5.0)
    scale = 5.0 / (math.hypot(30.0, 40.0) + 1e-6)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([30.0 * scale, 40.0 * scale]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([2.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_found(bad):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.ones(2), torch.tensor([bad])
    assert not clip_each(parameters, max_norm=3.0)


def test_a_closed_gate_leaves_parameters_and_moments_alone():
    model = two_layers()
    optimizer = build_optimizer(model)
    set_hyperparameters(optimizer, learning_rate=0.1, weight_decay=0.5)

    def step(gradient: float, gate: bool) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        gated_step(optimizer, torch.tensor(gate))

    step(1.0, gate=True)
    before = [parameter.clone() for parameter in model.parameters()]
    moments = [optimizer.state[parameter]["exp_avg"].clone() for parameter in model.parameters()]
    step(math.nan, gate=False)
    for old, moment, parameter in zip(before, moments, model.parameters(), strict=True):
        assert torch.equal(parameter, old)
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moment)
        assert optimizer.state[parameter]["step"] == 1
