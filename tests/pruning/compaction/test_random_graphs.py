"""Random networks, random masks: the compact network computes what the masked one computes."""

import pytest
from random_graphs import assert_agrees, drawn, results

BATCHES = [range(start, start + 10) for start in range(0, 2000, 10)]


@pytest.mark.parametrize("seeds", BATCHES[:1], ids=str)
def test_masked_and_compact_agree(seeds: range) -> None:
    for seed in seeds:
        assert_agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", BATCHES[1:10], ids=str)
def test_masked_and_compact_agree_on_more(seeds: range) -> None:
    for seed in seeds:
        assert_agrees(seed)


@pytest.mark.long
@pytest.mark.parametrize("seeds", BATCHES[10:], ids=str)
def test_masked_and_compact_agree_on_two_thousand(seeds: range) -> None:
    for seed in seeds:
        assert_agrees(seed)


def test_a_seed_is_a_network() -> None:
    sources = [program.source(results(program)) for program in map(drawn, [*range(50), *range(50)])]
    assert sources[:50] == sources[50:]
    assert len(set(sources)) == 50
