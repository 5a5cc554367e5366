import math

import pytest
import torch
from torch import nn

from glsd.models.head import Head


def test_bottlenecks_have_unit_length_for_any_leading_shape() -> None:
    head = Head(5, 7, 4, 9, norm_last_layer=False)
    u = head(torch.randn(2, 3, 2, 2, 5))
    assert u.shape == (2, 3, 2, 2, 4)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(2, 3, 2, 2))


def test_head_is_three_linear_layers_with_gelu_between() -> None:
    head = Head(3, 4, 2, 5, norm_last_layer=False).double()
    x = torch.randn(3, dtype=torch.float64)
    values = x.tolist()
    layers = [head.get_submodule(f"mlp.{index}") for index in (0, 2, 4)]
    for index, layer in enumerate(layers):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        values = [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        if index < 2:
            values = [v * 0.5 * (1 + math.erf(v / 2**0.5)) for v in values]
    length = math.sqrt(sum(v * v for v in values))
    assert head(x).tolist() == pytest.approx([v / length for v in values])


def test_last_layer_is_torchs_weight_norm() -> None:
    head = Head(3, 4, 6, 5, norm_last_layer=False).double()
    with torch.no_grad():
        head.last_layer.weight_g.uniform_(0.5, 2)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5, bias=False, dtype=torch.float64))
    with torch.no_grad():
        normed.parametrizations.weight.original0.copy_(head.last_layer.weight_g)
        normed.parametrizations.weight.original1.copy_(head.last_layer.weight_v)
    cotangent = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(head.last_layer_weight(), normed.weight)
    ours = torch.autograd.grad(head.last_layer_weight(), head.last_layer_parameters(), cotangent)
    theirs = torch.autograd.grad(normed.weight, list(normed.parametrizations.parameters()), cotangent)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_prototypes_start_at_unit_length_and_stay_there_if_asked(norm_last_layer: bool) -> None:
    head = Head(3, 4, 6, 50, norm_last_layer)
    torch.testing.assert_close(head.last_layer_weight().norm(dim=1), torch.ones(50))
    assert head.last_layer.weight_g.requires_grad is not norm_last_layer
    assert len(head.last_layer_parameters()) == (1 if norm_last_layer else 2)


def test_weights_start_as_the_authors() -> None:
    torch.manual_seed(0)
    head = Head(64, 256, 64, 512, norm_last_layer=False)
    for index in (0, 2, 4):
        layer = head.get_submodule(f"mlp.{index}")
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.any()
    v = head.last_layer.weight_v
    assert v.abs().max() <= 1 / 8  # nn.Linear's uniform bound 1 / sqrt(64)
    assert v.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.03)


def test_a_head_has_23_million_parameters() -> None:
    with torch.device("meta"):
        head = Head(768, 2048, 256, 65536, norm_last_layer=False)
    assert round(sum(parameter.numel() for parameter in head.parameters()) / 1e6, 1) == 23.1


def test_bottlenecks_keep_float32_under_autocast() -> None:
    head = Head(5, 7, 4, 9, norm_last_layer=False)
    with torch.autocast("cpu", torch.bfloat16):
        u = head(torch.randn(8, 5))
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(8))
