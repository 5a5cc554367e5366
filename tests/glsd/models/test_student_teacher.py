import pytest
import torch
from torch import Tensor

from glsd.config import Config
from glsd.models.centering import Centers
from glsd.models.drop_path import drop_path_keys
from glsd.models.student_teacher import build_student_teacher, head_pairs

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
