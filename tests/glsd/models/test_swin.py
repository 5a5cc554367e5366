import math

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from glsd.models.backbone import Backbone
from glsd.models.swin import PadFirstBlock

SMALL = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}


def small_swin(window: int = 7) -> SwinTransformer:
    model: SwinTransformer = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, window_size=window, strict_img_size=False, **SMALL
    )
    return model.double().eval()


def windowed_attention_in_loops(block: PadFirstBlock, x: Tensor) -> Tensor:
    """Each token of the padded map looks at those that share its shifted window and did not come around an edge."""
    (height, width), (window_h, window_w), (shift_h, shift_w) = x.shape[:2], block.window, block.shift
    padded_h, padded_w = math.ceil(height / window_h) * window_h, math.ceil(width / window_w) * window_w
    attention = block.attn
    q, k, v = {}, {}, {}
    place = {}
    for i in range(padded_h):
        for j in range(padded_w):
            token = x[i, j] if i < height and j < width else torch.zeros_like(x[0, 0])
            q[i, j], k[i, j], v[i, j] = attention.qkv(token).view(3, attention.num_heads, -1)
            row, column = (i - shift_h) % padded_h, (j - shift_w) % padded_w
            came_around = (i < shift_h, j < shift_w)
            place[i, j] = (row // window_h, column // window_w), came_around, row, column
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            window, came_around, row, column = place[i, j]
            seen = [token for token in place if place[token][:2] == (window, came_around)]
            heads = []
            for head in range(attention.num_heads):
                logits = []
                for token in seen:
                    _, _, other_row, other_column = place[token]
                    offset = (
                        (row - other_row + window_h - 1) * (2 * window_w - 1) + column - other_column + window_w - 1
                    )
                    bias = attention.relative_position_bias_table[offset, head]
                    logits.append(float(q[i, j][head] @ k[token][head] * attention.scale + bias))
                total = sum(math.exp(logit) for logit in logits)
                pairs = zip(logits, seen, strict=True)
                heads.append(sum(math.exp(logit) / total * v[token][head] for logit, token in pairs))
            out[i, j] = attention.proj(torch.cat(heads))
    return out


@pytest.mark.parametrize(("height", "width"), [(6, 6), (8, 8), (3, 5), (9, 4)])
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_pads_before_it_shifts(height: int, width: int, shift: int) -> None:
    torch.manual_seed(0)
    timms = SwinTransformerBlock(8, (16, 16), num_heads=2, window_size=4, shift_size=shift).double()
    block = PadFirstBlock(timms)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        x = torch.randn(2, height, width, 8, dtype=torch.float64)
        expected = torch.stack([windowed_attention_in_loops(block, row) for row in x])
        torch.testing.assert_close(block.window_attention(x), expected)


@pytest.mark.parametrize("window", [7, 14])
def test_swin_equals_timms_at_224_and_not_at_96(window: int) -> None:
    torch.manual_seed(0)
    model = small_swin(window)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        large, local = (torch.randn(2, 3, size, size, dtype=torch.float64) for size in (224, 96))
        theirs = [model.forward_features(x) for x in (large, local)]
        backbone = Backbone(model, "small swin")
        ours = [backbone(x)[1] for x in (large, local)]
    torch.testing.assert_close(ours[0], theirs[0])
    assert (ours[1] - theirs[1]).norm() > 0.01 * theirs[1].norm()


def test_features_at_96_px_are_the_authors() -> None:
    # Recorded in float64 from models/swin_transformer.py of tileb1/global-local-self-distillation at commit 7de2526
    # (SwinTransformer of the same shape, window 7, LayerNorm eps 1e-6, forward_features), weights and input as here,
    # torch 2.15 on a CPU. Swin-T with windows of 7 and of 14 gave no difference at all, at 224 and at 96 px.
    recorded_z_bar = [-2.854299721, 0.365474924, 0.058921996, -0.550258146, -1.660441444]
    recorded_first = [-2.821603667, 0.32425188, 0.098066593, -0.582350396, -1.639301972]
    recorded_last = [-2.918239876, 0.455023053, -0.032693223, -0.474777593, -1.710729822]
    model = small_swin()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(count * (1 + 0.1 * index) + index).view(parameter.shape)
            parameter.copy_(wave + float("norm" in name and name.endswith("weight")))
        x = torch.sin(torch.arange(3 * 96 * 96, dtype=torch.float64) ** 1.5).view(1, 3, 96, 96)
        z_bar, z = Backbone(model, "small swin")(x)
    for ours, recorded in ((z_bar[0], recorded_z_bar), (z[0, 0, 0], recorded_first), (z[0, 2, 2], recorded_last)):
        assert ours[:5].tolist() == pytest.approx(recorded, abs=1e-8)


def test_masks_are_kept_for_each_size_and_not_saved() -> None:
    backbone = Backbone(small_swin(), "small swin")
    saved = list(backbone.state_dict())
    with torch.no_grad():
        for size in (96, 64, 96):
            backbone(torch.randn(1, 3, size, size, dtype=torch.float64))
    masks = [name for name, _ in backbone.named_buffers() if "layers.0.blocks.1.attention_mask" in name]
    mask = backbone.model.layers[0].blocks[1].attention_mask(28, 28, torch.device("cpu"))
    assert mask is backbone.model.layers[0].blocks[1].attention_mask(28, 28, torch.device("cpu"))
    assert masks == [f"model.layers.0.blocks.1.attention_mask_{side}x{side}" for side in (28, 21)]
    assert list(backbone.state_dict()) == saved
    assert all(module.eps == 1e-6 for module in backbone.modules() if isinstance(module, nn.LayerNorm))
