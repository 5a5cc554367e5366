"""What a trained teacher is worth: its frozen backbone as an encoder, k-NN (Sec. 4.3), and export to timm.

A name is imported when it is first used: who decodes images for an encoder needs no models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glsd.evaluation.blocks import block_representations as block_representations
    from glsd.evaluation.collapse import collapse_metrics as collapse_metrics
    from glsd.evaluation.collapse import collapse_report as collapse_report
    from glsd.evaluation.collapse import encoder_collapse as encoder_collapse
    from glsd.evaluation.conversion import ConversionReport as ConversionReport
    from glsd.evaluation.conversion import convert as convert
    from glsd.evaluation.conversion import read_foreign as read_foreign
    from glsd.evaluation.correspondences import Correspondence as Correspondence
    from glsd.evaluation.correspondences import CorrespondenceMeans as CorrespondenceMeans
    from glsd.evaluation.correspondences import PairCorrespondence as PairCorrespondence
    from glsd.evaluation.correspondences import cell_centers as cell_centers
    from glsd.evaluation.correspondences import correspondence as correspondence
    from glsd.evaluation.correspondences import flip_truth as flip_truth
    from glsd.evaluation.correspondences import homography_truth as homography_truth
    from glsd.evaluation.correspondences import image_pair_correspondence as image_pair_correspondence
    from glsd.evaluation.correspondences import mean_correspondence as mean_correspondence
    from glsd.evaluation.correspondences import transformed_view as transformed_view
    from glsd.evaluation.encoder import Encoder as Encoder
    from glsd.evaluation.encoder import build_encoder as build_encoder
    from glsd.evaluation.encoder import embed as embed
    from glsd.evaluation.encoder import load_encoder as load_encoder
    from glsd.evaluation.encoder import model_digest as model_digest
    from glsd.evaluation.encoder import teacher_encoder as teacher_encoder
    from glsd.evaluation.encoder import untrained_encoder as untrained_encoder
    from glsd.evaluation.export import Difference as Difference
    from glsd.evaluation.export import ExportReport as ExportReport
    from glsd.evaluation.export import export_backbone as export_backbone
    from glsd.evaluation.knn import KnnResult as KnnResult
    from glsd.evaluation.knn import Neighbours as Neighbours
    from glsd.evaluation.knn import knn_accuracies as knn_accuracies
    from glsd.evaluation.knn import knn_accuracy as knn_accuracy
    from glsd.evaluation.knn import majority_share as majority_share
    from glsd.evaluation.knn import nearest as nearest
    from glsd.evaluation.linear import LinearAccuracy as LinearAccuracy
    from glsd.evaluation.linear import LinearProbe as LinearProbe
    from glsd.evaluation.linear import initial_probe as initial_probe
    from glsd.evaluation.linear import linear_accuracy as linear_accuracy
    from glsd.evaluation.linear import linear_crop as linear_crop
    from glsd.evaluation.linear import linear_learning_rate as linear_learning_rate
    from glsd.evaluation.linear import linear_step as linear_step
    from glsd.evaluation.logistic import QuickLinear as QuickLinear
    from glsd.evaluation.logistic import logistic_regression as logistic_regression
    from glsd.evaluation.pretrained import load_model as load_model
    from glsd.evaluation.targets import export_to as export_to
    from glsd.evaluation.verdict import COLLAPSE_MEASURES as COLLAPSE_MEASURES
    from glsd.evaluation.verdict import Collapsed as Collapsed
    from glsd.evaluation.verdict import CollapseWatch as CollapseWatch
    from glsd.evaluation.verdict import Verdict as Verdict
    from glsd.evaluation.verdict import collapse_verdict as collapse_verdict
    from glsd.evaluation.verdict import standard_error as standard_error

_MODULES = {
    "COLLAPSE_MEASURES": "verdict",
    "CollapseWatch": "verdict",
    "Collapsed": "verdict",
    "ConversionReport": "conversion",
    "Correspondence": "correspondences",
    "CorrespondenceMeans": "correspondences",
    "Difference": "export",
    "Encoder": "encoder",
    "ExportReport": "export",
    "KnnResult": "knn",
    "LinearAccuracy": "linear",
    "LinearProbe": "linear",
    "Neighbours": "knn",
    "PairCorrespondence": "correspondences",
    "QuickLinear": "logistic",
    "Verdict": "verdict",
    "block_representations": "blocks",
    "build_encoder": "encoder",
    "cell_centers": "correspondences",
    "collapse_metrics": "collapse",
    "collapse_report": "collapse",
    "collapse_verdict": "verdict",
    "convert": "conversion",
    "correspondence": "correspondences",
    "embed": "encoder",
    "encoder_collapse": "collapse",
    "export_backbone": "export",
    "export_to": "targets",
    "flip_truth": "correspondences",
    "homography_truth": "correspondences",
    "image_pair_correspondence": "correspondences",
    "initial_probe": "linear",
    "knn_accuracies": "knn",
    "knn_accuracy": "knn",
    "linear_accuracy": "linear",
    "linear_crop": "linear",
    "linear_learning_rate": "linear",
    "linear_step": "linear",
    "load_encoder": "encoder",
    "load_model": "pretrained",
    "logistic_regression": "logistic",
    "majority_share": "knn",
    "mean_correspondence": "correspondences",
    "model_digest": "encoder",
    "nearest": "knn",
    "read_foreign": "conversion",
    "standard_error": "verdict",
    "teacher_encoder": "encoder",
    "transformed_view": "correspondences",
    "untrained_encoder": "encoder",
}

__all__ = [
    "COLLAPSE_MEASURES",
    "CollapseWatch",
    "Collapsed",
    "ConversionReport",
    "Correspondence",
    "CorrespondenceMeans",
    "Difference",
    "Encoder",
    "ExportReport",
    "KnnResult",
    "LinearAccuracy",
    "LinearProbe",
    "Neighbours",
    "PairCorrespondence",
    "QuickLinear",
    "Verdict",
    "block_representations",
    "build_encoder",
    "cell_centers",
    "collapse_metrics",
    "collapse_report",
    "collapse_verdict",
    "convert",
    "correspondence",
    "embed",
    "encoder_collapse",
    "export_backbone",
    "export_to",
    "flip_truth",
    "homography_truth",
    "image_pair_correspondence",
    "initial_probe",
    "knn_accuracies",
    "knn_accuracy",
    "linear_accuracy",
    "linear_crop",
    "linear_learning_rate",
    "linear_step",
    "load_encoder",
    "load_model",
    "logistic_regression",
    "majority_share",
    "mean_correspondence",
    "model_digest",
    "nearest",
    "read_foreign",
    "standard_error",
    "teacher_encoder",
    "transformed_view",
    "untrained_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"glsd.evaluation.{_MODULES[name]}"), name)
