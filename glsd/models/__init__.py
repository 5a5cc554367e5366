"""Backbone f, heads h̄ and h, student and teacher, centres."""

from glsd.models.backbone import Backbone as Backbone
from glsd.models.backbone import build_backbone as build_backbone
from glsd.models.backbone import timm_architecture as timm_architecture
from glsd.models.centering import Centers as Centers
from glsd.models.centering import LastLayers as LastLayers
from glsd.models.centering import mean_logits as mean_logits
from glsd.models.centering import update_centers as update_centers
from glsd.models.drop_path import drop_path_keys as drop_path_keys
from glsd.models.head import Head as Head
from glsd.models.student_teacher import Network as Network
from glsd.models.student_teacher import ViewOutputs as ViewOutputs
from glsd.models.student_teacher import build_student_teacher as build_student_teacher
from glsd.models.student_teacher import ema_update as ema_update
from glsd.models.student_teacher import last_layers as last_layers

__all__ = [
    "Backbone",
    "Centers",
    "Head",
    "LastLayers",
    "Network",
    "ViewOutputs",
    "build_backbone",
    "build_student_teacher",
    "drop_path_keys",
    "ema_update",
    "last_layers",
    "mean_logits",
    "timm_architecture",
    "update_centers",
]
