import pytest
import torch
from torch import Tensor

from glsd.config import load_config
from glsd.evaluation import Encoder, block_representations
from glsd.models import build_backbone

CONFIG = load_config("demo")


def encoder_of(backbone: str) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(build_backbone(backbone), CONFIG)


SWIN, VIT = encoder_of("swin_tiny_patch4_window7_224"), encoder_of("vit_tiny_patch16_224")


def images(size: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("size", [96, 224])
def test_four_blocks_of_swin_t_are_those_of_its_stages_run_one_by_one(size: int) -> None:
    model = SWIN.backbone.model
    with torch.no_grad():
        x = model.layers[1](model.layers[0](model.patch_embed(images(size))))
        x = model.layers[2].downsample(x)
        third_stage = [x := block(x) for block in model.layers[2].blocks]
        x = model.layers[3].downsample(x)
        last_stage = [x := block(x) for block in model.layers[3].blocks]
        expected = [block.flatten(1, 2).mean(1) for block in third_stage[-2:]]
        expected += [model.norm(block).flatten(1, 2).mean(1) for block in last_stage]
    found = block_representations(SWIN, images(size), 4)
    assert found.shape == (2, 2304)
    torch.testing.assert_close(found, torch.cat(expected, 1))


@pytest.mark.parametrize("size", [96, 224])
def test_blocks_of_a_vit_are_represented_by_their_class_token(size: int) -> None:
    model = VIT.backbone.model
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images(size)))))
        outputs = [x := block(x) for block in model.blocks]
    expected = torch.cat([model.norm(output)[:, 0] for output in outputs[-3:]], 1)
    torch.testing.assert_close(block_representations(VIT, images(size), 3), expected)


@pytest.mark.parametrize("encoder", [SWIN, VIT, encoder_of("resnet10t")], ids=["swin", "vit", "resnet"])
def test_one_block_is_z_bar(encoder: Encoder) -> None:
    assert torch.equal(block_representations(encoder, images(96), 1), encoder(images(96))[0])


@pytest.mark.parametrize("encoder", [SWIN, VIT], ids=["swin", "vit"])
def test_the_last_of_several_blocks_is_z_bar(encoder: Encoder) -> None:
    assert torch.equal(
        block_representations(encoder, images(96), 2)[:, -encoder.backbone.dim :], encoder(images(96))[0]
    )


def test_the_encoder_is_left_as_it_was() -> None:
    block_representations(SWIN, images(96), 4)
    assert not any(module._forward_hooks for module in SWIN.modules())


def test_a_backbone_without_blocks_and_too_many_blocks_are_errors() -> None:
    with pytest.raises(ValueError, match=r"resnet10t has no blocks .* as Swin and ViT have; use num_blocks 1"):
        block_representations(encoder_of("resnet10t"), images(96), 4)
    with pytest.raises(ValueError, match=r"num_blocks must be in \[1, 12\] for backbone swin_tiny.*, not 13"):
        block_representations(SWIN, images(96), 13)
