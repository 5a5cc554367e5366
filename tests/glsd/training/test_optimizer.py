"""Parameter groups, the clip of each tensor, the gate, and the teacher's average."""

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from glsd.models.backbone import Backbone
from glsd.models.head import Head
from glsd.models.student_teacher import Network, build_student_teacher
from glsd.training.optimizer import build_optimizer, clip_each, ema_update, gated_step, set_hyperparameters
from tests.glsd.models.test_student_teacher import config_of, crops_of


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


def disturbed(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in network.buffers():
            buffer.add_(torch.ones_like(buffer))


@pytest.mark.parametrize("momentum", [0.75, torch.tensor(0.75)], ids=["float", "tensor"])
@pytest.mark.parametrize("gate", [None, torch.tensor(True)], ids=["no gate", "gate"])
def test_teacher_is_the_moving_average_of_the_student(momentum: float | Tensor, gate: Tensor | None) -> None:
    student, teacher = build_student_teacher(config_of(model__backbone="test_resnet", model__drop_path=0.0))
    disturbed(student)
    before = copy.deepcopy(teacher)
    ema_update(teacher, student, momentum, gate)
    for new, old, target in zip(teacher.parameters(), before.parameters(), student.parameters(), strict=True):
        some = slice(None, None, 1 + new.numel() // 1000)
        pairs = zip(old.flatten()[some].tolist(), target.flatten()[some].tolist(), strict=True)
        expected = [0.75 * t + 0.25 * s for t, s in pairs]
        assert new.flatten()[some].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    statistics = dict(student.named_buffers())
    assert any("running_var" in name for name in statistics)
    assert all(torch.equal(value, statistics[name]) for name, value in teacher.named_buffers())


def test_a_false_gate_leaves_the_teacher_as_it_is() -> None:
    student, teacher = build_student_teacher(config_of(model__backbone="test_resnet", model__drop_path=0.0))
    disturbed(student)
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher, student, 0.75, torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_teacher_of_batch_norm_takes_statistics_of_its_views_and_keeps_the_students() -> None:
    config = config_of(model__backbone="test_resnet", model__drop_path=0.0)
    student, teacher = build_student_teacher(config)
    crops = crops_of(config, num_images=4)
    shifted = [crops[0] * 3 + 1]
    torch.testing.assert_close(teacher(shifted)[0].z, student(shifted)[0].z)
    student(crops)
    ema_update(teacher, student, 1.0)
    statistics = dict(student.named_buffers())
    assert all(torch.equal(value, statistics[name]) for name, value in teacher.named_buffers())


def test_average_of_swin_ignores_masks_of_sizes_that_only_the_student_saw() -> None:
    student, teacher = (
        Network(
            Backbone(
                timm.create_model(
                    "swin_tiny_patch4_window7_224",
                    num_classes=0,
                    strict_img_size=False,
                    embed_dim=8,
                    num_heads=(1, 2, 2, 4),
                ),
                "small swin",
            ),
            {"global": Head(64, 8, 4, 16, norm_last_layer=True)},
        )
        for _ in range(2)
    )
    config = config_of()
    with torch.no_grad():
        student(crops_of(config))
        teacher(crops_of(config)[:1])
    disturbed(student)
    ema_update(teacher, student, 0.0)
    assert all(torch.allclose(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
