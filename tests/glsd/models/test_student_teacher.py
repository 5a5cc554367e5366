import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from glsd.config import Config
from glsd.models.backbone import Backbone
from glsd.models.centering import Centers
from glsd.models.drop_path import drop_path_keys
from glsd.models.head import Head
from glsd.models.student_teacher import Network, build_student_teacher, ema_update, head_pairs

SETTINGS = {
    "model.backbone": "test_vit",
    "model.hidden_dim": 16,
    "model.bottleneck_dim": 8,
    "model.num_prototypes": 32,
    "augment.global_size": 48,
    "augment.local_sizes": (32, 16),
    "augment.num_local_crops": (3, 1),
}


def config_of(**changes: object) -> Config:
    return Config().with_overrides(SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


def crops_of(config: Config, num_images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_images, views, 3, size, size, generator=generator) for size, views in config.augment.groups]


def test_outputs_come_in_groups_of_views() -> None:
    config = config_of()
    student, _ = build_student_teacher(config)
    outputs = student(crops_of(config), drop_path_keys(0, 0, torch.arange(2), config.augment.num_views))
    for (size, views), out in zip(config.augment.groups, outputs, strict=True):
        side = size // 16
        assert out.z_bar.shape == (2, views, 64)
        assert out.z.shape == (2, views, side, side, 64)
        assert out.u["global"].shape == (2, views, 8)
        assert out.u["dense"].shape == (2, views, side, side, 8)


def test_a_view_gives_the_same_alone_and_in_its_group() -> None:
    config = config_of(model__drop_path=0.5)
    student, _ = build_student_teacher(config)
    crops = crops_of(config)
    keys = drop_path_keys(0, 0, torch.arange(2), config.augment.num_views)
    with torch.no_grad():
        together = student(crops, keys)[1]
        alone = student([crops[1][1:, 2:3]], keys[1:, 4:5])[0]  # view 4 of the batch is the third local crop
    torch.testing.assert_close(alone.z_bar[0, 0], together.z_bar[1, 2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.u["global"][0, 0], together.u["global"][1, 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_student_and_teacher_start_equal(backbone: str) -> None:
    student, teacher = build_student_teacher(config_of(model__backbone=backbone, model__drop_path=0.0))
    weights = teacher.state_dict()
    assert list(weights) == list(student.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in student.state_dict().items())
    assert {p.data_ptr() for p in student.parameters()}.isdisjoint(p.data_ptr() for p in teacher.parameters())


def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher() -> None:
    config = config_of()
    student, teacher = build_student_teacher(config)
    crops = crops_of(config)
    keys = drop_path_keys(0, 0, torch.arange(2), config.augment.num_views)
    centers: Centers = {"global": torch.zeros(32), "dense": torch.zeros(32)}
    heads = head_pairs(student, teacher, centers, 0.1, 0.04)
    total = torch.zeros(())
    for out, target in zip(student(crops, keys)[:1], teacher(crops[:1]), strict=True):
        for level, pair in heads.items():
            total = total + ((out.u[level] @ pair.weight_s.T) * (target.u[level] @ pair.weight_t.T)).sum()
    total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_initial_weights_depend_on_the_seed_alone_and_disturb_no_random_numbers() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = build_student_teacher(config_of())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, _ = build_student_teacher(config_of())
    third, _ = build_student_teacher(config_of(seed=1))
    weights = first.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in second.state_dict().items())
    assert not torch.equal(weights["heads.global.mlp.0.weight"], third.state_dict()["heads.global.mlp.0.weight"])


def test_vanilla_has_no_dense_head_and_shares_all_other_initial_weights() -> None:
    vanilla, _ = build_student_teacher(config_of(objective__setting="vanilla"))
    geometric, _ = build_student_teacher(config_of())
    similarity, _ = build_student_teacher(config_of(objective__setting="similarity", model__drop_path=0.3))
    assert vanilla.heads.keys() == vanilla(crops_of(config_of()))[0].u.keys() == {"global"}
    assert len(geometric.last_layer_parameters()) == 2 * len(vanilla.last_layer_parameters()) == 4
    weights = geometric.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in vanilla.state_dict().items())
    assert all(torch.equal(weights[name], value) for name, value in similarity.state_dict().items())
    assert not torch.equal(weights["heads.global.mlp.0.weight"], weights["heads.dense.mlp.0.weight"])


def test_crops_that_the_backbone_cannot_take_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="test_vit cannot take crops of 40 px; it takes 32 px or 48 px"):
        build_student_teacher(config_of(augment__local_sizes=(40, 32)))


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
