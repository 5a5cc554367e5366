"""One command says whether a backbone is good, whether it collapsed, and what it matches."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glsd.config import LinearConfig
from glsd.data.images import decode
from glsd.data.index import build_index
from glsd.data.splits import LabelledImages, labelled_split
from glsd.data.undecodable import UndecodableImage
from glsd.encoder.encoder import Encoder, embed, load_encoder, untrained_encoder
from glsd.evaluation.correspondence import correspondence, flip_truth, mean_correspondence, transformed_view
from glsd.evaluation.knn import Labelled, knn_accuracies
from glsd.reporting.console import score_table
from glsd.runs.lease import TIMES, held_lease
from glsd.runs.records import Evaluation
from glsd.storage.folder import Folder
from ray_jobs.evaluation.job import evaluate
from ray_jobs.evaluation.options import EvaluateOptions
from ray_jobs.pretraining.job import Run
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def evaluated(uninterrupted: Run, forty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, said = tmp_path_factory.mktemp("evaluated") / "evaluation", io.StringIO()
    evaluate(
        uninterrupted.out,
        str(forty),
        EvaluateOptions(
            probes=("knn", "linear_quick", "correspondence", "collapse"),
            out=str(out),
            ks=(5, 100, 200),
            resize=128,
            crop=128,
        ),
        line=ProgressLine(said),
    )
    out.with_name("said").write_text(said.getvalue())
    return out


def probed(run: Run) -> Encoder:
    """The encoder of a run as the evaluation has it."""
    trained = load_encoder(run.checkpoint)
    preprocessing = {"evaluation.resize": 128, "evaluation.crop": 128}
    return Encoder(trained.backbone, trained.config.with_overrides(preprocessing))


def crops(encoder: Encoder, images: LabelledImages) -> Iterator[tuple[int, int, np.ndarray]]:
    """(image_id, label, crop) of the decodable ones."""
    for image_id, label in zip(images.image_ids.tolist(), images.labels.tolist(), strict=True):
        with suppress(UndecodableImage):
            image = decode(images.index.read(image_id), encoder.config.data.max_pixels, None)
            yield image_id, label, encoder.preprocess(image)


def representations(encoder: Encoder, images: LabelledImages) -> Labelled:
    """z̄ and labels, one image at a time."""
    found = [(embed(encoder, [torch.from_numpy(crop[None])]), label) for _, label, crop in crops(encoder, images)]
    return Labelled(torch.cat([z_bar for z_bar, _ in found]), torch.tensor([label for _, label in found]))


def test_knn_is_that_of_the_representations_made_one_by_one(evaluated: Path, uninterrupted: Run, forty: Path) -> None:
    encoder = probed(uninterrupted)
    index = build_index(str(forty), encoder.config.data)
    split = labelled_split(index, None, encoder.config.evaluation)
    anchors, queries = (representations(encoder, images) for images in (split.anchors, split.queries))
    (expected,) = knn_accuracies(anchors, queries, [5], encoder.config.evaluation.temperature, 4)
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert found["knn"]["results"][0] == {"k": 5, "top1": expected.top1, "top5": expected.top5, "num_top": 4}
    assert found["knn"]["num_anchors"] == len(anchors.labels)
    assert found["knn"]["num_queries"] == len(queries.labels)
    assert found["knn"]["num_anchors"] + found["knn"]["num_queries"] == 39  # one of forty is corrupt
    num_right = found["knn"]["majority"] * found["knn"]["num_queries"]
    assert num_right == pytest.approx(round(num_right)), "the corrupt image, which would be tested, is counted"
    # A hundred neighbours are all there are, and two hundred are no others.
    assert [result["k"] for result in found["knn"]["results"]] == [5, len(anchors.labels)]
    num_voting = len(anchors.labels)
    note = f"--ks 100 200: only {num_voting} images vote, so k = {num_voting} is measured\n"
    assert evaluated.with_name("said").read_text().count(note) == 1


def test_correspondences_are_those_of_one_image_after_the_other_by_the_model_and_by_its_random_initialisation(
    evaluated: Path, uninterrupted: Run, forty: Path
) -> None:
    encoder = probed(uninterrupted)
    split = labelled_split(build_index(str(forty), encoder.config.data), None, encoder.config.evaluation)
    truth = flip_truth(encoder.backbone.grid(128), 128)
    found = json.loads((evaluated / "evaluation.json").read_text())["correspondence"]
    for model, means in ((encoder, found), (untrained_encoder(encoder.config), found["untrained"])):
        results = []
        for image_id, _, crop in crops(model, split.queries):
            sides = (torch.from_numpy(side[None]) for side in (crop, transformed_view(crop, 0, image_id)))
            with torch.no_grad():
                z_a, z_b = (model(model.normalize(side))[1] for side in sides)
            results.append(correspondence(z_a, z_b, truth, 128))
        expected = mean_correspondence(results).model_dump()
        assert {key: means[key] for key in expected} == pytest.approx(expected)


def test_the_corrupt_image_is_named(evaluated: Path) -> None:
    (skipped,) = json.loads((evaluated / "evaluation.json").read_text())["skipped"]
    assert skipped["uri"].endswith("000.png")
    assert skipped["reason"]


def test_every_probe_says_what_it_rests_on(evaluated: Path) -> None:
    found = json.loads((evaluated / "evaluation.json").read_text())
    assert found["collapse"]["verdict"] == "healthy"
    assert 0 < found["collapse"]["metrics"]["feature_std"] <= 1.5
    assert found["collapse"]["metrics"]["input_gradient_norm"] > 0
    assert found["correspondence"]["size"] == 128
    assert 0 <= found["correspondence"]["accuracy"] <= 1
    assert found["linear_quick"]["num_train"] == found["knn"]["num_anchors"]
    table = score_table(Evaluation.model_validate(found))
    for word in ("k = 5", "linear, L-BFGS", "correspondence of", "collapse: healthy", "most frequent class"):
        assert word in table


def test_votes_and_layers_say_how_far_they_are(evaluated: Path) -> None:
    said = evaluated.with_name("said").read_text()
    assert "k-NN: 100 % of the images that vote are compared" in said
    assert "fitting linear layers: 0 % done" in said


def test_figures_are_drawn_for_the_screen_and_for_print(evaluated: Path) -> None:
    stems = {path.stem for path in (evaluated / "figures").iterdir()}
    assert stems >= {"correspondences", "different_images", "neighbours", "feature_map", "crops", "matchings"}
    for stem in stems:
        assert {path.suffix for path in (evaluated / "figures").glob(f"{stem}.*")} == {".png", ".svg"}


def test_a_later_probe_is_added_to_the_evaluation_and_a_linear_layer_has_only_tested_images_represented(
    evaluated: Path, uninterrupted: Run, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    before = json.loads((evaluated / "evaluation.json").read_text())
    evaluate(
        uninterrupted.out,
        str(forty),
        EvaluateOptions(
            probes=("linear",),
            out=str(evaluated),
            linear=LinearConfig(epochs=2, batch_size=8),
            resize=128,
            crop=128,
            figures=False,
        ),
    )
    after = json.loads((evaluated / "evaluation.json").read_text())
    assert after["knn"] == before["knn"]
    assert after["linear"]["epochs"] == 2
    assert 0 <= after["linear"]["top1"] <= 1
    (journal,) = (tmp_path / "cache").glob("features-*/journal.jsonl")
    rows = [row for line in journal.read_text().splitlines() for row in json.loads(line)]
    assert len(rows) == 8  # a fifth of forty


def test_an_evaluation_of_something_else_is_refused(evaluated: Path, uninterrupted: Run, forty: Path) -> None:
    with pytest.raises(ValueError, match=r"differs in model_digest; choose another --out"):
        evaluate(uninterrupted.out, str(forty), EvaluateOptions(out=str(evaluated), resize=64, crop=32))


def test_an_evaluation_at_which_another_process_works_is_refused(
    evaluated: Path, uninterrupted: Run, forty: Path
) -> None:
    with (
        held_lease(Folder(evaluated), print, TIMES),
        pytest.raises(ValueError, match=r"is in use by process .* choose another --out"),
    ):
        evaluate(uninterrupted.out, str(forty), EvaluateOptions(out=str(evaluated), resize=128, crop=128))


def test_an_evaluation_does_not_write_into_a_folder_of_something_else(uninterrupted: Run, forty: Path) -> None:
    before = sorted(forty.rglob("*"))
    with pytest.raises(ValueError, match=r"holds .* but no evaluation\.json, so it is not an evaluation; name a new"):
        evaluate(uninterrupted.out, str(forty), EvaluateOptions(out=str(forty), resize=128, crop=128))
    assert sorted(forty.rglob("*")) == before


def test_images_without_labels_can_be_probed_for_collapse_and_not_by_knn(
    cluster: None, uninterrupted: Run, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / f"{number}.png")
    found = evaluate(
        uninterrupted.out,
        str(tmp_path),
        EvaluateOptions(probes=("collapse", "correspondence"), resize=128, crop=128, keep=False),
    )
    assert found.correspondence is not None
    assert found.correspondence.num_images == 6
    with pytest.raises(ValueError, match="have no labels, which k-NN and linear layers need"):
        evaluate(uninterrupted.out, str(tmp_path), EvaluateOptions(probes=("knn",), resize=128, crop=128))


def test_images_of_other_classes_can_be_matched_and_not_voted_on(
    cluster: None, uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / day / "photo.png")
    other = EvaluateOptions(test=(str(tmp_path),), resize=128, crop=128)
    found = evaluate(uninterrupted.out, str(forty), replace(other, probes=("correspondence",)))
    assert found.correspondence is not None
    assert found.correspondence.num_images == 2
    with pytest.raises(ValueError, match="classes that no voting image has"):
        evaluate(uninterrupted.out, str(forty), replace(other, probes=("correspondence", "knn")))


def test_photographs_of_a_scene_are_held_to_their_homography_and_no_gpu_is_used_where_none_is_allowed(
    uninterrupted: Run, evaluated: Path, forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # nothing could be moved to it
    photo = Image.open(sorted(forty.rglob("*.png"))[1]).convert("RGB").resize((96, 96))
    photo.save(tmp_path / "photo.png")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    lines = ("photo.png,photo.png,1 0 0 0 1 0 0 0 1", "photo.png,mirrored.png,-1 0 95 0 1 0 0 0 1")
    (tmp_path / "scenes.csv").write_text("\n".join(["image_a,image_b,homography", *lines]))
    out = tmp_path / "evaluation"
    found = evaluate(
        uninterrupted.out,
        str(forty),
        EvaluateOptions(
            probes=("correspondence",),
            out=str(out),
            scenes=str(tmp_path / "scenes.csv"),
            pairs=4,
            resize=128,
            crop=128,
        ),
        JobSettings(gpu=False),
    )
    assert found.correspondence is not None
    assert found.correspondence.scenes is not None
    same, mirrored = found.correspondence.scenes.pairs
    for model in (same, same.untrained):
        assert (model.accuracy, model.error_px) == (1.0, 0.0)
    assert Path(mirrored.image_b).name == "mirrored.png"
    assert 0 <= mirrored.accuracy < 1
    assert mirrored.num_locations == same.num_locations > 1
    assert (out / "figures" / "scenes.svg").exists()
    assert "correspondence of photo.png and mirrored.png" in score_table(found)
    with pytest.raises(ValueError, match="--scenes is for the probe correspondence"):
        evaluate(uninterrupted.out, str(forty), EvaluateOptions(scenes=str(tmp_path / "scenes.csv")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"probes": ("nn",)}, "there is no probe 'nn'; choose from knn"),
        ({"ks": (20, 0)}, "--ks must be numbers of neighbours, 1 or more each, not 20 0"),
        ({"ks": ()}, "--ks must be numbers of neighbours, 1 or more each, not none"),
        ({"probes": ("correspondence",), "pairs": 0}, "--pairs must be 1 or more, not 0"),
        ({"probes": ("correspondence",), "beside": ("resnet",)}, "needs correspondence in --probes and a folder --out"),
        ({"probes": ("knn",), "beside": ("resnet",), "out": "it"}, "needs correspondence in --probes"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate("no model", "no data", EvaluateOptions(**options))


def test_what_does_not_fit_model_or_images_is_said_before_anything_is_computed(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    for options, said in (
        ({"probes": ("correspondence",), "beside": ("mispelt",)}, "mispelt is not a run"),
        ({"probes": ("knn", "linear")}, "32 training images do not fill a batch of 256; use linear.batch_size 32"),
        ({"probes": ("collapse", "correspondence"), "crop": 32}, "has a single location in a crop of 32 px"),
    ):
        given: dict[str, Any] = {"resize": 128, "crop": 128, "out": str(tmp_path / "it")} | options
        with pytest.raises(ValueError, match=said):
            evaluate(uninterrupted.out, str(forty), EvaluateOptions(**given))
    assert not list(tmp_path.iterdir())


def test_the_model_may_be_named_relative_to_where_the_command_runs(
    uninterrupted: Run, forty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(uninterrupted.out).parent)
    found = evaluate(
        Path(uninterrupted.out).name, str(forty), EvaluateOptions(probes=("collapse",), resize=128, crop=128)
    )
    assert found.collapse is not None
    assert "input_gradient_norm" in found.collapse.metrics  # the heads were there


def test_a_run_on_all_images_has_no_smaller_regime(uninterrupted: Run, forty: Path) -> None:
    with pytest.raises(ValueError, match="--anchors regime"):
        evaluate(uninterrupted.out, str(forty), EvaluateOptions(anchors="regime"))
