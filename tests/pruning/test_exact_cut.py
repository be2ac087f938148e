"""The exact cut: its program against enumeration, its widths against compaction, its bounds."""

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from models.densenet import DenseNet
from models.mobilenet import mobilenetv2_small
from models.resnet_cifar import CifarResNet
from models.toy import convnet
from spr_or.pruning import exact_cut_masks, latency
from spr_or.pruning.budget import Limits, choose, layer_limits
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.counts import LayerCall
from spr_or.pruning.exact_cut import OutOfReach, cheapest
from spr_or.pruning.exact_cut_bound import TooEntangled, best_bound, minimum
from spr_or.pruning.exact_cut_exchange import exchanged
from spr_or.pruning.exact_cut_masks import cut_task, exact_masks, widths_decide
from spr_or.pruning.exact_cut_milp import solve_milp
from spr_or.pruning.exact_cut_network import (
    NotByCounts,
    Shape,
    Sizes,
    Width,
    count_program,
    network_sizes,
)
from spr_or.pruning.exact_cut_program import Program
from spr_or.pruning.latency import LatencyCounter, Widths
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.pruner import Pruner
from spr_or.pruning.removed_share import Counter

Array = np.ndarray[Any, Any]


def chain_sizes(inputs: int, widths: list[int], outputs: int) -> Sizes:
    """Linear layers in a row: a weight and a bias each; positions, so multiplications, differ."""
    shapes, uses = {}, {}
    before = Width(inputs, {})
    for layer, _ in enumerate([*widths, outputs]):
        own = Width(0, {layer: 1}) if layer < len(widths) else Width(outputs, {})
        shapes[f"{layer}.weight"] = Shape({0: own, 1: before}, 1)
        shapes[f"{layer}.bias"] = Shape({0: own}, 1)
        uses[f"{layer}.weight"] = float(2**layer)
        before = own
    return Sizes(list(widths), shapes, uses)


def enumerated(inputs: int, prices: list[Array], outputs: int, removed: dict[str, float]) -> float:
    """The lowest price over all sets of entities that leave each layer one; infinite if none fits."""
    widths = [len(p) for p in prices]
    kept = np.array(list(itertools.product([0, 1], repeat=sum(widths))))
    parts = np.split(kept, np.cumsum(widths)[:-1], axis=1)
    numbers = [np.full(len(kept), inputs), *(p.sum(1) for p in parts), np.full(len(kept), outputs)]
    pairs = list(itertools.pairwise(numbers))
    left = {
        "params": sum((a + 1) * b for a, b in pairs),
        "macs": sum(2**layer * a * b for layer, (a, b) in enumerate(pairs)),
    }
    fits = np.all([n >= 1 for n in numbers], axis=0)
    for name, pct in removed.items():
        fits &= 100 * left[name] / left[name][-1] <= 100 - pct + 1e-6
    cost = ((1 - kept) * np.concatenate(prices)).sum(1)
    return float(np.where(fits, cost, np.inf).min())


@pytest.mark.parametrize("block", range(8))
def test_the_cut_agrees_with_enumeration_on_random_chains(block: int) -> None:
    random = np.random.default_rng(block)
    for _ in range(25):
        widths = random.integers(1, 5, random.integers(1, 4)).tolist()
        inputs, outputs = random.integers(1, 6, 2)
        prices = [random.exponential(size=n) ** 2 for n in widths]
        names = [["params"], ["macs"], ["params", "macs"]][random.integers(3)]
        removed = {name: float(random.uniform(5, 90)) for name in names}
        best = enumerated(inputs, prices, outputs, removed)
        counts = [np.arange(1, n + 1) for n in widths]
        program = count_program(chain_sizes(inputs, widths, outputs), counts, prices, removed)
        if np.isinf(best):
            with pytest.raises(OutOfReach):
                cheapest(program)
            continue
        found = cheapest(program, gap=0.0)
        assert program.fits(found.places)
        assert found.price == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert found.bound <= best + 1e-6 * best
        assert found.gap <= 1e-6


def random_program(random: Any, widths: list[int], pct: float) -> Program:
    prices = [random.exponential(size=n) ** 2 for n in widths]
    counts = [np.arange(1, n + 1) for n in widths]
    return count_program(chain_sizes(3, widths, 10), counts, prices, {"params": pct})


def test_another_model_of_highs_before_it_changes_nothing():
    """HiGHS 1.16 refuses another number of threads than that of the model before, in the same thread."""
    import highspy

    random = np.random.default_rng(0)
    before = highspy.Highs()
    before.silent()
    before.setOptionValue("threads", 2)
    x = [before.addBinary() for _ in range(12)]
    before.maximize(sum(float(a) * v for a, v in zip(random.uniform(1, 2, 12), x, strict=True)))
    sizes, prices = chain_sizes(3, [4, 4], 2), [random.exponential(size=4) ** 2 for _ in range(2)]
    program = count_program(sizes, [np.arange(1, 5)] * 2, prices, {"params": 40.0})
    start = cheapest(program).places
    held = [np.zeros(4)] * 2  # knows nothing, so HiGHS has to prove it
    answer = solve_milp(program, held, start, 10.0, 0.0)
    assert answer.bound == pytest.approx(program.price(start), rel=1e-6)


def test_the_mixed_integer_program_closes_what_the_lagrangian_leaves_open() -> None:
    random = np.random.default_rng(0)
    closed = 0
    for _ in range(10):
        program = random_program(random, [6, 8, 5, 7], 60.0)
        bound = best_bound(program)
        fewest = [0] * 4
        answer = solve_milp(program, bound.held, fewest, seconds=20.0, gap=0.0)
        assert answer.places is not None and program.fits(answer.places)
        assert answer.bound == pytest.approx(program.price(answer.places), rel=1e-6)
        closed += answer.bound > bound.value * (1 + 1e-6)
        # Whatever is held, its bound is below what that costs.
        for layer, held in enumerate(bound.held):
            assert held[answer.places[layer]] <= program.price(answer.places) + 1e-9
    assert closed >= 5


def test_exchanges_lower_the_price_and_fit() -> None:
    random = np.random.default_rng(1)
    for pct in (20.0, 50.0, 80.0):
        program = random_program(random, [20, 30, 25], pct)
        better = exchanged(program, [0, 0, 0])
        assert program.fits(better) and program.price(better) < program.price([0, 0, 0])
        assert best_bound(program).value <= program.price(better)
        assert exchanged(program, better) == better


def test_a_time_limit_leaves_a_choice_that_fits_and_an_honest_bound() -> None:
    program = random_program(np.random.default_rng(2), [40, 50, 60, 30], 55.0)
    stopped, solved = cheapest(program, seconds=0.0), cheapest(program, gap=0.0)
    assert program.fits(stopped.places)
    assert stopped.bound <= solved.price <= stopped.price
    assert stopped.gap >= 0


@pytest.mark.parametrize("edges", [[(0, 1), (1, 2)], [(0, 1), (1, 2), (0, 2)], [(0, 1), (2, 3)]])
def test_elimination_finds_the_minimum_and_those_with_one_position_held(
    edges: list[tuple[int, int]],
) -> None:
    random = np.random.default_rng(3)
    sizes = [2, 3, 4, 2][: 1 + max(max(e) for e in edges)]
    tables: list[Any] = [((i,), random.normal(size=n)) for i, n in enumerate(sizes)]
    tables += [((a, b), random.normal(size=(sizes[a], sizes[b]))) for a, b in edges]

    def total(places: tuple[int, ...]) -> float:
        return float(sum(t[tuple(places[i] for i in v)] for v, t in tables))

    every = {p: total(p) for p in itertools.product(*(range(n) for n in sizes))}
    found = minimum(tables, sizes)
    assert found.value == pytest.approx(min(every.values()))
    assert total(tuple(found.places)) == pytest.approx(found.value)
    for layer, size in enumerate(sizes):
        least = [min(v for p, v in every.items() if p[layer] == k) for k in range(size)]
        assert found.held[layer].tolist() == pytest.approx(least)


def test_tables_that_would_not_fit_are_refused() -> None:
    sizes = [400] * 4
    tables: list[Any] = [
        (pair, np.zeros((400, 400))) for pair in itertools.combinations(range(4), 2)
    ]
    with pytest.raises(TooEntangled, match="4 layers depend on each other.*round_to"):
        minimum(tables, sizes)


# --- widths of networks ---------------------------------------------------------------------

SLOW = ("depthwise, channels", "concatenation, channels")
NETWORKS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "chain, filters": (convnet, (1, 8, 8), "filters"),
    "chain, two kinds": (convnet, (1, 8, 8), ["filters", "neurons"]),
    "residual, channels": (lambda: CifarResNet((1, 1, 1), 10, 1), (1, 8, 8), "channels"),
    "depthwise, channels": (mobilenetv2_small, (1, 8, 8), "channels"),
    "concatenation, channels": (lambda: DenseNet((2, 2), 4, 10, 1), (1, 8, 8), "channels"),
}


@functools.cache
def prepared(name: str) -> tuple[nn.Module, torch.Tensor, Any]:
    make, shape, entities = NETWORKS[name]
    torch.manual_seed(0)
    model, example = make(), torch.zeros(2, *shape)
    return model, example, chosen_entities(model, example, entities).of(model)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS],
)
def test_widths_count_what_compaction_leaves(name: str) -> None:
    model, example, layers = prepared(name)
    sizes = network_sizes(model, example, layers)
    counters = {of: Counter(model, example, of=of) for of in ("params", "macs")}  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        masks = {}
        for layer in layers:
            keep = torch.rand(layer.count, generator=generator) < 0.5
            keep[0] = True
            masks[layer.name] = keep
        kept = [int(masks[layer.name].sum()) for layer in layers]
        for of, counter in counters.items():
            removed = 100 - 100 * sizes.left(of, kept) / sizes.left(of, sizes.sizes)
            assert removed == pytest.approx(counter(module_masks(model, layers, masks)), abs=1e-9)


class CalledTwice(nn.Module):
    """Its second layer reads the first one and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.last(self.second(x).relu())


class Attention(nn.Module):
    """Two heads, whose queries, keys and values come from one layer: the wider of both decides."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.all(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (CalledTwice(), torch.zeros(2, 3, 6, 6)),
        (Attention(), torch.zeros(2, 5, 8)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3)),
         torch.zeros(2, 3, 6, 6)),
    ],
    ids=["called twice", "attention", "group norm"],
)  # fmt: skip
def test_networks_that_widths_do_not_describe_are_refused(
    model: nn.Module, example: torch.Tensor
) -> None:
    layers = chosen_entities(model, example, "channels").of(model)
    limits = {layer.name: Limits() for layer in layers}
    assert not widths_decide(model, example, layers)
    with pytest.raises(NotByCounts, match='compaction leaves .* Use cut = "rank"'):
        cut_task(model, example, layers, limits, {"params": 40.0})


def test_a_weight_that_is_computed_is_refused() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    example = torch.zeros(2, 4)
    layers = chosen_entities(model, example, "neurons").of(model)
    with pytest.raises(NotByCounts, match="'0' computes its weight from parameters"):
        network_sizes(model, example, layers)


def test_a_cut_that_misses_its_budget_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were such a network let through, what compaction counts is told, not what widths promise."""
    monkeypatch.setattr(exact_cut_masks, "_PAIRS", 0)
    torch.manual_seed(0)
    model, example = CalledTwice(), torch.zeros(2, 3, 6, 6)
    pruner = Pruner(
        model, example, {"params": 0.4, "macs": 0.4}, 1, cut="exact", entities="channels"
    )
    with pytest.warns(UserWarning, match=r"the exact cut misses 40 % of the parameters \("):
        pruner.cut()
    assert pruner.choice is not None
    told = pruner.choice.exact.removed_pct
    small = sum(p.numel() for p in pruner.compact().parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert told["params"] == pytest.approx(100 * (1 - small / whole)) and told["params"] < 39.9
    assert any("misses 40 %" in note for note in pruner.report()["notes"])


def test_what_comes_back_does_not_take_an_exact_cut_below_its_budget() -> None:
    """Everything became zero, and by rank the nearest share to 37 % is below it."""
    shares = {}
    for cut in ("rank", "exact"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        pruner = Pruner(model, torch.zeros(2, 4), {"params": 0.37}, 1, cut=cut, entities="neurons")
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.zero_()
        shares[cut] = pruner.cut().removed_pct
    assert shares["rank"] < 36.9 <= shares["exact"]


def test_filters_that_write_one_stream_are_refused_with_the_way_out() -> None:
    model, example = CifarResNet((1, 1, 1), 10, 1), torch.zeros(2, 1, 8, 8)
    layers = chosen_entities(model, example, "filters").of(model)
    with pytest.raises(NotByCounts, match='write one feature together: use entities = "channels"'):
        network_sizes(model, example, layers)


@pytest.mark.parametrize("of", ["params", "macs"])
def test_the_exact_cut_meets_the_budget_and_costs_no_more_than_the_cut_by_rank(of: str) -> None:
    model, example, layers = prepared("residual, channels")
    limits = layer_limits({layer.name: layer.count for layer in layers}, min_keep=2)
    generator = torch.Generator().manual_seed(1)
    prices = {n.name: torch.rand(n.count, generator=generator).double() for n in layers}
    gone = {n.name: torch.ones(n.count, dtype=torch.bool) for n in layers}
    counter = Counter(model, example, of=of)  # type: ignore[arg-type]
    rank = choose(
        lambda masks: counter(module_masks(model, layers, masks)), gone, prices, prices, 60, limits
    )
    task = cut_task(model, example, layers, limits, {of: 60.0})
    cut = exact_masks(task, prices, gone, prices, rank)
    removed = counter(module_masks(model, layers, cut.masks))
    assert removed == pytest.approx(cut.removed_pct[of]) and removed >= 59.9
    assert all(int(keep.sum()) >= 2 for keep in cut.masks.values())
    assert cut.choice.gap <= 1e-4
    went = sum(float(prices[n][~keep].sum()) for n, keep in cut.masks.items())
    assert went == pytest.approx(cut.choice.price)
    assert cut.rank_price is not None and cut.choice.price <= cut.rank_price


def test_several_budgets_and_multiples_are_met_at_once() -> None:
    model, example, layers = prepared("residual, channels")
    sizes = {layer.name: layer.count for layer in layers}
    limits = layer_limits(sizes, round_to=4)
    budgets = {"params": 50.0, "macs": 70.0}
    task = cut_task(model, example, layers, limits, budgets)
    prices = {n: torch.arange(1.0, count + 1) for n, count in sizes.items()}
    gone = {n: torch.ones(count, dtype=torch.bool) for n, count in sizes.items()}
    cut = exact_masks(task, prices, gone, prices)
    by_module = module_masks(model, layers, cut.masks)
    for of, pct in budgets.items():
        assert Counter(model, example, of=of)(by_module) >= pct - 0.1  # type: ignore[arg-type]
    assert all(int(keep.sum()) % 4 == 0 for keep in cut.masks.values())
    for keep in cut.masks.values():  # the cheapest go
        assert keep.tolist() == sorted(keep.tolist())


def test_what_is_zero_already_goes_first_and_may_empty_a_layer() -> None:
    model, example, layers = prepared("chain, two kinds")
    limits = layer_limits({layer.name: layer.count for layer in layers}, min_keep=0)
    task = cut_task(model, example, layers, limits, {"params": 60.0})
    prices = {n.name: torch.ones(n.count) for n in layers}
    gone = {n.name: torch.ones(n.count, dtype=torch.bool) for n in layers}
    gone["4"][12:] = False
    prices["4"][12:] = 0.0
    cut = exact_masks(task, prices, gone, prices)
    assert not cut.masks["4"][12:].any() and cut.choice.price > 0
    gone["9"][:], prices["9"] = False, torch.zeros(32)
    emptied = exact_masks(task, prices, gone, prices)
    assert emptied.choice.price < cut.choice.price


def test_a_budget_out_of_reach_is_told_with_what_can_be_reached() -> None:
    model, example, layers = prepared("chain, filters")
    limits = {layer.name: Limits(least=layer.count // 2) for layer in layers}
    with pytest.raises(
        OutOfReach, match=r"90 % of params cannot be removed: .* 52\.9 % of params go"
    ):
        cut_task(model, example, layers, limits, {"params": 90.1})


def test_a_budget_of_time_follows_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def measured(call: LayerCall, widths: list[Widths], device: torch.device) -> list[float]:
        return [1e-6 * (10 + w.inputs * w.outputs + 3 * w.outputs) for w in widths]

    monkeypatch.setattr(latency, "measured", measured)
    monkeypatch.setenv("SPR_OR_CACHE", str(tmp_path))
    model, example, layers = prepared("chain, two kinds")
    limits = {layer.name: Limits() for layer in layers}
    task = cut_task(model, example, layers, limits, {"latency": 50.0})
    prices = {n.name: torch.rand(n.count, dtype=torch.float64) for n in layers}
    gone = {n.name: torch.ones(n.count, dtype=torch.bool) for n in layers}
    cut = exact_masks(task, prices, gone, prices)
    counter = LatencyCounter(model, example)
    removed = counter(module_masks(model, layers, cut.masks))
    assert removed == pytest.approx(cut.removed_pct["latency"]) and removed >= 49.9
