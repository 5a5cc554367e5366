"""k-NN during a run: images are decoded once and shared by the workers, who all come to what one alone finds."""

import threading
from pathlib import Path

import torch

from glsd.config import Config
from glsd.data.index import Index, build_index
from glsd.data.splits import LabelledSplit, labelled_split
from glsd.evaluation.online_knn import OnlineKnn
from glsd.models.student_teacher import build_student_teacher
from tests.glsd.training.small import small_config
from tests.images import labelled_folder
from tests.processes import run_in_two

CPU = torch.device("cpu")
CONFIG = small_config(**{"evaluation.k": 3, "evaluation.resize": 64, "evaluation.crop": 64})


class Remembering(Index):
    """An index that remembers which images were read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.image_ids, self.threads = list[int](), set[int]()

    def read(self, image_id: int) -> bytes:
        self.image_ids.append(image_id)
        self.threads.add(threading.get_ident())
        return super().read(image_id)


def labelled(index: Index) -> LabelledSplit:
    """Thirty-two images vote on eight; the corrupt one of all does neither."""
    return labelled_split(index, None, CONFIG.evaluation)


def test_images_are_decoded_once_and_the_teacher_is_seen_as_it_is_now(tmp_path: Path) -> None:
    index = Remembering(build_index(labelled_folder(tmp_path / "photos", 40, num_corrupt=1), CONFIG.data).path)
    probe = OnlineKnn(labelled(index), CONFIG, CPU, num_threads=1)
    _, teacher = build_student_teacher(CONFIG)
    first = probe(teacher)
    assert first["knn_anchors"] + first["knn_queries"] == 39
    num_right = first["knn_majority"] * first["knn_queries"]
    assert num_right == round(num_right) > 0, "a broken image is counted"
    with torch.no_grad():
        for parameter in teacher.backbone.parameters():
            parameter.zero_()
    assert probe(teacher)["knn"] != first["knn"]
    assert sorted(index.image_ids) == list(range(40))
    assert len(index.threads) <= 2, "one for those that vote, one for those that are tested"


def _worker(rank: int, folder: str, index_path: str, config: Config) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    index = Remembering(index_path)
    _, teacher = build_student_teacher(config)
    for statistic in teacher.backbone.buffers():
        statistic += rank
    found = OnlineKnn(labelled(index), config, CPU, num_threads=1)(teacher)
    torch.save({"found": found, "image_ids": index.image_ids}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_with_unequal_batch_norm_read_half_of_the_images_each_and_find_what_the_first_alone_finds(
    tmp_path: Path,
) -> None:
    config = CONFIG.with_overrides({"model.backbone": "test_resnet"})
    index = build_index(labelled_folder(tmp_path / "photos", 40, num_corrupt=1), config.data)
    _, teacher = build_student_teacher(config)
    alone = OnlineKnn(labelled(index), config, CPU, num_threads=1)(teacher)
    run_in_two(_worker, str(tmp_path), str(index.path), config)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [rank["found"] for rank in ranks] == [alone, alone]
    assert sorted(ranks[0]["image_ids"] + ranks[1]["image_ids"]) == list(range(40))
    assert {len(rank["image_ids"]) for rank in ranks} == {20}
