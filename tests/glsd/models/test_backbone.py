from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import timm
import torch
from torch import Tensor, nn

from glsd.models.backbone import build_backbone, timm_architecture

FAMILIES = {
    # name: (d, grid at 224 px, grid at 96 px)
    "swin_tiny_patch4_window7_224": (768, (7, 7), (3, 3)),
    "swin_tiny_patch4_window14_224": (768, (7, 7), (3, 3)),
    "vit_small_patch16_224": (384, (14, 14), (6, 6)),
    "resnet50": (2048, (7, 7), (3, 3)),
    "convnext_tiny": (768, (7, 7), (3, 3)),
    "vit_tiny_patch16_224": (192, (14, 14), (6, 6)),
    "resnet10t": (512, (7, 7), (3, 3)),
    "convnext_atto": (320, (7, 7), (3, 3)),
    "mobilenetv3_small_050": (288, (7, 7), (3, 3)),  # pools to another width than its map's
}
# Slow; the paper's own, as large, is tested with the quick ones.
LARGE = {"swin_tiny_patch4_window14_224", "vit_small_patch16_224", "resnet50", "convnext_tiny"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in FAMILIES]
)
def test_one_instance_gives_maps_of_all_crop_sizes(name: str) -> None:
    dim, grid_224, grid_96 = FAMILIES[name]
    backbone = build_backbone(name).eval()
    assert (backbone.dim, backbone.grid(224), backbone.grid(96)) == (dim, grid_224, grid_96)
    with torch.no_grad():
        for size, grid in ((96, grid_96), (64, backbone.grid(64))):
            z_bar, z = backbone(torch.randn(2, 3, size, size))
            assert z_bar.shape == (2, dim)
            assert z.shape == (2, *grid, dim)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("ese_vovnet19b_slim_dw", 96, (3, 3)),  # names all arguments that it does not know at once
        ("poolformer_s12", 96, (3, 3)),
        ("cait_xxs24_224", 224, (14, 14)),
        pytest.param("volo_d1_224", 224, (14, 14), marks=pytest.mark.slow),  # says of no token that it comes first
        pytest.param("hrnet_w18_ssld", 96, (3, 3), marks=pytest.mark.slow),
    ],
)
def test_models_of_other_habits_give_maps_too(name: str, size: int, grid: tuple[int, int]) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        z_bar, z = backbone(torch.randn(1, 3, size, size))
    assert z.shape == (1, *grid, backbone.dim)
    assert z_bar.shape == (1, backbone.dim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"), [("swin_tiny_patch4_window7_224", 27.5), ("swin_small_patch4_window7_224", 48.8)]
)
def test_swin_has_the_parameters_of_the_papers(name: str, millions: float) -> None:
    backbone = build_backbone(name)
    assert round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("depth", [8, 17])
def test_z_of_a_vit_is_its_patch_tokens_in_rows_and_z_bar_its_class_token(depth: int) -> None:
    backbone = build_backbone("test_vit").eval()
    size = 16 * depth
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        z_bar, z = backbone(x)
        tokens = backbone.model.forward_features(x)
    assert torch.equal(z_bar, tokens[:, 0])
    for row in range(depth):
        for column in range(depth):
            assert torch.equal(z[:, row, column], tokens[:, 1 + row * depth + column])


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_resnet", "mobilenetv3_small_050"])
def test_z_bar_is_the_mean_of_z_where_the_model_averages(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        z_bar, z = backbone(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(z_bar, z.mean((1, 2)))


def test_z_bar_of_convnext_is_normalised_after_pooling() -> None:
    backbone = build_backbone("test_convnext").eval()
    with torch.no_grad():
        z_bar, z = backbone(torch.randn(2, 3, 64, 64))
        norm: nn.Module = backbone.model.head.norm
        expected: Tensor = norm(z.mean((1, 2))[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(z_bar, expected)


def test_a_map_keeps_the_places_of_the_image() -> None:
    backbone = build_backbone("test_resnet").eval()
    x = torch.zeros(1, 3, 96, 96)
    x[:, :, :32, 64:] = 5.0  # upper right
    with torch.no_grad():
        change = (backbone(x)[1] - backbone(torch.zeros_like(x))[1]).norm(dim=-1)[0]
    assert change.argmax() == 2  # row 0, column 2 of 3 x 3


def test_window_14_is_spelled_like_window_7() -> None:
    assert timm_architecture("swin_small_patch4_window14_224") == (
        "swin_small_patch4_window7_224",
        {"window_size": 14},
    )
    assert timm_architecture("swin_tiny_patch4_window7_224") == ("swin_tiny_patch4_window7_224", {})
    stages = build_backbone("swin_tiny_patch4_window14_224").model.layers
    assert [stage.blocks[1].window for stage in stages] == [(14, 14), (14, 14), (14, 14), (7, 7)]
    assert [stage.blocks[1].shift for stage in stages] == [(7, 7), (7, 7), (0, 0), (0, 0)]


def test_timm_loads_the_weights_under_their_own_names() -> None:
    for name in ("swin_tiny_patch4_window14_224", "test_vit", "test_resnet"):
        architecture, model_args = timm_architecture(name)
        theirs = timm.create_model(architecture, num_classes=0, **model_args)
        ours = build_backbone(name, 0.1 if name != "test_resnet" else 0.0).model
        assert list(ours.state_dict()) == list(theirs.state_dict())


def test_features_in_inference_mode_leave_the_backbone_trainable() -> None:
    backbone = build_backbone("swin_tiny_patch4_window7_224")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        backbone(x)
    assert not any(buffer.is_inference() for buffer in backbone.buffers())
    backbone(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("test_vit", []),
        ("test_convnext", []),
        ("resnet10t", []),
        ("mobilenetv3_small_050", ["model.conv_head.weight", "model.conv_head.bias"]),
        ("lcnet_050", ["model.conv_head.weight", "model.conv_head.bias"]),
    ],
)
def test_exactly_the_parameters_that_z_bar_or_z_depends_on_are_trained(name: str, frozen: list[str]) -> None:
    backbone = build_backbone(name)
    assert [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad] == frozen
    z_bar, z = backbone.requires_grad_(True)(torch.randn(2, 3, 64, 64))
    (z_bar.sum() + z.sum()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == frozen


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_backbone_may_be_built_where_no_gradients_are_taken(
    mode: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glsd.models.backbone._known_shapes", {})  # as in a new process
    with mode():
        backbone = build_backbone("lcnet_050")
        assert backbone(torch.randn(2, 3, 64, 64))[0].shape == (2, 256)
    assert not all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vit", 100, "test_vit cannot take crops of 100 px; it takes 96 px or 112 px"),
        ("swin_tiny_patch4_window7_224", 95, "window7_224 cannot take crops of 95 px; it takes 92 px or 96 px"),
        pytest.param(
            "mixer_s16_224",
            96,
            "mixer_s16_224 cannot take crops of 96 px; it takes 224 px",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sizes_that_a_backbone_cannot_take_name_the_nearest(name: str, size: int, message: str) -> None:
    backbone = build_backbone(name)
    backbone.check_crop_sizes([224])
    with pytest.raises(ValueError, match=message):
        backbone.check_crop_sizes([224, size])


def test_an_unknown_model_names_the_nearest_spelling() -> None:
    with pytest.raises(ValueError, match="no model 'resnet5O'; did you mean 'resnet50'"):
        build_backbone("resnet5O")
    with pytest.raises(ValueError, match="no model 'swin_tini_patch4_window9_224'; did you mean 'swin_tiny"):
        build_backbone("swin_tini_patch4_window9_224")
    with pytest.raises(ValueError, match=r"no model 'resnet50\.a1_in1k'; did you mean 'resnet50'"):
        build_backbone("resnet50.a1_in1k")
    with pytest.raises(ValueError, match="no model 'hf-hub:timm/resnet50'"):
        build_backbone("hf-hub:timm/resnet50")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coat_tiny", "gives no feature map"),  # several
        ("pit_ti_224", "gives no feature map"),  # its class token alone
        pytest.param("qwen3_vit_88m_enc", "has no head that pools its feature map", marks=pytest.mark.slow),
        pytest.param("mobilenetv5_300m_enc", "has no head that pools its feature map", marks=pytest.mark.slow),
    ],
)
def test_a_model_without_a_map_or_a_head_that_pools_it_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["dla46_c", "lcnet_050"])  # without the layers, and with layers that it never calls
def test_a_drop_path_that_would_be_ignored_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"model.drop_path 0.1: backbone {name} has no paths to drop; set model.drop_path 0"
    ):
        build_backbone(name, 0.1)


def test_a_backbone_built_without_a_drop_path_takes_one_when_it_is_built_again() -> None:
    build_backbone("mobilenetv3_small_050")
    assert len(build_backbone("mobilenetv3_small_050", 0.1).drop_path_rates)
