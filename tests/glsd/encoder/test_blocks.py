import pytest
import torch
from torch import Tensor

from glsd.encoder.blocks import block_representations
from glsd.encoder.encoder import Encoder
from glsd.experiments import load_config
from glsd.models.backbone import build_backbone

CONFIG = load_config("demo")


def encoder_of(backbone: str) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(build_backbone(backbone), CONFIG)


@pytest.fixture(scope="module")
def swin() -> Encoder:
    return encoder_of("swin_tiny_patch4_window7_224")


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return encoder_of("vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return encoder_of("test_resnet")


def images(size: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("size", [96, 224])
def test_four_blocks_of_swin_t_are_those_of_its_stages_run_one_by_one(swin: Encoder, size: int) -> None:
    model = swin.backbone.model
    with torch.no_grad():
        x = model.layers[1](model.layers[0](model.patch_embed(images(size))))
        x = model.layers[2].downsample(x)
        third_stage = [x := block(x) for block in model.layers[2].blocks]
        x = model.layers[3].downsample(x)
        last_stage = [x := block(x) for block in model.layers[3].blocks]
        expected = [block.flatten(1, 2).mean(1) for block in third_stage[-2:]]
        expected += [model.norm(block).flatten(1, 2).mean(1) for block in last_stage]
    found = block_representations(swin, images(size), 4)
    assert found.shape == (2, 2304)
    torch.testing.assert_close(found, torch.cat(expected, 1))


@pytest.mark.parametrize("size", [96, 224])
def test_blocks_of_a_vit_are_represented_by_their_class_token(vit: Encoder, size: int) -> None:
    model = vit.backbone.model
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images(size)))))
        outputs = [x := block(x) for block in model.blocks]
    expected = torch.cat([model.norm(output)[:, 0] for output in outputs[-3:]], 1)
    torch.testing.assert_close(block_representations(vit, images(size), 3), expected)


@pytest.mark.parametrize("backbone", ["swin", "vit", "resnet"])
def test_one_block_is_z_bar(backbone: str, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(backbone)
    assert torch.equal(block_representations(encoder, images(96), 1), encoder(images(96))[0])


@pytest.mark.parametrize("backbone", ["swin", "vit"])
def test_the_last_of_several_blocks_is_z_bar(backbone: str, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(backbone)
    assert torch.equal(
        block_representations(encoder, images(96), 2)[:, -encoder.backbone.dim :], encoder(images(96))[0]
    )


def test_the_encoder_is_left_as_it_was(swin: Encoder) -> None:
    block_representations(swin, images(96), 4)
    assert not any(module._forward_hooks for module in swin.modules())


def test_a_backbone_without_blocks_and_too_many_blocks_are_errors(swin: Encoder, resnet: Encoder) -> None:
    with pytest.raises(ValueError, match=r"test_resnet has no blocks .* as Swin and ViT have; use num_blocks 1"):
        block_representations(resnet, images(96), 4)
    with pytest.raises(ValueError, match=r"num_blocks must be in \[1, 12\] for backbone swin_tiny.*, not 13"):
        block_representations(swin, images(96), 13)
