"""What the losses are computed from: what a network gives for its views, and each head of student and teacher."""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

Level = Literal["global", "dense"]
"""The heads: h̄ on z̄ is `global`, h on z is `dense`. The vanilla setting has the first only."""


class ViewOutputs(NamedTuple):
    """What a network gives for the views of one crop size: B images, V views, H x W locations."""

    z_bar: Float[Tensor, "images views dim"]
    """Pooled backbone features z̄."""
    z: Float[Tensor, "images views height width dim"]
    """Dense backbone features z."""
    u: dict[Level, Tensor]
    """Bottleneck of each head, of unit length: (B, V, D) of `global`, (B, V, H, W, D) of `dense`."""


class HeadPair(NamedTuple):
    """A head of the student and the same head of the teacher, from the bottleneck to the distributions of Eq. 3.

    The teacher's is softmax((x_t weight_t^T - center) / tau_t), the student's softmax(x_s weight_s^T / tau_s).
    """

    weight_s: Float[Tensor, "prototypes dim"]
    """The student's last layer."""
    weight_t: Float[Tensor, "prototypes dim"]
    """The teacher's last layer."""
    center: Float[Tensor, " prototypes"]
    """The centre of the teacher's logits (Sec. 4.2)."""
    tau_s: float
    """The student's temperature."""
    tau_t: float
    """The teacher's temperature."""
