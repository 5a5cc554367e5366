import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glsd.models.backbone import build_backbone
from glsd.models.drop_path import drop_path_keys, keep_scales

INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def keys_of(seed: int = 0, step: int = 0, num_images: int = 20_000, num_views: int = 1) -> Tensor:
    return drop_path_keys(seed, step, torch.arange(num_images), num_views)


@settings(deadline=None, max_examples=50)
@given(
    seed=INT64, step=st.integers(0, 2**40), images=st.lists(INT64, min_size=1, max_size=4), num_views=st.integers(1, 4)
)
def test_keys_fold_seed_step_image_and_view_with_splitmix64(
    seed: int, step: int, images: list[int], num_views: int
) -> None:
    keys = drop_path_keys(seed, step, torch.tensor(images), num_views)
    for row, image in zip(keys.tolist(), images, strict=True):
        for view, key in enumerate(row):
            folded = splitmix64(seed % 2**64)
            for part in (step, image, view):
                folded = splitmix64(folded ^ (part % 2**64))
            assert key % 2**64 == folded


def test_masks_follow_the_hash_of_key_and_layer() -> None:
    keys = keys_of(num_images=50)[:, 0]
    rates = torch.tensor([0.1, 0.5, 0.9])
    scales = keep_scales(keys, rates)
    for layer, rate in enumerate(rates.tolist()):
        for row, key in enumerate(keys.tolist()):
            uniform = (splitmix64((key % 2**64) ^ splitmix64(layer)) >> 40) / 2**24
            assert scales[layer, row].item() == pytest.approx(1 / (1 - rate) if uniform >= rate else 0, rel=1e-6)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_masks_drop_at_their_rate_and_keep_the_expected_value(rate: float) -> None:
    num = 20_000
    scales = keep_scales(keys_of(num_images=num)[:, 0], torch.full((4,), rate))
    deviation = (rate * (1 - rate) / num) ** 0.5
    for layer in scales:
        assert abs((layer == 0).double().mean().item() - rate) < 4 * deviation
        assert abs(layer.double().mean().item() - 1) < 4 * deviation / (1 - rate)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(keys_of(num_views=2)[:, 0], keys_of(num_views=2)[:, 1], id="view"),
        pytest.param(keys_of(step=0)[:, 0], keys_of(step=1)[:, 0], id="step"),
        pytest.param(keys_of(seed=0)[:, 0], keys_of(seed=1)[:, 0], id="seed"),
        pytest.param(keys_of()[:, 0], keys_of()[:, 0].roll(1), id="image"),
    ],
)
def test_masks_of_other_views_steps_seeds_and_images_are_independent(first: Tensor, second: Tensor) -> None:
    rates = torch.tensor([0.5])
    both = keep_scales(first, rates).bool() & keep_scales(second, rates).bool()
    assert abs(both.double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / len(first)) ** 0.5


def test_masks_of_layers_are_independent() -> None:
    kept = keep_scales(keys_of()[:, 0], torch.full((6,), 0.5)).bool().double()
    correlation = torch.corrcoef(kept) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 5 / kept.shape[1] ** 0.5


def test_rates_rise_linearly_with_depth() -> None:
    swin = build_backbone("swin_tiny_patch4_window7_224", 0.2).model
    rates = [
        block.drop_path1.rate for stage in swin.layers for block in stage.blocks[:] if hasattr(block.drop_path1, "rate")
    ]
    assert rates == pytest.approx([0.2 * block / 11 for block in range(1, 12)])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_row_is_dropped_alike_alone_and_in_any_batch(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, 0.5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        x = torch.randn(6, 3, 64, 64)
        keys = drop_path_keys(0, 3, torch.arange(6), 1)[:, 0]
        z_bar, z = backbone(x, keys)
        whole = backbone(x)[0]
        for order in ([4], [5, 4, 0], [0, 1, 2, 3, 4, 5]):
            torch.testing.assert_close(backbone(x[order], keys[order]), (z_bar[order], z[order]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(z_bar, whole, rtol=1e-2)
        torch.testing.assert_close(backbone(x)[0], whole)  # nothing stays behind


def test_no_random_numbers_are_drawn() -> None:
    backbone = build_backbone("test_vit", 0.5).train()
    before = torch.get_rng_state()
    backbone(torch.zeros(2, 3, 32, 32), drop_path_keys(0, 0, torch.arange(2), 1)[:, 0])
    assert torch.equal(torch.get_rng_state(), before)
