from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from glsd.config import Config
from glsd.encoder.encoder import Encoder, build_encoder, embed, load_encoder, model_digest, untrained_encoder
from glsd.experiments import load_config
from glsd.models.backbone import build_backbone
from glsd.models.student_teacher import build_student_teacher
from glsd.runs.checkpoints import save_checkpoint
from glsd.weights.foreign import convert
from glsd.weights.load import load_model
from glsd.weights.timm import export_backbone
from tests.glsd.storage.google_store import google_store
from tests.glsd.storage.object_store import object_store

CONFIG = load_config(
    "demo",
    {
        "model.hidden_dim": 8,
        "model.bottleneck_dim": 4,
        "model.num_prototypes": 6,
        "evaluation.resize": 72,
        "evaluation.crop": 64,
    },
)
BACKBONE = build_student_teacher(CONFIG)[1].backbone


def images(seed: int = 0, num: int = 3) -> torch.Tensor:
    return torch.randn(num, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def checkpoint(run: Path, step: int, config: Config) -> str:
    """A checkpoint with only what an encoder needs, of the weights that `config.seed` gives."""
    teacher = build_student_teacher(config)[1]
    return save_checkpoint(
        str(run), step, {"config": config.model_dump(mode="json"), "teacher": teacher.state_dict()}, {}
    )


def test_an_encoder_is_the_teachers_backbone_in_evaluation_mode() -> None:
    teacher = build_student_teacher(CONFIG)[1]
    z_bar, z = Encoder(teacher.backbone, CONFIG)(images())
    expected_z_bar, expected_z = teacher.backbone.eval()(images())
    assert torch.equal(z_bar, expected_z_bar)
    assert torch.equal(z, expected_z)
    assert z.shape == (3, 2, 2, teacher.backbone.dim)


def test_measuring_a_teacher_leaves_its_training_as_it_was() -> None:
    teacher = build_student_teacher(CONFIG)[1].train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    embed(Encoder(teacher.backbone, CONFIG), [torch.zeros(4, 64, 64, 3, dtype=torch.uint8)])
    assert all(module.training for module in teacher.modules())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_an_encoder_does_not_follow_the_teacher_it_was_made_of() -> None:
    teacher = build_student_teacher(CONFIG)[1]
    encoder = Encoder(teacher.backbone, CONFIG)
    expected = encoder(images())[0]
    for parameter in teacher.parameters():
        parameter.zero_()
    assert torch.equal(encoder(images())[0], expected)


def test_an_encoder_within_a_module_that_is_trained_stays_frozen() -> None:
    encoder = untrained_encoder(CONFIG)
    probe = torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_the_untrained_encoder_is_what_training_starts_from() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    encoder = untrained_encoder(CONFIG)
    student = build_student_teacher(CONFIG)[0].backbone.eval()
    torch.testing.assert_close(encoder(images())[0], student(images())[0], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_embedding_in_batches_equals_one_forward_pass() -> None:
    encoder = untrained_encoder(CONFIG)
    crops = torch.randint(256, (7, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    z_bar = embed(encoder, (crops[start : start + 3] for start in range(0, 7, 3)))
    torch.testing.assert_close(z_bar, encoder(encoder.normalize(crops))[0])


def test_normalized_pixels_have_the_trainings_mean_and_deviation() -> None:
    mean, std = CONFIG.augment.mean, CONFIG.augment.std
    pixel = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 64, 64, 3)
    normalized = untrained_encoder(CONFIG).normalize(pixel)
    assert normalized.shape == (1, 3, 64, 64)
    expected = [(value / 255 - mean[channel]) / std[channel] for channel, value in enumerate((0, 128, 255))]
    assert normalized[0, :, 63, 0].tolist() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), resize=st.integers(20, 90), cut=st.integers(0, 19))
def test_preprocessing_equals_torchvisions(height: int, width: int, resize: int, cut: int) -> None:
    config = CONFIG.with_overrides({"evaluation.resize": resize, "evaluation.crop": resize - cut})
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = CenterCrop(resize - cut)(Resize(resize, InterpolationMode.BICUBIC)(Image.fromarray(image)))
    np.testing.assert_array_equal(Encoder(BACKBONE, config).preprocess(image), np.array(expected))


@pytest.mark.parametrize(("height", "width"), [(3, 1501), (1999, 2), (1, 700), (70, 35_001)])
def test_a_strip_is_resized_as_torchvision_would(height: int, width: int) -> None:
    config = CONFIG.with_overrides({"evaluation.resize": 256, "evaluation.crop": 224})
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = CenterCrop(224)(Resize(256, InterpolationMode.BICUBIC)(Image.fromarray(image)))
    found = Encoder(BACKBONE, config).preprocess(image)
    assert np.abs(found.astype(int) - np.array(expected)).max() <= 1  # a half is rounded up or down


@pytest.mark.parametrize("axis", [0, 1])
def test_a_strip_of_any_length_is_cut_in_its_middle(axis: int) -> None:
    config = CONFIG.with_overrides({"evaluation.resize": 256, "evaluation.crop": 224})
    middle = np.random.default_rng(0).integers(0, 256, (2, 20, 3), dtype=np.uint8).swapaxes(0, 1 - axis)
    ends = [(0, 0), (0, 0), (0, 0)]
    ends[axis] = (5_000_000, 5_000_000)  # resized as a whole, half a terabyte
    found = Encoder(BACKBONE, config).preprocess(np.pad(middle, ends))
    expected = Encoder(BACKBONE, config).preprocess(middle)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_run_gives_the_teacher_of_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    newer = CONFIG.with_overrides({"seed": 1})
    older_path = checkpoint(tmp_path, 3, CONFIG)
    newer_path = checkpoint(tmp_path, 12, newer)
    (tmp_path / "checkpoints" / "step_00000020").mkdir()
    for path, config in ((tmp_path, newer), (newer_path, newer), (older_path, CONFIG)):
        encoder = load_encoder(path)
        assert encoder.config == config
        assert torch.equal(encoder(images())[0], untrained_encoder(config)(images())[0])


def test_loading_an_encoder_leaves_the_callers_random_numbers(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1, CONFIG)
    state = torch.get_rng_state()
    load_encoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("where", ["", "missing", "checkpoints/step_00000001"])
def test_a_path_without_an_encoder_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a run with a complete checkpoint, a checkpoint, or an exported"):
        load_encoder(tmp_path / where)


def test_a_backbone_and_a_checkpoint_on_an_object_store_are_those_of_the_local_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    export_backbone(untrained_encoder(CONFIG), tmp_path / "bucket/my run/backbone")
    checkpoint(tmp_path / "bucket/my run", 3, CONFIG.with_overrides({"seed": 1}))
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    with object_store(tmp_path) as s3, google_store(tmp_path) as google:
        for bucket, options in (
            ("s3://bucket", f"?endpoint_override={s3}&scheme=http&region=us-east-1"),
            ("gs://anonymous@bucket", f"?endpoint_override={google}&scheme=http&retry_limit_seconds=1"),
        ):
            for name in ("my run/backbone", "my run", "my run/checkpoints/step_00000003"):
                found = load_model(f"{bucket}/{name}{options}")
                assert model_digest(found) == model_digest(load_encoder(tmp_path / "bucket" / name))
            with pytest.raises(ValueError, match=r"/nowhere\S+ is not a run .*: it does not exist$"):
                load_model(f"{bucket}/nowhere{options}")


def test_weights_of_another_backbone_are_refused() -> None:
    state = build_student_teacher(CONFIG)[1].backbone.state_dict()
    with pytest.raises(ValueError, match=r"not those of model\.backbone resnet18"):
        build_encoder(CONFIG.with_overrides({"model.backbone": "resnet18"}), state, "a file")


def test_a_models_digest_is_that_of_its_representations(tmp_path: Path) -> None:
    encoder = untrained_encoder(CONFIG)
    digest = model_digest(encoder)
    assert len(digest) == 64
    export_backbone(encoder, tmp_path / "backbone")
    for same in (
        load_encoder(tmp_path / "backbone"),
        untrained_encoder(CONFIG.with_overrides({"optim.epochs": 7, "evaluation.k": 3, "model.hidden_dim": 9})),
    ):
        assert model_digest(same) == digest


def test_whatever_changes_representations_changes_a_models_digest() -> None:
    digests = {model_digest(untrained_encoder(CONFIG))}
    for key, value in {
        "augment.mean": (0.5, 0.5, 0.5),
        "augment.std": (0.5, 0.5, 0.5),
        "evaluation.resize": 73,
        "evaluation.crop": 65,
    }.items():
        digests.add(model_digest(Encoder(BACKBONE, CONFIG.with_overrides({key: value}))))
    last = untrained_encoder(CONFIG)
    [*last.backbone.model.parameters()][-1][-1] += 2**-20
    statistics = untrained_encoder(CONFIG)
    statistics.backbone.model.bn1.running_mean[0] = 2**-20
    half = untrained_encoder(CONFIG).half()
    digests |= {model_digest(changed) for changed in (last, statistics, half)}
    assert len(digests) == 8


def weights_file(path: Path, layout: str) -> torch.Tensor:
    """A file of a small ViT in a layout, and its z̄ of some images."""
    torch.manual_seed(1)
    backbone = build_backbone("test_vit").eval()
    state = backbone.model.state_dict()
    teacher = {"teacher": {f"backbone.{key}": value for key, value in state.items()}}
    torch.save({"flat": state, "DINO": teacher}[layout], path)
    with torch.no_grad():
        z_bar: torch.Tensor = backbone(images())[0]
    return z_bar


@pytest.mark.parametrize("layout", ["flat", "DINO"])
@pytest.mark.parametrize(
    ("name", "mean"), [("test_vit", (0.485, 0.456, 0.406)), ("test_vit.r160_in1k", (0.5, 0.5, 0.5))]
)
def test_a_file_has_imagenets_normalisation_unless_a_tag_of_timms_is_named(
    tmp_path: Path, layout: str, name: str, mean: tuple[float, ...]
) -> None:
    expected = weights_file(tmp_path / "a=b.pth", layout)
    encoder = load_model(f"timm:{name}={tmp_path / 'a=b.pth'}")
    assert torch.equal(encoder(images())[0], expected)
    assert encoder.config.model.backbone == "test_vit"
    assert encoder.config.augment.mean == mean
    assert (encoder.config.evaluation.resize, encoder.config.evaluation.crop) == (256, 224)
    convert(tmp_path / "a=b.pth", tmp_path / "converted", name)
    assert model_digest(load_encoder(tmp_path / "converted")) == model_digest(encoder)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_neither_come_in_nor_go_out(tmp_path: Path, bad: float) -> None:
    encoder = untrained_encoder(CONFIG)
    export_backbone(encoder, tmp_path / "exported")
    weights = load_file(tmp_path / "exported" / "model.safetensors")
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = bad
    save_file(weights, tmp_path / "exported" / "model.safetensors")
    state = {"teacher": {f"backbone.model.{key}": value for key, value in weights.items()}}
    save_checkpoint(str(tmp_path / "run"), 3, state | {"config": CONFIG.model_dump(mode="json")}, {})
    said = r"1 of the [\d,]+ weights of the tensor layer1\.0\.conv1\.weight are NaN or infinite"
    for name, file in (("exported", "exported/model.safetensors"), ("run", "run/checkpoints/step_00000003")):
        with pytest.raises(ValueError, match=f"{file}: {said}"):
            load_model(str(tmp_path / name))
    encoder.backbone.model.get_parameter("layer1.0.conv1.weight").data[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=f"the backbone for .*/out: {said}"):
        export_backbone(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_no_timm_name_is_what_load_encoder_finds(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1, CONFIG)
    assert model_digest(load_model(str(tmp_path))) == model_digest(load_encoder(tmp_path))


def test_a_timm_name_has_the_hubs_weights_and_their_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights_file(tmp_path / "weights.pth", "flat")
    state = torch.load(tmp_path / "weights.pth")
    cached = tmp_path / "models--timm--test_vit.r160_in1k"  # as the hub's client keeps what it has fetched
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(
        {**state, "head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000)},
        cached / "snapshots" / ("0" * 40) / "model.safetensors",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("timm:test_vit", "timm:test_vit.r160_in1k"):
        encoder = load_model(name)
        assert torch.equal(encoder(images())[0], expected)
        assert encoder.config.augment.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:test_vit", r"cannot be fetched .* no network, .*: timm:test_vit=FILE"),
        ("timm:resnet5", "did you mean 'resnet50'"),
        ("timm:resnet50.of_mine", r"resnet50\.of_mine: timm has no weights of that tag"),
        ("timm:resnet50.of_mine=missing.pth", "timm has no weights of that tag"),
        ("timm:resnet50=missing.pth", r"missing\.pth is not a file"),
        ("missing", r"missing is not a run .*: it does not exist$"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=said):
        load_model(name)


def test_a_file_of_weights_in_place_of_a_model_is_told_how_it_is_named(tmp_path: Path) -> None:
    weights_file(tmp_path / "weights.pth", "flat")
    with pytest.raises(ValueError, match=r"weights\.pth is not a run .* timm:NAME=FILE, .* glsd convert$"):
        load_model(str(tmp_path / "weights.pth"))


def test_an_untrained_encoder_stands_beside_any_loaded_model(tmp_path: Path) -> None:
    weights_file(tmp_path / "weights.pth", "flat")
    encoder = load_model(f"timm:test_vit={tmp_path / 'weights.pth'}")
    assert untrained_encoder(encoder.config)(images())[0].shape == encoder(images())[0].shape
