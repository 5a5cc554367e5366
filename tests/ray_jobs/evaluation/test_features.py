import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from glsd.config import Config
from glsd.data.images import decode
from glsd.data.index import Index, build_index
from glsd.data.splits import LabelledImages
from glsd.encoder.blocks import block_representations
from glsd.encoder.encoder import Encoder, untrained_encoder
from ray_jobs.evaluation.features import Features, Images, Selection, extract, precompute
from ray_jobs.evaluation.store import Rows, Store
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from tests.images import labelled_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

NUM_IMAGES = 150  # more than two chunks
CORRUPT = 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four classes, the first of them corrupt."""
    return labelled_folder(tmp_path_factory.mktemp("features") / "photos", NUM_IMAGES, num_corrupt=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoder_of(backbone: str) -> Encoder:
    return untrained_encoder(
        Config().with_overrides(
            {
                "model.backbone": backbone,
                "model.drop_path": 0.0,
                "augment.global_size": 64,
                "augment.local_sizes": (32,),
                "augment.num_local_crops": (2,),
                "evaluation.resize": 72,
                "evaluation.crop": 64,
            }
        )
    )


def images_of(encoder: Encoder, index: Index, image_ids: np.ndarray) -> torch.Tensor:
    """Normalised images, one after the other."""
    limits = encoder.config.data
    crops = [
        encoder.preprocess(decode(index.read(k), limits.max_pixels, limits.value_range)) for k in image_ids.tolist()
    ]
    return encoder.normalize(torch.from_numpy(np.stack(crops)))


def extracted(encoder: Encoder, images: Images, **options: int) -> Features:
    workers = options.pop("workers", 1)
    with ProgressLine() as line:
        return extract(encoder, images, settings=JobSettings(workers=workers), line=line, **options)


class Heard(ProgressLine):
    """A progress line that keeps all that it was told."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.phases = list[str]()

    def phase(self, subject: str, detail: str = "") -> None:
        self.phases.append(f"{subject} {detail}")
        super().phase(subject, detail)


def journal(cache: Path) -> list[str]:
    """What the stores of a cache have noted."""
    return [line for path in cache.glob("features-*/journal.jsonl") for line in path.read_text().splitlines()]


def embedded_ids(cache: Path) -> Counter[int]:
    """How often each image was embedded or found undecodable, of all stores of a cache."""
    return Counter(image_id for line in journal(cache) for image_id, _ in json.loads(line))


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_image_is_embedded_once_whatever_the_number_of_workers(photos: Path, cache: Path, workers: int) -> None:
    encoder = encoder_of("test_resnet")
    index = build_index(photos, encoder.config.data)
    found = extracted(encoder, Selection.all(index), workers=workers)
    assert embedded_ids(cache) == dict.fromkeys(range(NUM_IMAGES), 1)
    assert [image_id for image_id, _ in found.skipped] == [CORRUPT]
    assert "truncated" in found.skipped[0][1]
    decodable = np.delete(np.arange(NUM_IMAGES), CORRUPT)
    assert found.image_ids.tolist() == decodable.tolist()
    with torch.no_grad():
        close(found.values, encoder(images_of(encoder, index, decodable))[0])


def test_what_is_there_is_not_computed_again_for_another_subset_and_nothing_is_read(
    photos: Path, cache: Path, tmp_path: Path
) -> None:
    encoder = encoder_of("test_resnet")
    own = shutil.copytree(photos, tmp_path / "photos")
    index = build_index(own, encoder.config.data)
    assert index.labels is not None
    some, more = np.array([5, 90, CORRUPT, 7]), np.array([7, 100, 5, 101, CORRUPT])
    first = extracted(encoder, LabelledImages(index, some, index.labels[some]))
    assert embedded_ids(cache) == dict.fromkeys(some.tolist(), 1)
    second = extracted(encoder, LabelledImages(index, more, index.labels[more]))
    assert embedded_ids(cache) == dict.fromkeys({*some.tolist(), *more.tolist()}, 1)
    shutil.rmtree(own)
    third = extracted(encoder, LabelledImages(index, more[::-1], index.labels[more[::-1]]))
    assert first.image_ids.tolist() == [5, 90, 7]
    assert first.positions.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(second.values[[2, 0]], first.values[[0, 2]])
    np.testing.assert_array_equal(third.values, second.values[::-1])
    assert third.skipped == second.skipped == first.skipped


def test_images_are_embedded_by_several_encoders_in_one_pass_each_as_far_as_it_lacks_them(
    photos: Path, cache: Path, tmp_path: Path
) -> None:
    one, other = encoder_of("test_resnet"), encoder_of("test_vit")
    own = shutil.copytree(photos, tmp_path / "photos")
    index = build_index(own, one.config.data)
    some, more = (Selection(index, np.array(ids)) for ids in ([CORRUPT, 5, 7], [7, 8]))
    extracted(one, some)
    union = Selection.union(some, more)
    with Heard() as line:
        precompute([one, other, other], union, settings=JobSettings(), line=line)
    assert line.phases == ["embedding 0 of 4 images", "embedding 4 of 4 images"]
    assert embedded_ids(cache) == dict.fromkeys([CORRUPT, 5, 7, 8], 2)
    images = images_of(one, index, np.array([5, 7, 8]))
    shutil.rmtree(own)  # nothing is read from now on
    for encoder in (one, other):
        found = extracted(encoder, union)
        assert found.image_ids.tolist() == [5, 7, 8]
        with torch.no_grad():
            close(found.values, encoder(images)[0])


def test_dense_and_deeper_representations_are_kept_apart(photos: Path, cache: Path) -> None:
    encoder = encoder_of("test_vit")
    index = build_index(photos, encoder.config.data)
    assert index.labels is not None
    image_ids = np.array([3, 4, 9])
    images = LabelledImages(index, image_ids, index.labels[image_ids])
    with torch.no_grad():
        pixels = images_of(encoder, index, image_ids)
        z_bar, z = encoder(pixels)
    close(extracted(encoder, images).values, z_bar)
    close(extracted(encoder, images, dense=True).values, z)
    close(extracted(encoder, images, num_blocks=2).values, block_representations(encoder, pixels, 2))


def test_a_file_that_is_gone_ends_the_extraction_in_words_and_what_was_computed_stays(
    photos: Path, cache: Path, tmp_path: Path
) -> None:
    encoder = encoder_of("test_resnet")
    for name in "abc":  # so many chunks that the last one is not read before others are computed
        shutil.copytree(photos, tmp_path / "photos" / name)
    index = build_index(tmp_path / "photos", encoder.config.data)
    missing = Path(index.uri(len(index) - 1))
    missing.rename(missing.with_suffix(".away"))
    with pytest.raises(ValueError, match=r"^\S+\.(png|jpg) is gone since the index was made"), Heard() as line:
        extract(encoder, Selection.all(index), settings=JobSettings(), line=line)
    before = journal(cache)
    assert before
    assert line.phases[-1] == f"embedding {len(embedded_ids(cache))} of {len(index)} images"
    missing.with_suffix(".away").rename(missing)
    assert len(extracted(encoder, Selection.all(index)).image_ids) == 3 * (NUM_IMAGES - 1)
    assert journal(cache)[: len(before)] == before
    assert embedded_ids(cache) == dict.fromkeys(range(3 * NUM_IMAGES), 1)


def test_a_representation_that_is_not_finite_is_refused(photos: Path, cache: Path) -> None:
    encoder = encoder_of("test_resnet")
    encoder.backbone.model.bn1.running_var.fill_(-1.0)  # a finite weight whose root is not
    index = build_index(photos, encoder.config.data)
    with pytest.raises(
        ValueError, match=r"^z̄ by test_resnet \(\w{8}\) of images such as \S+ is not finite: the weights"
    ):
        extracted(encoder, Selection(index, np.array([5, 6])))
    assert not journal(cache)


def test_images_none_of_which_can_be_decoded_are_refused(cache: Path, tmp_path: Path) -> None:
    encoder = encoder_of("test_resnet")
    index = build_index(labelled_folder(tmp_path / "photos", 4, num_corrupt=4), encoder.config.data)
    with pytest.raises(ValueError, match=r"none of the 4 images could be decoded, such as \S+000\.png: .*truncated"):
        extracted(encoder, Selection.all(index))


def test_the_journal_of_values_that_were_deleted_is_not_believed(tmp_path: Path) -> None:
    with Store(tmp_path, (3, 2)) as store:
        store.add(Rows(np.array([1]), np.ones((1, 2), np.float32), [""]))
    with Store(tmp_path, (3, 2)) as store:
        assert store.state.any()
    (tmp_path / "values.npy").unlink()
    with Store(tmp_path, (3, 2)) as store:
        assert not store.state.any()
