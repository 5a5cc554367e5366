import hashlib
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.data.order import Order, permutation


@st.composite
def orders(draw: st.DrawFn) -> Order:
    unit_size = draw(st.integers(1, 8))
    batch_size = unit_size * draw(st.integers(1, 6))
    return Order(draw(st.integers(-(2**40), 2**40)), draw(st.integers(batch_size, 400)), batch_size, unit_size)


@settings(deadline=None)
@given(key=st.text(max_size=20), size=st.integers(1, 3000))
def test_a_permutation_is_a_bijection(key: str, size: int) -> None:
    assert sorted(permutation(key, size, np.arange(size)).tolist()) == list(range(size))


@settings(deadline=None)
@given(key=st.text(max_size=20), size=st.integers(1, 10**12), data=st.data())
def test_a_permutation_is_the_same_wherever_it_is_evaluated(key: str, size: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    images = permutation(key, size, positions)
    assert images.tolist() == [int(permutation(key, size, positions[[row]])[0]) for row in range(len(positions))]
    assert ((images >= 0) & (images < size)).all()


def feistel_in_plain_integers(values: int, bits: int, keys: list[int]) -> int:
    mask = 2**64 - 1
    left_bits, right_bits = bits // 2, bits - bits // 2
    for key in keys:
        left, right = values // 2**right_bits, values % 2**right_bits
        mixed = (right + key) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        mixed ^= mixed >> 31
        values = right * 2**left_bits + (left ^ (mixed % 2**left_bits))
        left_bits, right_bits = right_bits, left_bits
    return values


@pytest.mark.parametrize("size", [2, 3, 10, 100, 129, 1000])
def test_the_permutation_is_the_cycle_walk_of_a_feistel_network(size: int) -> None:
    digest = hashlib.blake2b(b"key", digest_size=64).digest()
    keys = [int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(8)]
    bits = max(2, (size - 1).bit_length())
    for position in range(size):
        image = feistel_in_plain_integers(position, bits, keys)
        while image >= size:
            image = feistel_in_plain_integers(image, bits, keys)
        assert permutation("key", size, np.array([position])).tolist() == [image]


def test_the_order_does_not_change_between_versions() -> None:
    # Recorded when the order was first written: a run that is resumed with a later version sees the same images.
    assert Order(0, 1000, 8, 4).unit(0)[1].tolist() == [562, 320, 644, 850]
    assert Order(7, 10**9, 8, 4).unit(3)[1].tolist() == [489625260, 850453872, 437436294, 800578306]


@settings(deadline=None, max_examples=50)
@given(order=orders(), epoch=st.integers(0, 1000))
def test_an_epoch_holds_every_image_at_most_once(order: Order, epoch: int) -> None:
    units = [order.unit(epoch * order.units_per_epoch + unit) for unit in range(order.units_per_epoch)]
    assert {unit_epoch for unit_epoch, _ in units} == {epoch}
    images = np.concatenate([images for _, images in units])
    assert len(set(images.tolist())) == len(images) == order.num_images // order.batch_size * order.batch_size
    assert all(len(images) == order.unit_size for _, images in units)


def test_epochs_and_seeds_differ() -> None:
    everything = np.arange(1000)
    seen = {tuple(Order(seed, 1000, 10, 5).images(epoch, everything)) for seed in range(5) for epoch in range(5)}
    assert len(seen) == 25


def test_images_left_out_differ_from_epoch_to_epoch() -> None:
    order = Order(0, 20, 16, 4)
    left_out = [set(range(20)) - set(order.images(epoch, np.arange(16)).tolist()) for epoch in range(60)]
    assert set.union(*left_out) == set(range(20))


@pytest.mark.parametrize("size", [2, 5, 12])
def test_every_image_comes_equally_often_at_every_position(size: int) -> None:
    epochs = 1000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        images = permutation(f"epoch {epoch}", size, np.arange(size))
        counts[np.arange(size), images] += 1
    expected = epochs / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations; the keys are fixed


def test_neighbours_in_one_epoch_are_not_neighbours_in_the_next() -> None:
    order = Order(0, 2000, 10, 5)
    pairs = []
    for epoch in range(2):
        images = order.images(epoch, np.arange(2000)).tolist()
        pairs.append({frozenset(pair) for pair in itertools.pairwise(images)})
    assert len(pairs[0] & pairs[1]) < 12  # 2 are expected


def test_a_hundred_million_images_cost_no_memory() -> None:
    epoch, images = Order(0, 100_000_000, 512, 32).unit(10**9)
    assert epoch == 10**9 // (100_000_000 // 512 * 16)
    assert len(set(images.tolist())) == 32


@settings(deadline=None, max_examples=50)
@given(num_images=st.integers(2, 60), epoch=st.integers(0, 10), data=st.data())
def test_replacements_run_through_all_other_images(num_images: int, epoch: int, data: st.DataObject) -> None:
    image = data.draw(st.integers(0, num_images - 1))
    order = Order(3, num_images, 1, 1)
    tried = [order.replacement(epoch, image, attempt) for attempt in range(num_images - 1)]
    assert sorted([*tried, image]) == list(range(num_images))
    assert tried == [order.replacement(epoch, image, attempt) for attempt in range(num_images - 1)]
    with pytest.raises(ValueError, match=f"none of the {num_images} images"):
        order.replacement(epoch, image, num_images - 1)


def test_replacements_differ_between_seeds_epochs_and_images() -> None:
    assert len({Order(seed, 10_000, 8, 4).replacement(0, 5, 0) for seed in range(10)}) == 10
    assert len({Order(0, 10_000, 8, 4).replacement(epoch, 5, 0) for epoch in range(10)}) == 10
    assert len({Order(0, 10_000, 8, 4).replacement(0, image, 0) for image in range(10)}) == 10


def test_fewer_images_than_a_batch_are_refused_with_a_batch_that_fits() -> None:
    with pytest.raises(ValueError, match=r"100 images do not fill a batch of 512; use optim.batch_size 96$"):
        Order(0, 100, 512, 32)
    with pytest.raises(ValueError, match=r"use optim.batch_size 20 with data.unit_size 20$"):
        Order(0, 20, 64, 32)


def test_units_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unit_size 32 does not divide optim.batch_size 100"):
        Order(0, 1000, 100, 32)


def test_images_left_out_are_named_with_a_better_batch() -> None:
    assert Order(0, 1000, 100, 10).left_out_warning() is None
    assert Order(0, 1100, 1000, 10).left_out_warning() is None  # 9.1 %
    message = Order(0, 1000, 512, 32).left_out_warning()
    assert message is not None
    assert "leaves 488 of 1000 images (49%) out" in message
    assert "optim.batch_size 480 leaves out 40" in message
    # 45 images and units of 32: only smaller units help.
    message = Order(0, 45, 32, 32).left_out_warning()
    assert message is not None
    assert "optim.batch_size 22 with data.unit_size 22 leaves out 1" in message


@settings(deadline=None)
@given(order=orders())
def test_the_better_batch_leaves_out_a_tenth_or_less(order: Order) -> None:
    message = order.left_out_warning()
    share = order.num_images % order.batch_size / order.num_images
    assert (message is not None) == (share > 0.1)
    if message is not None:
        words = message.split("optim.batch_size ")[1].split()
        batch_size = int(words[0])
        unit_size = int(words[words.index("data.unit_size") + 1]) if "data.unit_size" in words else order.unit_size
        assert Order(0, order.num_images, batch_size, unit_size).left_out_warning() is None


def test_an_order_can_be_sent_to_a_worker() -> None:
    order = Order(1, 100, 10, 5)
    assert pickle.loads(pickle.dumps(order)).unit(7)[1].tolist() == order.unit(7)[1].tolist()
