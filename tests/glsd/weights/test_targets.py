"""What is exported for other libraries is loaded by them, from the lines of the report, and held to the encoder."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from glsd.encoder.encoder import Encoder
from glsd.experiments import load_config
from glsd.models.backbone import Backbone, timm_architecture
from glsd.weights.targets import export_to
from glsd.weights.timm import ExportReport

pytestmark = pytest.mark.slow  # and libraries are imported late, for those who collect this file and run nothing of it
EQUAL = 1e-5  # of the largest entry: another order of the same sums
VIT = {"depth": 2, "embed_dim": 48, "dynamic_img_size": True}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 40)}
SWIN = {"embed_dim": 24, "depths": (1, 2, 2, 2), "num_heads": (1, 2, 4, 8), "strict_img_size": False}


def encoder_of(backbone: str, crop: int = 224, **smaller: object) -> Encoder:
    """With random numbers in every parameter and statistic; `smaller` are arguments of timm's model."""
    settings = {"model.backbone": backbone, "evaluation.crop": crop, "evaluation.resize": crop * 8 // 7}
    architecture, model_args = timm_architecture(backbone)
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0, **model_args, **smaller)
    encoder = Encoder(Backbone(model, backbone), load_config("demo", settings))
    generator = torch.Generator().manual_seed(0)
    for name, value in encoder.backbone.model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + 0.3 * noise.abs())
        elif value.ndim == 1 and name.endswith("weight"):  # a scale
            value.copy_(1 + 0.2 * noise)
        elif value.ndim == 1 or "table" in name or "pos_embed" in name or "token" in name:
            value.copy_(0.3 * noise)
    return encoder


def loaded(report: ExportReport, size: int) -> tuple[Tensor, Tensor]:
    """Images that the report did not see, and z̄ by its lines."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))
    names = {"images": images}
    with torch.no_grad():
        exec(report.lines, names)
    return images, torch.as_tensor(names["z_bar"])


def assert_equal_at(report: ExportReport, encoder: Encoder, size: int, tolerance: float = EQUAL) -> None:
    images, z_bar = loaded(report, size)
    ours = encoder(images)[0]
    assert (z_bar - ours).abs().max() <= tolerance * ours.abs().max()
    assert report.differences[size].largest <= tolerance * report.differences[size].largest_entry


def assert_states_a_difference_at(report: ExportReport, encoder: Encoder, size: int) -> None:
    """The library is another function there; the report says by how much, and why."""
    images, z_bar = loaded(report, size)
    difference = (z_bar - encoder(images)[0]).abs().max()
    assert difference > 1e-3
    assert report.differences[size].largest == pytest.approx(difference.item(), rel=0.7)
    assert report.note
    assert report.note in report.statement
    assert str(report) == f"{report.path}\n{report.statement}\n\n{report.lines}"


def assert_transformers_finds_every_tensor_and_no_other(report: ExportReport, **arguments: bool) -> None:
    from transformers import AutoModel

    _, info = AutoModel.from_pretrained(report.path, output_loading_info=True, **arguments)
    assert not any(info.values())


@pytest.mark.parametrize(
    ("backbone", "smaller"), [("resnet18", {}), ("convnext_atto", CONVNEXT), ("convnext_tiny", CONVNEXT)]
)
def test_torchvisions_convolutional_networks_are_the_same_function(tmp_path: Path, backbone: str, smaller) -> None:
    encoder = encoder_of(backbone, **smaller)
    report = export_to(encoder, tmp_path / "out", "torchvision")
    for size in (224, 96):
        assert_equal_at(report, encoder, size)
    assert not report.note


@pytest.mark.parametrize(
    ("backbone", "smaller"),
    [("resnet18", {"layers": (2, 1, 1, 1)}), ("resnet50", {"layers": (2, 1, 1, 1)}), ("convnext_tiny", CONVNEXT)],
)
def test_transformers_convolutional_networks_are_the_same_function(tmp_path: Path, backbone: str, smaller) -> None:
    encoder = encoder_of(backbone, **smaller)
    report = export_to(encoder, tmp_path / "out", "huggingface")
    for size in (224, 96):
        assert_equal_at(report, encoder, size)
    assert not report.note
    assert_transformers_finds_every_tensor_and_no_other(report)


@pytest.mark.parametrize("crop", [224, 96])
def test_torchvisions_vit_is_the_same_function_at_the_crop_of_the_evaluation(tmp_path: Path, crop: int) -> None:
    encoder = encoder_of("vit_tiny_patch16_224", crop, **VIT)
    report = export_to(encoder, tmp_path / "out", "torchvision")
    assert_equal_at(report, encoder, crop)
    other = 320 - crop
    assert report.not_taken == {other: f"torchvision's VisionTransformer takes one size, here {crop} px"}
    assert report.not_taken[other] in report.statement


@pytest.mark.parametrize("window", [7, 14])
def test_torchvisions_swin_is_the_same_function_where_maps_are_several_windows(tmp_path: Path, window: int) -> None:
    encoder = encoder_of(f"swin_tiny_patch4_window{window}_224", **SWIN)
    report = export_to(encoder, tmp_path / "out", "torchvision")
    assert_equal_at(report, encoder, 224)
    assert_states_a_difference_at(report, encoder, 96)
    images, z_bar = loaded(report, 256)  # the last stage's map is larger than its window
    torch.testing.assert_close(z_bar, encoder(images)[0], rtol=0, atol=3e-5)


def test_torchvisions_code_lies_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of("resnet18", crop=96)
    export_to(encoder, tmp_path / "out", "torchvision")
    monkeypatch.chdir(tmp_path / "out")
    facts = json.loads(Path("torchvision.json").read_text())
    names = {"images": torch.ones(1, 3, 96, 96)}
    exec("\n".join(facts["python"]), names)
    torch.testing.assert_close(names["z_bar"], encoder(names["images"])[0])
    assert facts["preprocessing"] == {
        "resize": 109,
        "interpolation": "bicubic",
        "center_crop": 96,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_transformers_vit_differs_where_it_resamples_positions(tmp_path: Path) -> None:
    encoder = encoder_of("vit_tiny_patch16_224", **VIT)
    report = export_to(encoder, tmp_path / "out", "huggingface")
    assert_equal_at(report, encoder, 224)
    assert_states_a_difference_at(report, encoder, 96)
    assert_transformers_finds_every_tensor_and_no_other(report, add_pooling_layer=False)


def test_transformers_swin_differs_by_an_epsilon_and_takes_no_map_smaller_than_a_window(tmp_path: Path) -> None:
    encoder = encoder_of("swin_tiny_patch4_window7_224", **SWIN)
    report = export_to(encoder, tmp_path / "out", "huggingface")
    assert_equal_at(report, encoder, 224, tolerance=1e-3)
    assert report.differences[224].largest > 0
    assert_transformers_finds_every_tensor_and_no_other(report)
    assert list(report.not_taken) == [96]
    with pytest.raises(RuntimeError, match="must match the size"):
        loaded(report, 96)

    names = {"images": torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))}
    exec(report.lines, names)
    for module in names["model"].modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    torch.testing.assert_close(
        names["model"](names["images"]).pooler_output, encoder(names["images"])[0], rtol=0, atol=3e-5
    )


def test_transformers_preprocesses_as_our_evaluation_does(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    encoder = encoder_of("resnet18", crop=96)
    export_to(encoder, tmp_path / "out", "huggingface")
    generator = np.random.default_rng(0)
    image = np.kron(generator.integers(0, 256, (9, 13, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "out")(image, return_tensors="pt").pixel_values
    ours = encoder.normalize(torch.from_numpy(encoder.preprocess(image))[None])
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 2.5 / 255 / 0.224  # two of 255 levels: they round on the way


@pytest.fixture
def _symbolic_sizes() -> Iterator[None]:
    """Without the check of types in tests, to which a size that PyTorch traces is no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_symbolic_sizes")
@pytest.mark.parametrize(
    ("backbone", "smaller"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", VIT),
        ("swin_tiny_patch4_window7_224", SWIN | {"depths": (1, 2), "num_heads": (1, 2)}),
    ],
)
def test_one_onnx_graph_is_the_same_function_at_every_size(tmp_path: Path, backbone: str, smaller) -> None:
    import onnxruntime

    encoder = encoder_of(backbone, **smaller)
    report = export_to(encoder, tmp_path / "out", "onnx")
    for size in (224, 96):
        assert_equal_at(report, encoder, size)
    session = onnxruntime.InferenceSession(f"{report.path}/model.onnx")
    images = torch.randn(1, 3, 96, 160)
    outputs = session.run(["z_bar", "z"], {"images": images.numpy()})
    for ours, theirs in zip(encoder(images), outputs, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=3e-5)
    assert not report.note


@pytest.mark.usefixtures("_symbolic_sizes")
def test_an_onnx_graph_of_a_backbone_of_one_size_takes_that_size(tmp_path: Path) -> None:
    encoder = encoder_of("vit_tiny_patch16_224", **VIT | {"dynamic_img_size": False})
    report = export_to(encoder, tmp_path / "out", "onnx")
    assert_equal_at(report, encoder, 224)
    assert list(report.not_taken) == [96]


@pytest.mark.parametrize("target", ["torchvision", "huggingface"])
def test_a_backbone_without_counterpart_is_refused(tmp_path: Path, target) -> None:
    with pytest.raises(
        ValueError, match=rf"{target} has no counterpart of the backbone resnet10t; it has those of swin"
    ):
        export_to(encoder_of("resnet10t"), tmp_path / "out", target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["torchvision", "huggingface"])
@pytest.mark.parametrize("backbone", ["resnet18_stride16", "resnet50_stride8"])
def test_a_dilated_network_is_refused_by_libraries_that_would_not_dilate_it(tmp_path: Path, target, backbone) -> None:
    with pytest.raises(ValueError, match=rf"{backbone}, whose last stages are dilated; export it to timm or onnx"):
        export_to(encoder_of(backbone), tmp_path / "out", target)
    assert not list(tmp_path.iterdir())


def test_timm_dilates_a_network_as_we_do(tmp_path: Path) -> None:
    assert export_to(encoder_of("resnet18_stride16"), tmp_path / "out", "timm").largest_difference < 1e-5


def test_transformers_has_no_swin_of_two_window_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"windows are of 7 and 14 tokens"):
        export_to(encoder_of("swin_tiny_patch4_window14_224", **SWIN), tmp_path / "out", "huggingface")


def test_what_cannot_be_compared_at_any_size_is_not_exported(tmp_path: Path) -> None:
    encoder = encoder_of("swin_base_patch4_window12_384", **SWIN)
    with pytest.raises(ValueError, match="224 px: SwinModel fails where a map is smaller than a window"):
        export_to(encoder, tmp_path / "out", "huggingface")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install 'glsd\[huggingface\]'"):
        export_to(encoder_of("resnet18"), tmp_path / "out", "huggingface")


def test_only_an_export_for_the_same_library_is_replaced(tmp_path: Path) -> None:
    targets = ("timm", "torchvision", "huggingface")
    first, second = encoder_of("resnet18", crop=224), encoder_of("resnet18", crop=96)
    for target in targets:
        export_to(first, tmp_path / target, target)
        for other in targets:
            if other != target:
                with pytest.raises(ValueError, match="is not an earlier export and will not be replaced"):
                    export_to(second, tmp_path / target, other)
    export_to(second, tmp_path / "torchvision", "torchvision")
    assert json.loads((tmp_path / "torchvision" / "torchvision.json").read_text())["preprocessing"]["center_crop"] == 96
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(targets)


def test_a_model_of_someone_elses_is_not_replaced(tmp_path: Path) -> None:
    export_to(encoder_of("vit_tiny_patch16_224", **VIT), tmp_path, "torchvision")
    (tmp_path / "torchvision.json").write_text('{"python": []}')
    with pytest.raises(ValueError, match="is not an earlier export and will not be replaced"):
        export_to(encoder_of("vit_tiny_patch16_224", **VIT), tmp_path, "torchvision")
