"""Representations of several blocks (Sec. 4.3, linear evaluation): EsViT's script joins those of the last four."""

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from glsd.encoder.encoder import Encoder
from glsd.models.backbone import Backbone


@torch.no_grad()
def block_representations(
    encoder: Encoder, images: Float[Tensor, "batch 3 height width"], num_blocks: int
) -> Float[Tensor, "batch dim"]:
    """Representations of the last `num_blocks` blocks side by side, the deepest, z̄, last; of one block only z̄.

    A block is represented as the backbone represents the last one: final LayerNorm, then the mean over the tokens of a
    Swin and the [CLS] token (or what else the model pools) of a ViT. Blocks of Swin's earlier stages have another width
    than the LayerNorm and go without it, as in EsViT. Four blocks of Swin-T are 384 + 384 + 768 + 768 = 2304 numbers.

    Raises:
        ValueError: more than one block of a backbone that has none, or more blocks than it has.
    """
    if num_blocks == 1:
        z_bar: Tensor = encoder(images)[0]
        return z_bar
    chosen = _last_blocks(encoder.backbone, num_blocks)
    outputs: dict[nn.Module, Tensor] = {}

    def keep(block: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[block] = output

    handles = [block.register_forward_hook(keep) for block in chosen]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([_pooled(encoder.backbone, outputs[block]) for block in chosen], 1)


def _last_blocks(backbone: Backbone, num_blocks: int) -> list[nn.Module]:
    model = backbone.model
    if isinstance(model, SwinTransformer):
        blocks = [block for stage in model.layers for block in stage.get_submodule("blocks").children()]
    elif isinstance(model, VisionTransformer):
        blocks = list(model.blocks.children())
    else:
        raise ValueError(
            f"backbone {backbone.name} has no blocks to take representations of, as Swin and ViT have; use num_blocks 1"
        )
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(f"num_blocks must be in [1, {len(blocks)}] for backbone {backbone.name}, not {num_blocks}")
    return blocks[-num_blocks:]


def _pooled(backbone: Backbone, tokens: Tensor) -> Float[Tensor, "batch dim"]:
    """The representation of a block's output: (B, H, W, C) of a Swin, (B, tokens, C) of a ViT."""
    if tokens.shape[-1] != backbone.dim:
        return tokens.mean((1, 2))
    pooled: Tensor = backbone.model.forward_head(backbone.model.norm(tokens), pre_logits=True)
    return pooled
