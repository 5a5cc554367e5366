"""The self-supervised loss (Sec. 3.4, A.2): Eq. 3, L_G, L_L and the total objective."""

from glsd.losses.cross_entropy import distillation_cross_entropy as distillation_cross_entropy
from glsd.losses.cross_entropy import soft_cross_entropy as soft_cross_entropy
from glsd.losses.cross_entropy import student_log_distribution as student_log_distribution
from glsd.losses.cross_entropy import teacher_distribution as teacher_distribution
from glsd.losses.global_loss import global_representation_loss as global_representation_loss
from glsd.losses.local_loss import local_representation_loss as local_representation_loss
from glsd.losses.local_loss import matched_share as matched_share
from glsd.losses.total import Losses as Losses
from glsd.losses.total import geometric_matches as geometric_matches
from glsd.losses.total import objective as objective
from glsd.losses.total import similarity_matches as similarity_matches

__all__ = [
    "Losses",
    "distillation_cross_entropy",
    "geometric_matches",
    "global_representation_loss",
    "local_representation_loss",
    "matched_share",
    "objective",
    "similarity_matches",
    "soft_cross_entropy",
    "student_log_distribution",
    "teacher_distribution",
]
