import os
import signal
import sys
from pathlib import Path

import pytest
import timm.data
import torch
from safetensors.torch import load_file

from glsd.config import Config
from glsd.encoder.encoder import Encoder, load_encoder, untrained_encoder
from glsd.experiments import load_config
from glsd.weights.timm import export_backbone, write_export
from tests.processes import exit_code

VIT, MOBILENET = (
    pytest.param(name, marks=pytest.mark.slow) for name in ("vit_tiny_patch16_224", "mobilenetv3_small_050")
)


def config(backbone: str = "test_resnet") -> Config:
    small = {"model.hidden_dim": 8, "model.bottleneck_dim": 4, "model.num_prototypes": 6}
    return load_config("demo", {"model.backbone": backbone, **small})


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", ["resnet10t", VIT, MOBILENET])
def test_timms_model_equals_ours_at_every_size(tmp_path: Path, backbone: str) -> None:
    encoder = untrained_encoder(config(backbone))
    report = export_backbone(encoder, tmp_path / "backbone")
    assert report.largest_difference == 0
    assert sorted(report.differences) == [96, 128, 224]
    for size in (96, 224):
        names = {"images": images(size)}
        exec(report.lines, names)
        assert torch.equal(names["z_bar"], encoder(images(size))[0])


@pytest.mark.slow
def test_timms_swin_differs_by_its_epsilon_alone_at_224_px_by_more_at_96_px_and_ours_loads_exactly(
    tmp_path: Path,
) -> None:
    encoder = untrained_encoder(config("swin_tiny_patch4_window7_224"))
    report = export_backbone(encoder, tmp_path / "backbone")
    z_bar, z = encoder(images(224))
    loaded_z_bar, loaded_z = load_encoder(tmp_path / "backbone")(images(224))
    assert torch.equal(loaded_z_bar, z_bar)
    assert torch.equal(loaded_z, z)
    # The layout of Swin's authors, which timm before and after 1.0.31 loads without a classifier.
    assert "layers.0.downsample.reduction.weight" in load_file(f"{report.path}/model.safetensors")
    assert 0 < report.differences[224].largest < 1e-4 * report.differences[224].largest_entry
    assert report.differences[96].largest > 1e-3 * report.differences[96].largest_entry
    assert "pads maps that are not whole windows after the shift" in report.statement
    model = timm.create_model(f"local-dir:{report.path}", pretrained=True, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    torch.testing.assert_close(model(images(224)), z_bar, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backbone", ["resnet10t", VIT])
def test_an_exported_encoder_loads_exactly(tmp_path: Path, backbone: str) -> None:
    encoder = untrained_encoder(config(backbone))
    export_backbone(encoder, tmp_path / "backbone")
    loaded = load_encoder(tmp_path / "backbone")
    assert loaded.config == encoder.config
    for size in (96, 224):
        assert all(torch.equal(a, b) for a, b in zip(loaded(images(size)), encoder(images(size)), strict=True))


def test_timm_preprocesses_as_our_evaluation_does(tmp_path: Path) -> None:
    overrides = {"evaluation.resize": 140, "augment.mean": (0.1, 0.2, 0.3), "augment.std": (0.4, 0.5, 0.6)}
    export_backbone(untrained_encoder(config().with_overrides(overrides)), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    data = timm.data.resolve_data_config({}, model=model)
    assert tuple(data["input_size"]) == (3, 128, 128)
    assert [*data["mean"], *data["std"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bicubic", 128 / 140, "center")


def test_exporting_again_replaces_the_export_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "with spaces é"
    assert "replaced" not in str(export_backbone(untrained_encoder(config()), out))
    newer = untrained_encoder(config().with_overrides({"seed": 1}))
    assert str(export_backbone(newer, out)).splitlines()[0] == f"{out} (the earlier export there was replaced)"
    assert torch.equal(load_encoder(out)(images(96))[0], newer(images(96))[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["with spaces é"]


def test_an_export_of_which_only_the_description_has_been_sent_is_replaced_and_other_weights_are_not(
    tmp_path: Path,
) -> None:
    encoder, out = untrained_encoder(config()), tmp_path / "sent"
    export_backbone(encoder, out)
    weights = (out / "model.safetensors").rename(tmp_path / "model.safetensors")
    export_backbone(encoder, out)
    assert (out / "model.safetensors").read_bytes() == weights.read_bytes()
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match="is not an earlier export and will not be replaced"):
        export_backbone(encoder, out)


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not an earlier export and will not be replaced"):
        export_backbone(untrained_encoder(config()), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_of_someone_elses_is_not_taken_for_an_export(tmp_path: Path) -> None:
    export_backbone(untrained_encoder(config()), tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text('{"architecture": "resnet10t"}')
    with pytest.raises(ValueError, match="has no glsd section"):
        load_encoder(tmp_path / "ours")


def test_what_a_library_cannot_load_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        write_export(
            untrained_encoder(config()),
            tmp_path / "backbone",
            {"config.json": b"{}"},
            lambda folder: "import a_library_that_is_not_there",
        )
    assert list(tmp_path.iterdir()) == []


def export_and_die(encoder: Encoder, out: Path, event: str, source: str) -> None:
    """Export to `out`, and be killed at doing `event` to `source`."""

    def die(name: str, arguments: tuple[object, ...]) -> None:
        if name == event and str(arguments[0]).endswith(source):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    export_backbone(encoder, out)


@pytest.mark.slow
def test_an_export_killed_while_it_writes_leaves_no_folder_and_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "backbone"
    encoder = untrained_encoder(config())
    assert exit_code(export_and_die, encoder, out, "open", ".backbone.partial/config.json") == -signal.SIGKILL
    assert (tmp_path / ".backbone.partial" / "model.safetensors").exists()
    assert not out.exists()
    export_backbone(encoder, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["backbone"]


@pytest.mark.slow
def test_an_export_killed_while_it_replaces_another_leaves_no_mixture_and_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "backbone"
    earlier, newer = (untrained_encoder(config().with_overrides({"seed": seed})) for seed in (0, 1))
    export_backbone(earlier, out)
    assert exit_code(export_and_die, newer, out, "os.rename", ".backbone.partial") == -signal.SIGKILL
    assert not out.exists()
    export_backbone(newer, out)
    assert torch.equal(load_encoder(out)(images(96))[0], newer(images(96))[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["backbone"]
