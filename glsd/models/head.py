"""Projection heads h̄ and h (Sec. 3.4, 4.2): three linear layers to an L2-normalised bottleneck, then prototypes.

A head's forward ends at the bottleneck; logits over the I prototypes are `bottleneck @ last_layer_weight().T`, which
the losses compute chunk by chunk because all of them at once would not fit.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """d - hidden - hidden - bottleneck with GELU between, and a weight-normed last layer without bias.

    With `norm_last_layer` the prototypes stay at unit length: their gain is 1 and not trained. At the start it is 1
    either way.
    """

    def __init__(
        self, dim: int, hidden_dim: int, bottleneck_dim: int, num_prototypes: int, norm_last_layer: bool
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck_dim, num_prototypes, norm_last_layer)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows bottleneck"]:
        """The bottleneck: unit vectors, in float32 or better under autocast too."""
        x = self.mlp(x)
        return nn.functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

    def last_layer_weight(self) -> Float[Tensor, "prototypes bottleneck"]:
        """W with rows g v / |v|."""
        weight: Tensor = self.last_layer()
        return weight

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the last layer, which get no gradient in the first epochs."""
        return [parameter for parameter in self.last_layer.parameters() if parameter.requires_grad]


class Prototypes(nn.Module):
    """Weight normalisation (Salimans & Kingma 2016) of a linear layer's weight, each row by itself."""

    def __init__(self, bottleneck_dim: int, num_prototypes: int, unit_length: bool) -> None:
        super().__init__()
        # Only the directions of v matter for the outputs, but its length sets how fast they turn: the authors leave
        # it at the initialisation of nn.Linear.
        bound = bottleneck_dim**-0.5
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not unit_length)
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck_dim).uniform_(-bound, bound))

    def forward(self) -> Float[Tensor, "prototypes bottleneck"]:
        """The weight."""
        # A row's gain over its length first: no second (I, D) tensor is made and kept for the backward pass.
        gain: Tensor = self.weight_g / self.weight_v.norm(dim=1, keepdim=True)
        return self.weight_v * gain
