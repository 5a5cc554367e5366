"""What the losses are computed from: a pair of heads and their centre."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


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
