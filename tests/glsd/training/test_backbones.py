"""Every family of backbones trains, resumes and leaves for timm, with one instance for all crop sizes."""

import io

import pytest
import torch

from glsd.encoder.encoder import Encoder
from glsd.training.batch import to_device
from glsd.training.schedules import schedule
from glsd.training.state import initial_state
from glsd.training.step import train_step
from glsd.weights.timm import export_backbone
from tests.glsd.training.small import small_config, units

CPU = torch.device("cpu")
PAPER = ["swin_tiny_patch4_window7_224", "swin_tiny_patch4_window14_224", "swin_small_patch4_window7_224"]
OTHERS = ["vit_small_patch16_224", "resnet50", "convnext_tiny", "resnet10t"]
SMALL = ["lcnet_050", "test_vit", "test_convnext", "test_mambaout"]
LARGE = [pytest.param(backbone, marks=pytest.mark.slow) for backbone in (*PAPER, *OTHERS)]


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("backbone", [*LARGE, *SMALL])
def test_a_backbone_trains_resumes_exactly_and_exports(backbone, tmp_path):
    drop_path = 0.0 if backbone == "lcnet_050" else 0.1  # it has no paths to drop
    config = small_config(
        backbone=backbone,
        **{"model.drop_path": drop_path, "data.unit_size": 2, "optim.batch_size": 2, "optim.base_lr": 1e-3},
    )
    batches = [to_device(unit, config.augment, CPU) for unit, _ in zip(units(config), range(2), strict=False)]

    state = initial_state(config, CPU)
    trained = [parameter for parameter in state.student.backbone.parameters() if parameter.requires_grad]
    start = [parameter.clone() for parameter in trained]
    saved = io.BytesIO()
    for batch in batches:
        saved.seek(0)
        torch.save(state.state_dict(), saved)  # the second time, the state after the first step
        assert train_step(state, [batch], schedule(state.step, config, 6), config).applied
    assert not any(torch.equal(old, new) for old, new in zip(start, trained, strict=True))

    saved.seek(0)
    resumed = initial_state(config, CPU)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    train_step(resumed, batches[1:], schedule(resumed.step, config, 6), config)
    for one, other in ((resumed.student, state.student), (resumed.teacher, state.teacher)):
        expected = other.state_dict()
        for name, value in one.state_dict().items():
            assert torch.equal(value, expected[name]), name

    report = export_backbone(Encoder(state.teacher.backbone, config), tmp_path / "backbone")
    at_224 = report.differences[224]
    assert at_224.largest <= 1e-3 * at_224.largest_entry
