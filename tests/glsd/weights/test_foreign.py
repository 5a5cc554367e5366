import argparse
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glsd.encoder.encoder import Encoder, load_encoder
from glsd.models.backbone import build_backbone
from glsd.weights.files import read_foreign
from glsd.weights.foreign import ConversionReport, convert, foreign_encoder
from glsd.weights.load import load_model
from ray_jobs.cli.main import main

State = dict[str, Tensor]


def trained(name: str, seed: int = 1) -> tuple[Any, State]:
    """A backbone with weights that no initialisation gives, and these in timm's names."""
    torch.manual_seed(seed)
    backbone = build_backbone(name).eval()
    for value in backbone.model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) / 10 + 0.01)
    return backbone, {key: value.clone() for key, value in backbone.model.state_dict().items()}


def student(state: State) -> State:
    """The other network of a checkpoint, which must not be taken for the teacher."""
    return {key: value * 2 + 1 for key, value in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


HEAD = {"mlp.0.weight": torch.ones(3, 2), "last_layer.weight_g": torch.ones(3, 1), "last_layer.weight_v": torch.ones(3)}


def dino(state: State) -> dict[str, Any]:
    return {
        "student": prefixed(student(state), "module.backbone.") | prefixed(HEAD, "module.head."),
        "teacher": prefixed(state, "backbone.") | prefixed(HEAD, "head."),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="some_other_network", lr=np.float64(0.1), output_dir=Path("there")),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def dino_with_batch_norm(state: State) -> dict[str, Any]:
    """DINO wraps the teacher too where it synchronises batch norm."""
    content = dino(state)
    return content | {"teacher": prefixed(content["teacher"], "module.")}


def ibot(state: State) -> dict[str, Any]:
    content = dino(state)
    del content["dino_loss"]
    content["student"]["module.backbone.masked_embed"] = torch.ones(1, 64)
    content["teacher"]["backbone.masked_embed"] = torch.ones(1, 64)
    return content | {"ibot_loss": {"center": torch.zeros(1, 3), "center2": torch.zeros(1, 1, 3)}}


def dinov2(state: State) -> dict[str, Any]:
    """In two chunks, the second of which counts its blocks from 3 on."""
    blocks = {f"blocks.{i}.": f"blocks.{i // 3}.{i}." for i in range(6)}
    chunked = {
        next((key.replace(old, new, 1) for old, new in blocks.items() if key.startswith(old)), key): value
        for key, value in state.items()
    }
    chunked["mask_token"] = torch.ones(1, 64)
    return {"teacher": prefixed(chunked, "backbone.") | prefixed(HEAD, "dino_head.") | prefixed(HEAD, "ibot_head.")}


def lightly(state: State) -> dict[str, Any]:
    module = prefixed(state, "backbone.") | prefixed(student(state), "student_backbone.")
    return {"state_dict": module | prefixed(HEAD, "student_projection_head."), "hyper_parameters": {"num_classes": 10}}


def lightly_vit(state: State) -> dict[str, Any]:
    """lightly wraps timm's ViT, whose classifier stays."""
    wrapped = prefixed(state, "vit.") | {"vit.head.weight": torch.ones(10, 64), "mask_token": torch.ones(1, 1, 64)}
    return lightly(wrapped)


def lightly_with_a_named_teacher(state: State) -> dict[str, Any]:
    """As lightly's iBOT and DINOv2 have it."""
    return {"state_dict": prefixed(state, "teacher_backbone.") | prefixed(student(state), "student_backbone.")}


def solo_learn(state: State) -> dict[str, Any]:
    module = prefixed(student(state), "backbone.") | prefixed(state, "momentum_backbone.")
    return {"state_dict": module | {"classifier.weight": torch.ones(10, 96)}, "epoch": 3}


def dinov2_of_the_whole_model(state: State) -> dict[str, Any]:
    """As its trainer saves it, `model_final.rank_0.pth`."""
    module = prefixed(dinov2(state)["teacher"], "teacher.") | prefixed(student(state), "student.backbone.")
    return {"model": {key.replace("backbone.", "backbone._fsdp_wrapped_module."): module[key] for key in module}}


def moco(state: State) -> dict[str, Any]:
    query = prefixed(state | {"fc.0.weight": torch.ones(3, 2)}, "module.encoder_q.")
    return {"state_dict": query | prefixed(student(state), "module.encoder_k.") | {"module.queue": torch.ones(2, 9)}}


def moco_v3(state: State) -> dict[str, Any]:
    base = prefixed(state | {"head.0.weight": torch.ones(3, 2)}, "module.base_encoder.")
    momentum = prefixed(student(state), "module.momentum_encoder.")
    return {"state_dict": base | momentum | {"module.predictor.0.weight": torch.ones(2, 2)}}


def byol(state: State) -> dict[str, Any]:
    online = prefixed(state, "online_encoder.net.") | {"online_encoder.projector.net.0.weight": torch.ones(2, 2)}
    return online | prefixed(student(state), "target_encoder.net.") | prefixed(state, "net.")


def byol_of_networks(state: State) -> dict[str, Any]:
    online, target = prefixed(state, "online_network."), prefixed(student(state), "target_network.")
    return {"state_dict": online | target}


def i_jepa(state: State) -> dict[str, Any]:
    predictor = {"module.predictor_blocks.0.norm1.weight": torch.ones(2)}
    other = prefixed(student(state), "module.")
    return {"encoder": other, "predictor": predictor, "target_encoder": prefixed(state, "module."), "epoch": 3}


def lightly_train(state: State) -> dict[str, Any]:
    teacher, other = "teacher_embedding_model.wrapped_model._model.", "student_embedding_model.wrapped_model._model."
    return {"state_dict": prefixed(state, teacher) | prefixed(student(state), other)}


def lightly_train_of_one_network(state: State) -> dict[str, Any]:
    return {"state_dict": prefixed(state, "embedding_model.wrapped_model._model.")}


def mae(state: State) -> dict[str, Any]:
    decoder = {"decoder_blocks.0.norm1.weight": torch.ones(2), "decoder_pos_embed": torch.ones(1, 2, 2)}
    return {"model": state | decoder | {"mask_token": torch.ones(1, 1, 2)}}


def below(prefix: str) -> Callable[[State], dict[str, Any]]:
    """A backbone alone, within a module of the user's."""

    def layout(state: State) -> dict[str, Any]:
        return prefixed(state, prefix) | {"loss.weight": torch.ones(2)}

    layout.__name__ = f"below_{prefix}"
    return layout


def in_state_dict(state: State) -> dict[str, Any]:
    return {"state_dict": prefixed(state, "module."), "arch": "resnet"}


def in_model(state: State) -> dict[str, Any]:
    return {"model": state | {"fc.weight": torch.ones(10, 96), "fc.bias": torch.ones(10)}}


def bare(state: State) -> dict[str, Any]:
    return dict(state)


LAYOUTS: list[tuple[str, str, Callable[[State], dict[str, Any]]]] = [
    ("test_vit", "DINO", dino),
    ("test_resnet", "DINO", dino_with_batch_norm),
    ("test_vit", "iBOT", ibot),
    ("test_vit", "DINOv2", dinov2),
    ("test_resnet", "lightly", lightly),
    ("test_vit", "lightly", lightly_vit),
    ("test_resnet", "lightly", lightly_with_a_named_teacher),
    ("test_resnet", "solo-learn", solo_learn),
    ("test_vit", "DINOv2", dinov2_of_the_whole_model),
    ("test_resnet", "MoCo", moco),
    ("test_vit", "MoCo v3", moco_v3),
    ("test_resnet", "BYOL", byol),
    ("test_resnet", "BYOL", byol_of_networks),
    ("test_vit", "I-JEPA", i_jepa),
    ("test_vit", "lightly-train", lightly_train),
    ("test_vit", "lightly-train", lightly_train_of_one_network),
    ("test_vit", "flat", mae),
    ("test_vit", "_model.*", below("_model.")),
    ("test_resnet", "flat", below("model.")),
    ("test_vit", "encoder.*", below("encoder.")),
    ("test_convnext", "net.*", below("net.")),
    ("test_vit", "net.encoder.*", below("net.encoder.")),
    ("test_efficientnet", "flat", in_state_dict),
    ("test_resnet", "flat", in_state_dict),
    ("test_resnet", "flat", in_model),
    ("test_convnext", "flat", bare),
    ("test_efficientnet", "flat", bare),  # its blocks are blocks.STAGE.I, as DINOv2's are blocks.CHUNK.I
    ("test_efficientnet", "solo-learn", solo_learn),
]


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def same_features(encoder: Encoder, backbone: Any, sizes: tuple[int, ...] = (224, 96)) -> bool:
    with torch.no_grad():
        return all(
            torch.equal(ours, theirs)
            for size in sizes
            for ours, theirs in zip(encoder(images(size)), backbone(images(size)), strict=True)
        )


@pytest.mark.parametrize(
    ("name", "layout", "layout_of"), LAYOUTS, ids=[f"{name}-{f.__name__}" for name, _, f in LAYOUTS]
)
def test_a_foreign_file_gives_the_features_of_its_teacher(
    tmp_path: Path, name: str, layout: str, layout_of: Callable[[State], dict[str, Any]]
) -> None:
    backbone, state = trained(name)
    torch.save(layout_of(state), tmp_path / "checkpoint.pth")
    report = convert(tmp_path / "checkpoint.pth", tmp_path / "out", name)
    assert (report.path, report.layout, report.backbone) == (str(tmp_path / "out"), layout, name)
    assert set(report.matched) == {key for key in state if not key.endswith("num_batches_tracked")}
    assert report.missing == report.unexpected == report.mismatched == report.resampled == ()
    encoder = load_encoder(tmp_path / "out")
    assert same_features(encoder, backbone)
    assert encoder.config.augment.mean == (0.485, 0.456, 0.406)
    assert (encoder.config.evaluation.resize, encoder.config.evaluation.crop) == (256, 224)


def test_converting_into_the_folder_of_an_earlier_export_says_that_it_was_replaced(tmp_path: Path) -> None:
    torch.save(dino(trained("test_vit")[1]), tmp_path / "checkpoint.pth")
    first, second = (str(convert(tmp_path / "checkpoint.pth", tmp_path / "out", "test_vit")) for _ in range(2))
    assert second == f"{first}\n  the earlier export in {tmp_path / 'out'} was replaced"


def test_other_parts_of_a_checkpoint_are_counted_and_not_called_unexpected(tmp_path: Path) -> None:
    torch.save(dino(trained("test_vit")[1]), tmp_path / "checkpoint.pth")
    report = foreign_encoder(tmp_path / "checkpoint.pth", "test_vit")[1]
    assert report.ignored == {"student": 78 + 3, "head": 3, "optimizer": 1, "dino_loss": 1}
    assert str(report).splitlines()[0] == "DINO layout, backbone test_vit: 78 of 78 tensors matched"


def test_a_file_of_safetensors_needs_no_wrapper(tmp_path: Path) -> None:
    backbone, state = trained("test_vit")
    for name in ("weights.safetensors", "WEIGHTS.SAFETENSORS", "weights"):
        save_file(state, tmp_path / name)
        convert(tmp_path / name, tmp_path / "out", "test_vit")
        assert same_features(load_encoder(tmp_path / "out"), backbone, (96,))


def test_a_file_is_told_by_its_content_however_its_suffix_is_written(tmp_path: Path) -> None:
    backbone, state = trained("test_vit")
    for name in ("WEIGHTS.PTH", "weights.PT", "weights.Ckpt", "weights.bin"):
        torch.save(state, tmp_path / name)
        assert same_features(load_model(f"timm:test_vit={tmp_path / name}"), backbone, (96,))


@pytest.fixture(scope="module")
def swin() -> tuple[Any, State]:
    return trained("swin_tiny_patch4_window7_224")


def swin_of_the_authors(state: State) -> State:
    """Swin's authors end a stage with the merging of patches that timm begins the next one with; derived buffers."""
    renamed = {
        key.replace("layers.1.downsample", "layers.0.downsample")
        .replace("layers.2.downsample", "layers.1.downsample")
        .replace("layers.3.downsample", "layers.2.downsample"): value
        for key, value in state.items()
    }
    assert "layers.3.downsample.norm.weight" not in renamed
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("args", [None, {"cfg": "experiments/swin/swin_tiny_patch4_window7_224.yaml", "arch": "swin"}])
def test_a_swin_of_the_papers_code_is_recognised_and_gives_its_features(
    tmp_path: Path, swin: tuple[Any, State], args: dict[str, str] | None
) -> None:
    backbone, state = swin
    theirs = swin_of_the_authors(state)
    heads = prefixed(HEAD, "head.") | prefixed(HEAD, "head_dense.")
    content: dict[str, Any] = {
        "student": prefixed(heads, "module."),
        "teacher": theirs | heads,
        "dino_loss": {"center": torch.zeros(1, 3), "center_grid": torch.zeros(1, 3)},
    }
    if args is not None:
        content["args"] = argparse.Namespace(**args)
    torch.save(content, tmp_path / "checkpoint.pth")
    encoder, report = foreign_encoder(tmp_path / "checkpoint.pth")
    assert report.backbone == "swin_tiny_patch4_window7_224"
    assert report.layout == "EsViT"
    assert len(report.matched) == len(state)
    assert report.unexpected == report.resampled == ()
    assert report.ignored == {"student": 6, "head": 3, "head_dense": 3, "dino_loss": 2}
    assert same_features(encoder, backbone)


@pytest.mark.slow
def test_a_swin_in_timms_names_is_told_from_one_in_its_authors(tmp_path: Path, swin: tuple[Any, State]) -> None:
    backbone, state = swin
    for head in ({}, {"head.fc.weight": torch.ones(10, 768), "head.fc.bias": torch.ones(10)}):
        torch.save(state | head, tmp_path / "timm.pth")
        encoder, report = foreign_encoder(tmp_path / "timm.pth", backbone.name)
        assert same_features(encoder, backbone, (96,))
        assert report.ignored == ({"head": 2} if head else {})


@pytest.mark.slow
def test_dinov2s_register_tokens_take_their_place_beside_the_class_token(tmp_path: Path) -> None:
    backbone, state = trained("vit_small_patch14_reg4_dinov2")
    theirs = {key: value for key, value in state.items() if key not in ("cls_token", "reg_token", "pos_embed")}
    theirs["register_tokens"] = state["reg_token"]
    theirs["mask_token"] = torch.ones(1, 384)
    theirs["cls_token"], position = torch.full((1, 1, 384), 0.25), torch.full((1, 1, 384), 0.5)
    theirs["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    torch.save(theirs, tmp_path / "weights.pth")
    encoder, report = foreign_encoder(tmp_path / "weights.pth")
    assert report.backbone == backbone.name
    assert report.resampled == ()
    backbone.model.cls_token.data.fill_(0.75)
    assert same_features(encoder, backbone, (224,))


def test_positions_of_another_image_size_are_resampled_and_reported(tmp_path: Path) -> None:
    _, state = trained("test_vit")
    grid = state["pos_embed"][:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
    smaller = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic").flatten(2).mT
    theirs = state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], smaller], 1)}
    torch.save(theirs, tmp_path / "weights.pth")
    encoder, report = foreign_encoder(tmp_path / "weights.pth", "test_vit")
    assert report.resampled == ("pos_embed",)
    back = smaller.mT.reshape(1, 64, 6, 6)
    back = torch.nn.functional.interpolate(back, size=(10, 10), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(encoder.backbone.model.pos_embed[:, 1:], back)
    assert torch.equal(encoder.backbone.model.pos_embed[:, :1], state["pos_embed"][:, :1])


def test_a_backbone_is_recognised_by_names_and_shapes(tmp_path: Path) -> None:
    backbone, state = trained("resnet18")
    torch.save(solo_learn(state), tmp_path / "weights.ckpt")
    encoder, report = foreign_encoder(tmp_path / "weights.ckpt")
    assert report.backbone == "resnet18"
    assert same_features(encoder, backbone, (64,))


@pytest.mark.parametrize(
    ("name", "args"),
    [("test_vit", {"arch": "test_vit"}), ("vit_tiny_patch16_224", {"arch": "deit_tiny", "patch_size": 16})],
)
def test_a_backbone_that_is_not_common_may_be_named_by_the_files_arguments(
    tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    torch.save(dino(trained(name)[1]) | {"args": argparse.Namespace(**args)}, tmp_path / "checkpoint.pth")
    assert foreign_encoder(tmp_path / "checkpoint.pth")[1].backbone == name


def test_an_average_of_the_weights_goes_before_the_weights(tmp_path: Path) -> None:
    backbone, state = trained("test_vit")
    torch.save({"state_dict": student(state), "state_dict_ema": state}, tmp_path / "timm.pth")
    assert same_features(foreign_encoder(tmp_path / "timm.pth", "test_vit")[0], backbone, (96,))


def test_another_network_of_a_file_is_taken_by_its_prefix(tmp_path: Path) -> None:
    backbone, state = trained("test_resnet")
    content = moco(state)["state_dict"]
    swapped = {key.replace("_q.", "_x.").replace("_k.", "_q.").replace("_x.", "_k."): content[key] for key in content}
    torch.save({"state_dict": swapped}, tmp_path / "moco.pth")
    for prefix in ("module.encoder_k.", "encoder_k", "state_dict.module.encoder_k."):
        encoder, report = foreign_encoder(tmp_path / "moco.pth", "test_resnet", prefix)
        assert same_features(encoder, backbone, (96,))
        assert report.ignored == {"fc": 1, "encoder_q": len(state), "queue": 1}
    with pytest.raises(ValueError, match=r"begins with --prefix encoder; they begin with state_dict\.$"):
        foreign_encoder(tmp_path / "moco.pth", "test_resnet", "encoder")


def test_of_several_unknown_networks_none_is_guessed(tmp_path: Path) -> None:
    backbone, state = trained("test_vit")
    torch.save({"state_dict": prefixed(state, "good.") | prefixed(student(state), "bad.")}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"several networks, below state_dict\.bad\., state_dict\.good\.; name one"):
        foreign_encoder(tmp_path / "two.pth", "test_vit")
    assert same_features(foreign_encoder(tmp_path / "two.pth", "test_vit", "state_dict.good.")[0], backbone, (96,))


def test_a_backbone_whose_own_names_look_like_a_prefix_keeps_them(tmp_path: Path) -> None:
    backbone, state = trained("tresnet_m")
    assert any(key.startswith("body.layer1.0.") for key in state)
    torch.save({"teacher": prefixed(state, "backbone."), "student": {}}, tmp_path / "dino.pth")
    torch.save({"state_dict": state}, tmp_path / "flat.pth")
    for name in ("dino.pth", "flat.pth"):
        assert same_features(foreign_encoder(tmp_path / name, "tresnet_m")[0], backbone, (64,))


def of_transformers(kind: str, **config: Any) -> Any:
    """A model of Hugging Face's with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.copy_(1 + 0.2 * torch.rand_like(value) if "weight" in name else 0.3 * torch.rand_like(value))
    return model


HUB: list[tuple[str, str, str, dict[str, Any], int]] = [
    (
        "test_vit", "ViT", "vit.", {
            "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192,
            "image_size": 160, "layer_norm_eps": 1e-6,
        }, 160,
    ),
    (
        "resnet18", "ResNet", "", {
            "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic",
        }, 64,
    ),
]  # fmt: skip
SMALL_14 = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
LARGE_ON_HUB: list[tuple[str, str, str, dict[str, Any], int]] = [
    ("swin_tiny_patch4_window7_224", "Swin", "swin.", {"layer_norm_eps": 1e-6}, 224),
    ("convnext_tiny", "ConvNext", "convnext.", {"layer_norm_eps": 1e-6}, 64),
    ("vit_small_patch14_dinov2", "Dinov2", "", SMALL_14, 518),
    ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegisters", "dinov2_with_registers.", SMALL_14, 518),
]


@pytest.mark.parametrize(
    ("backbone", "kind", "prefix", "config", "size"),
    [*HUB, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE_ON_HUB)],
)
def test_a_model_of_the_hub_gives_its_own_features(
    tmp_path: Path, backbone: str, kind: str, prefix: str, config: dict[str, Any], size: int
) -> None:
    model = of_transformers(kind, **config)
    model.save_pretrained(tmp_path / "hub")
    theirs = load_file(tmp_path / "hub" / "model.safetensors")
    head = {"classifier.weight": torch.ones(10, 2), "classifier.bias": torch.ones(10)}
    save_file(prefixed(theirs, prefix) | (head if prefix else {}), tmp_path / "model.safetensors")
    named = backbone if backbone.startswith("test_") else None  # the others are recognised
    encoder, report = foreign_encoder(tmp_path / "model.safetensors", named)
    assert (report.layout, report.backbone) == ("Hugging Face", backbone)
    assert report.missing == report.unexpected == report.resampled == ()
    assert report.ignored.get("classifier", 0) == len(head if prefix else {})
    with torch.no_grad():
        found = model(images(size))
        expected = found.last_hidden_state[:, 0] if "vit" in backbone else found.pooler_output
        z_bar = encoder(images(size))[0]
    torch.testing.assert_close(z_bar, expected.flatten(1), atol=1e-4, rtol=1e-4)


def test_a_backbone_that_is_not_recognised_is_asked_for_with_the_nearest(tmp_path: Path) -> None:
    _, state = trained("resnet18")
    torch.save(state | {"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "cifar.pth")
    with pytest.raises(
        ValueError, match=r"the nearest of the common ones is resnet18, .* 99% .* name it by --backbone"
    ):
        foreign_encoder(tmp_path / "cifar.pth")


def test_a_prefix_that_is_not_recognised_is_asked_for(tmp_path: Path) -> None:
    _, state = trained("test_resnet")
    odd = {f"trunk.{key.replace('layer', 'part')}": value for key, value in state.items()}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"--backbone, and with glsd convert --prefix .* begin with trunk\.$"):
        foreign_encoder(tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"(?s)0\.0% of .* glsd convert --prefix .* begin with trunk\."):
        foreign_encoder(tmp_path / "odd.pth", "test_resnet")


def test_a_backbone_of_no_common_family_is_asked_for(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"none of the common ones, vit_small_patch16_224, .*; name it by --backbone"):
        foreign_encoder(tmp_path / "weights.pth")


def without(state: State, count: int) -> State:
    return {key: state[key] for key in list(state)[: len(state) - count]}


def test_five_percent_of_the_tensors_may_be_missing_and_are_named(tmp_path: Path) -> None:
    _, state = trained("test_vit")  # 78 tensors
    torch.save(without(state, 3) | {"blocks.0.ls1.gamma": torch.ones(64)}, tmp_path / "weights.pth")
    report = convert(tmp_path / "weights.pth", tmp_path / "out", "test_vit")  # which returns what it has to say
    assert report.missing == ("blocks.5.mlp.fc2.bias", "norm.weight", "norm.bias")
    assert report.unexpected == ("blocks.0.ls1.gamma",)
    assert len(report.matched) == 75
    with pytest.warns(UserWarning, match="does not fit its backbone completely") as warned:
        load_model(f"timm:test_vit={tmp_path / 'weights.pth'}")
    assert "3 missing: blocks.5.mlp.fc2.bias, norm.weight, norm.bias" in str(warned[0].message)


def test_the_report_of_a_conversion_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, state = trained("test_vit")
    torch.save(mae(state) | {"note": {"a": torch.ones(2)}}, tmp_path / "mae.pth")
    torch.save(without(state, 2), tmp_path / "short.pth")
    for name, said in (
        ("mae", "ignored: note (1), decoder_blocks (1)"),
        ("short", "2 missing: norm.weight, norm.bias"),
    ):
        main(["convert", str(tmp_path / f"{name}.pth"), str(tmp_path / name), "--backbone", "test_vit"])
        out, err = capsys.readouterr()
        assert (out + err).count("flat layout, backbone test_vit") == 1
        assert said in out


def test_more_than_five_percent_missing_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    _, state = trained("test_vit")
    torch.save(without(state, 4), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"94\.9% of its tensors are matched, and 95% must be") as refused:
        convert(tmp_path / "weights.pth", tmp_path / "out", "test_vit")
    assert "74 of 78 tensors matched" in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pth"]


def test_a_single_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    """As the stem of a ResNet for small images, which would else be a random one in front of trained layers."""
    _, state = trained("resnet18")
    torch.save(state | {"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "cifar.pth")
    with pytest.raises(ValueError, match=r"1 mismatched: conv1\.weight \(64, 3, 3, 3\) for \(64, 3, 7, 7\)"):
        convert(tmp_path / "cifar.pth", tmp_path / "out", "resnet18")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cifar.pth"]


def test_what_a_file_lacks_is_the_same_in_every_conversion(tmp_path: Path) -> None:
    torch.save(without(trained("test_vit")[1], 2), tmp_path / "weights.pth")
    random_numbers = torch.get_rng_state()
    first, second = (foreign_encoder(tmp_path / "weights.pth", "test_vit")[0] for _ in range(2))
    assert same_features(first, second.backbone, (96,))
    assert torch.equal(torch.get_rng_state(), random_numbers)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(trained("test_vit")[1], tmp_path / "weights.pth")
    for name in ("test_resnet", "test_convnext"):
        with pytest.raises(ValueError, match=f"does not fit backbone {name}"):
            convert(tmp_path / "weights.pth", tmp_path / "out", name)


def test_arguments_and_numpy_values_are_read(tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(lr=0.1, output_dir=Path("there")),
        "knn": np.float64(0.5),
        "curve": np.arange(3, dtype=np.int16),
    }
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        found = read_foreign(tmp_path / name)
        assert found["args"].lr == 0.1
        assert str(found["args"].output_dir) == "there"
        assert found["knn"] == 0.5
        np.testing.assert_array_equal(found["curve"], np.arange(3, dtype=np.int16))


def test_a_configuration_of_a_package_that_is_not_installed_does_not_hide_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})  # type: ignore[attr-defined]
    with monkeypatch.context() as installed:
        installed.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        installed.setitem(sys.modules, "omegaconf.dictconfig", module)
        hyper_parameters = module.DictConfig()
        hyper_parameters._content = {"lr": 0.1, "kind": dict}
        torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": hyper_parameters}, tmp_path / "a.ckpt")
    found = read_foreign(tmp_path / "a.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))
    assert found["hyper_parameters"]._content["lr"] == 0.1


class Harm:
    """An object whose unpickling runs a command, as that of any class may."""

    def __init__(self, function: Any, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.function, (self.argument,)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("function", [os.system, eval], ids=["system", "eval"])
def test_a_file_that_would_run_something_is_refused_and_nothing_runs(
    tmp_path: Path, function: Any, new_format: bool
) -> None:
    harmed = tmp_path / "harmed"
    argument = f"touch {harmed}" if function is os.system else f"__import__('pathlib').Path({str(harmed)!r}).touch()"
    content = {"teacher": {"a": torch.ones(2)}, "args": Harm(function, argument)}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"wants (posix\.system|eval), which is not on the list"):
        convert(tmp_path / "weights.pth", tmp_path / "out", "test_vit")
    assert not harmed.exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)  # the file would do what it is refused for
    assert harmed.exists()


def test_a_pickle_that_torch_did_not_write_is_not_unpickled(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(Harm(os.system, f"touch {tmp_path / 'harmed'}"), protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pkl was written neither by torch\.save nor"):
        read_foreign(tmp_path / "weights.pkl")
    assert not (tmp_path / "harmed").exists()


def test_a_file_without_weights_or_damaged_is_named(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save({"teacher": {"a": torch.ones(1000)}}, tmp_path / "whole.pth")
    save_file({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    torch.save({"epoch": 3, "model_name": "vit"}, tmp_path / "empty.pth")
    torch.save({0: torch.ones(2), 1: torch.ones(2)}, tmp_path / "numbered.pth")
    torch.save({"state_dict": {0: torch.ones(2)}}, tmp_path / "nested.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    for path, said in (
        (tmp_path / "nothing.pth", "is not a file"),
        (tmp_path, "is not a file"),
        (file("notes.txt", b"hello world"), r"written neither by torch\.save nor by safetensors"),
        (file("none.pth", b""), r"written neither by torch\.save nor by safetensors"),
        (file("cut.pth", (tmp_path / "whole.pth").read_bytes()[:500]), "is damaged"),
        (file("cut.safetensors", (tmp_path / "whole.safetensors").read_bytes()[:500]), "or is damaged"),
        (tmp_path / "empty.pth", "holds no weights of a backbone; it has epoch, model_name"),
        (tmp_path / "numbered.pth", "holds a dict, and not tensors by name"),
        (tmp_path / "nested.pth", "holds no weights of a backbone; it has state_dict"),
        (tmp_path / "list.pth", "holds a list, and not tensors by name"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            foreign_encoder(path, "test_vit")
        assert path.name in str(refused.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_called_so(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt is a TorchScript archive, a program and not weights"):
        foreign_encoder(tmp_path / "program.pt", "test_vit")


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_tensors_that_do_not_hold_a_number_for_each_weight_are_named(tmp_path: Path) -> None:
    _, state = trained("test_vit")
    weight = state["blocks.1.mlp.fc1.weight"]
    for value, said in (
        (weight.to_sparse(), r"is sparse; save its to_dense\(\)"),
        (weight.to_sparse_csr(), r"is sparse; save its to_dense\(\)"),
        (weight.to("meta"), "has no values, as it was saved on the device meta"),
        (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), r"is quantised; save its dequantize\(\)"),
    ):
        torch.save(state | {"blocks.1.mlp.fc1.weight": value}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=rf"weights\.pth: the tensor blocks\.1\.mlp\.fc1\.weight {said}"):
            foreign_encoder(tmp_path / "weights.pth", "test_vit")


def test_a_share_of_the_weights_that_fsdp_saved_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {"model": {"teacher.backbone._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._flat_param": torch.ones(9)}}
    torch.save(flat, tmp_path / "model_final.rank_0.pth")
    shard = type("ShardedTensor", (), {"__module__": "torch.distributed._shard.sharded_tensor.api"})
    with monkeypatch.context() as patched:
        module = "torch.distributed._shard.sharded_tensor.api"
        patched.setitem(sys.modules, module, types.ModuleType(module))
        patched.setattr(sys.modules[module], "ShardedTensor", shard, raising=False)
        torch.save({"model": {"teacher.backbone._flat_param": shard()}}, tmp_path / "model.rank_1.pth")
    for name in ("model_final.rank_0.pth", "model.rank_1.pth"):
        with pytest.raises(ValueError, match=rf"{name} holds a worker's share .*/teacher_checkpoint\.pth"):
            foreign_encoder(tmp_path / name, "vit_small_patch14_dinov2")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path, bad: float) -> None:
    _, state = trained("test_vit")
    state["blocks.2.attn.qkv.weight"][3, 4:6] = bad
    torch.save(dino(state), tmp_path / "dino.pth")
    said = r"dino\.pth: 2 of the 12,288 weights of the tensor blocks\.2\.attn\.qkv\.weight are NaN or infinite"
    with pytest.raises(ValueError, match=said):
        convert(tmp_path / "dino.pth", tmp_path / "out", "test_vit")
    with pytest.raises(ValueError, match=said):
        load_model(f"timm:test_vit={tmp_path / 'dino.pth'}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dino.pth"]


def test_a_weight_that_float32_cannot_hold_is_infinite(tmp_path: Path) -> None:
    _, state = trained("test_vit")
    torch.save(state | {"norm.weight": state["norm.weight"].double() * 1e300}, tmp_path / "double.pth")
    with pytest.raises(ValueError, match=r"64 of the 64 weights of the tensor norm\.weight are NaN or infinite"):
        foreign_encoder(tmp_path / "double.pth", "test_vit")


def test_a_head_that_is_not_finite_is_no_concern_of_the_backbone(tmp_path: Path) -> None:
    backbone, state = trained("test_vit")
    content = dino(state)
    content["teacher"]["head.mlp.0.weight"] = torch.full((3, 2), torch.nan)
    torch.save(content, tmp_path / "dino.pth")
    assert same_features(foreign_encoder(tmp_path / "dino.pth", "test_vit")[0], backbone, (96,))


def test_a_report_names_the_first_of_many() -> None:
    names = tuple("abcdefg")
    report = ConversionReport(Path("x"), "DINO", "test_vit", ("h",), names, (), (), (), {"head": 3, "student": 80})
    assert str(report).splitlines() == [
        "DINO layout, backbone test_vit: 1 of 8 tensors matched",
        "  7 missing: a, b, c, d, e and 2 more",
        "  ignored: head (3), student (80)",
    ]
