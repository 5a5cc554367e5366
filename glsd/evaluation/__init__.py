"""What a trained teacher is worth: its frozen backbone as an encoder, k-NN (Sec. 4.3), and export to timm."""

from glsd.evaluation.encoder import Encoder as Encoder
from glsd.evaluation.encoder import build_encoder as build_encoder
from glsd.evaluation.encoder import embed as embed
from glsd.evaluation.encoder import load_encoder as load_encoder
from glsd.evaluation.encoder import untrained_encoder as untrained_encoder
from glsd.evaluation.export import ExportReport as ExportReport
from glsd.evaluation.export import export_backbone as export_backbone
from glsd.evaluation.knn import KnnResult as KnnResult
from glsd.evaluation.knn import Neighbours as Neighbours
from glsd.evaluation.knn import knn_accuracy as knn_accuracy
from glsd.evaluation.knn import majority_share as majority_share
from glsd.evaluation.knn import nearest as nearest

__all__ = [
    "Encoder",
    "ExportReport",
    "KnnResult",
    "Neighbours",
    "build_encoder",
    "embed",
    "export_backbone",
    "knn_accuracy",
    "load_encoder",
    "majority_share",
    "nearest",
    "untrained_encoder",
]
