import itertools
from collections import Counter

import pytest

from clipkit.data.order import SampleOrder, stateless_hash


def epoch_of(order, epoch):
    return [tuple(order.place(epoch, position)) for position in range(order.num_samples_per_epoch)]


def make(sizes, weights=None, seed=0, window=10_000):
    return SampleOrder(sizes, weights or [1.0] * len(sizes), seed=seed, window_samples=window)


@pytest.mark.parametrize("window", [1, 7, 32, 10_000])
def test_every_sample_once_per_epoch(window):
    order = make([[5, 0, 17, 3], [20, 20]], window=window)
    expected = {(0, i) for i in range(25)} | {(1, i) for i in range(40)}
    for epoch in range(3):
        places = epoch_of(order, epoch)
        assert len(places) == len(expected) == order.num_samples_per_epoch
        assert set(places) == expected


def test_weights_are_copies_and_a_random_part():
    order = make([[10, 7, 8], [40]], [2.5, 0.25])
    assert order.num_samples_per_epoch == 50 + 12 + 10  # round(0.5 * 25) = 12
    parts = []
    for epoch in range(4):
        counts = Counter(epoch_of(order, epoch))
        assert {counts[0, i] for i in range(25)} == {2, 3}
        assert sum(counts[0, i] == 3 for i in range(25)) == 12
        assert {n for (source, _), n in counts.items() if source == 1} == {1}
        parts.append(frozenset(place for place, n in counts.items() if place[0] == 1))
        assert len(parts[-1]) == 10
    assert len(set(parts)) == 4


def test_a_part_is_spread_over_all_shards():
    order = make([[10] * 10], [0.5])
    assert Counter(index // 10 for _, index in epoch_of(order, 0)) == dict.fromkeys(range(10), 5)


def test_epochs_and_seeds_differ_and_repeat():
    order = make([[50, 50]])
    assert epoch_of(order, 0) != epoch_of(order, 1)
    assert epoch_of(order, 0) != epoch_of(make([[50, 50]], seed=1), 0)
    assert epoch_of(order, 0) == epoch_of(make([[50, 50]]), 0)


def test_any_position_is_found_without_the_ones_before():
    order, other = make([[30] * 9], [1.5], window=37), make([[30] * 9], [1.5], window=37)
    expected = {epoch: epoch_of(order, epoch) for epoch in range(3)}
    for number in range(300):
        epoch, position = number * 7 % 3, number * 101 % order.num_samples_per_epoch
        assert tuple(other.place(epoch, position)) == expected[epoch][position]


def test_one_window_mixes_all_shards_and_small_windows_only_neighbours():
    shuffled = [index for _, index in epoch_of(make([[100] * 10]), 0)]
    assert len({index // 100 for index in shuffled[:100]}) == 10
    assert sum(b == a + 1 for a, b in itertools.pairwise(shuffled)) < 10

    windowed = [index for _, index in epoch_of(make([[100] * 10], window=200), 0)]
    for start in range(0, 1000, 200):
        assert len({index // 100 for index in windowed[start : start + 200]}) == 2
    pairs = [tuple(sorted({index // 100 for index in windowed[s : s + 200]})) for s in range(0, 1000, 200)]
    assert pairs != [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]  # shards are shuffled over the epoch


def test_memory_is_that_of_the_window():
    order = make([[10_000] * 4_000], window=1_000)
    assert order.num_samples_per_epoch == 40_000_000
    assert order.place(3, 39_999_999).sample < 40_000_000
    assert sum(window.size for window in order._windows.values()) <= 2_000


def test_bad_arguments():
    with pytest.raises(ValueError, match="weight"):
        make([[1]], [0.0])
    with pytest.raises(ValueError, match="window"):
        make([[1]], window=0)


def test_stateless_hash():
    assert stateless_hash(1, 2) == stateless_hash(1, 2)
    values = [stateless_hash(seed, position) for seed in range(10) for position in range(1000)]
    assert len(set(values)) == 10_000
    assert min(values) >= 0
    assert max(values) < 2**63
    thirds = Counter(value % 3 for value in values)
    assert all(abs(count - 3333) < 200 for count in thirds.values())
