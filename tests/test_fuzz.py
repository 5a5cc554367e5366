"""Readers of files that anybody may have written: mutated files, and files that would run something."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.fuzz import fuzz, table
from glsd.config import Config
from glsd.data.index import build_index
from glsd.encoder.encoder import load_encoder
from glsd.experiments import load_config
from glsd.runs.checkpoints import save_checkpoint
from glsd.runs.directory import RunDirectory
from ray_jobs.evaluation.store import Store
from ray_jobs.sweeps.grids import load_space


def test_mutated_files_are_read_or_refused_and_whole_ones_are_read() -> None:
    found = fuzz(2000)
    assert {one.outcome for one in found} == {"read", "refused"}, table(found)
    assert {one.outcome for one in found if one.number == 0} == {"read"}, table(found)


class Harm:
    """An object whose unpickling makes a file."""

    def __init__(self, harmed: Path) -> None:
        self.harmed = harmed

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.harmed}",)


def test_a_checkpoint_whose_manifest_fits_is_not_run(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(str(tmp_path / "run"), 1, {"teacher": Harm(tmp_path / "harmed")}, {})
    with pytest.raises(ValueError, match=r"state\.pt wants posix\.system, .* was not loaded"):
        load_encoder(checkpoint)
    assert not (tmp_path / "harmed").exists()
    torch.load(f"{checkpoint}/state.pt", weights_only=False)  # the file would do what it is refused for
    assert (tmp_path / "harmed").exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    harmful = f"optim.epochs: !!python/object/apply:os.system ['touch {tmp_path / 'harmed'}']\n"
    (tmp_path / "config.yaml").write_text(harmful)
    (tmp_path / "data.json").write_text("{}")
    for read in (
        lambda: load_config(tmp_path / "config.yaml"),
        lambda: load_space(str(tmp_path / "config.yaml")),
        lambda: RunDirectory(tmp_path).check_config(Config()),
    ):
        with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML: could not determine a constructor"):
            read()
    assert not (tmp_path / "harmed").exists()
    yaml.unsafe_load(harmful)
    assert (tmp_path / "harmed").exists()


def test_representations_in_the_cache_are_not_unpickled(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "values.npy", np.array([Harm(tmp_path / "harmed")], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"values\.npy is broken; run `glsd cache --clear representations`"):
        Store(tmp_path, (1, 4))
    assert not (tmp_path / "harmed").exists()
    np.load(tmp_path / "values.npy", allow_pickle=True)
    assert (tmp_path / "harmed").exists()


def test_a_list_that_tells_of_more_bytes_than_there_are_takes_no_room_for_them(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,offset,length,file_size\nlist.csv,0,{1 << 55},{1 << 55}\n")
    index = build_index(tmp_path / "list.csv", Config().data, tmp_path / "cache")
    with pytest.raises(ValueError, match=rf"has changed since the index was made \(a file of \d+ bytes, not {1 << 55}"):
        index.read(0)
