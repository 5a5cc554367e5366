from pathlib import Path

import pytest

from glsd.reporting.figures.canvas import save_figure
from glsd.reporting.figures.image_preview import preview
from glsd.reporting.figures.matchings import geometric_pair
from tests.glsd.reporting.figures.drawn import CONFIG, lines, photo, views


def test_a_preview_is_a_function_of_seed_epoch_and_image(tmp_path: Path) -> None:
    def content(**key: int) -> bytes:
        save_figure(preview(photo(), CONFIG, **key), tmp_path / "preview.png")
        return (tmp_path / "preview.png").read_bytes()

    first = content(seed=0, epoch=0, image_id=0)
    assert content(seed=0, epoch=0, image_id=0) == first
    assert first not in (content(seed=1), content(epoch=1), content(image_id=1))


@pytest.mark.parametrize(("backbone", "global_side", "local_side"), [("test_resnet", 3, 2), ("test_vit", 6, 3)])
def test_a_preview_shows_the_matchings_that_training_makes(backbone: str, global_side: int, local_side: int) -> None:
    config = CONFIG.with_overrides({"model.backbone": backbone})
    *_, global_global, global_local = preview(photo(), config, seed=3).axes
    w, teacher = views(3), (global_side, global_side)
    grids = [teacher] + 4 * [(local_side, local_side)]
    pairs = [geometric_pair(w, 0, view, teacher, grid) for view, grid in enumerate(grids, start=1)]
    assert len(lines(global_global)) == pairs[0].keep.sum()
    assert len(lines(global_local)) == max(pair.keep.sum() for pair in pairs[1:])


def test_a_preview_without_local_crops_shows_the_global_pair() -> None:
    config = CONFIG.with_overrides({"augment.local_sizes": (), "augment.num_local_crops": ()})
    figure = preview(photo(), config)
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 2]
