"""The backbone as an ONNX graph of our own forward pass."""

import json
from pathlib import Path

import torch

from glsd.encoder.encoder import Encoder
from glsd.weights.names import settings
from glsd.weights.timm import ExportReport, refuse_to_replace, write_export

_TRACED_PX = (160, 192)  # no square and no whole windows: a graph traced with such would hold for nothing else


def export_onnx(encoder: Encoder, out: str | Path) -> ExportReport:
    """Write the graph and the preprocessing."""
    crop = encoder.config.evaluation.crop
    names = ("model.onnx", "onnx.json")
    refuse_to_replace(out, names)  # before the minute that tracing takes
    try:
        graph, any_size = _graph(encoder, _TRACED_PX, any_size=True), True
    except torch.onnx.OnnxExporterError:
        graph, any_size = _graph(encoder, (crop, crop), any_size=False), False

    def lines(folder: Path) -> str:
        session = f"session = onnxruntime.InferenceSession({f'{folder}/model.onnx'!r})"
        return f'import onnxruntime\n{session}\nz_bar, z = session.run(None, {{"images": images.numpy()}})'

    def refusal(size: int) -> str:
        return f"PyTorch traces this backbone for one size only, here {crop} px" * (not any_size and size != crop)

    files = dict(zip(names, (graph, json.dumps(settings(encoder), indent=2).encode()), strict=True))
    return write_export(encoder, out, files, lines, refusal)


def _graph(encoder: Encoder, size: tuple[int, int], any_size: bool) -> bytes:
    dynamic = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    program = torch.onnx.export(
        # A copy: what a forward pass keeps of symbolic sizes, as Swin's masks, is of no use afterwards.
        Encoder(encoder.backbone, encoder.config).eval(),
        (torch.zeros(2, 3, *size),),
        input_names=["images"],
        output_names=["z_bar", "z"],
        dynamic_shapes=(dynamic,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph
