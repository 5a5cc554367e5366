"""What the pretrain job says before it starts."""

from glsd.config import Config
from ray_jobs.pretraining import batch_norm_note


def test_batch_norm_that_no_one_synchronises_is_told_of() -> None:
    resnet, convnext = (
        Config().with_overrides({"model.backbone": name, "model.drop_path": 0.0})
        for name in ("test_resnet", "test_convnext")
    )
    assert "each of the 2 workers normalises by its own units of 32 images" in (
        batch_norm_note(resnet, 2, gpu=False) or ""
    )
    for silent in (
        batch_norm_note(resnet, 1, gpu=False),
        batch_norm_note(resnet, 2, gpu=True),
        batch_norm_note(convnext, 2, gpu=False),
    ):
        assert silent is None
