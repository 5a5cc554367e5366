"""Swin as the paper's authors run it: the feature map is padded to whole windows first and then shifted.

timm shifts first and pads after. The two agree where maps are whole windows (224 px) and differ where they are not:
96 px crops have maps of 24, 12, 6 and 3 tokens. LayerNorm's epsilon is the authors' 1e-6, timm's 1e-5.
`follow_reference` changes both in a timm Swin Transformer; names of parameters stay timm's.
"""

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
_MASKED = -100.0  # the authors' and timm's value; exp(-100) vanishes in every precision


def follow_reference(model: SwinTransformer) -> None:
    """Replace the blocks of a timm Swin Transformer by ones that pad before the shift, in place, weights kept."""
    for stage in model.layers:
        blocks = stage.get_submodule("blocks")
        assert isinstance(blocks, nn.Sequential)
        for index, block in enumerate(blocks):
            assert isinstance(block, SwinTransformerBlock)
            blocks[index] = PadFirstBlock(block)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = LAYER_NORM_EPS


class PadFirstBlock(nn.Module):
    """A Swin block made of the parts of timm's; it takes maps of any size."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.window: tuple[int, int] = block.window_size
        self.shift: tuple[int, int] = block.shift_size
        self.norm1 = block.norm1
        self.attn = block.attn
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2

    def forward(self, x: Float[Tensor, "rows height width dim"]) -> Float[Tensor, "rows height width dim"]:
        """Windowed attention and the perceptron, each on its residual branch."""
        x = x + self.drop_path1(self.window_attention(self.norm1(x)))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out

    def window_attention(self, x: Float[Tensor, "rows height width dim"]) -> Float[Tensor, "rows height width dim"]:
        """Pad, shift, attend within windows, shift back, crop."""
        rows, height, width, dim = x.shape
        x = nn.functional.pad(x, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        mask = None
        if any(self.shift):
            mask = self.attention_mask(x.shape[1], x.shape[2], x.device)
            x = x.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        padded = x.shape
        x = self.attn(_windows(x, self.window), mask=mask)
        x = x.view(rows, padded[1] // self.window[0], padded[2] // self.window[1], *self.window, dim)
        x = x.transpose(2, 3).reshape(padded)
        if any(self.shift):
            x = x.roll(self.shift, dims=(1, 2))
        return x[:, :height, :width]

    def attention_mask(self, height: int, width: int, device: torch.device) -> Float[Tensor, "windows area area"]:
        """0 where two tokens of a shifted window were neighbours before the shift, else -100; one buffer for a size."""
        name = f"attention_mask_{height}x{width}"
        if name not in self._buffers:
            # A mask made while features are computed in inference mode serves training later.
            with torch.inference_mode(False):
                self.register_buffer(name, _shift_mask((height, width), self.window, self.shift, device), False)
        mask: Tensor = self._buffers[name]  # type: ignore[assignment]
        return mask


def _shift_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Float[Tensor, "windows area area"]:
    """After a shift the last window of each axis holds two regions, which are not neighbours."""
    rows, columns = (
        (torch.arange(n, device=device) >= n - w).int() + (torch.arange(n, device=device) >= n - s).int()
        for n, w, s in zip(size, window, shift, strict=True)
    )
    regions = _windows((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]  # (windows, area)
    return torch.where(regions[:, None] == regions[:, :, None], 0.0, _MASKED)


def _windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(rows, height, width, dim) to (rows * windows, area, dim)."""
    rows, height, width, dim = x.shape
    x = x.view(rows, height // window[0], window[0], width // window[1], window[1], dim)
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], dim)
