"""Random networks from a table of operations, with random masks: masked and compact must agree.

A seed is a network, its masks and its inputs. `assert_agrees(seed)` prints the network's source
when they do not.
"""

import copy
import random
from math import prod
from typing import Any

import torch
from first_attempt import compact_at_once
from graph_operators import OPERATORS, project
from graph_program import Program, Unfit, Value, network
from masked_definition import Masks, call, difference, is_head, maskable, masked_by_hooks, randomise
from network_cases import Example
from torch import nn

from spr_or.pruning.masks import apply_masks_

SHAPES = [(3, 6, 6), (3, 6, 6), (2, 5, 4), (4, 6), (6,)]
TOLERANCE = 1e-9


def drawn(seed: int) -> Program:
    """A program of 4 to 14 operations, and what it returns as its last lines."""
    draw = random.Random(seed)
    program = Program(draw)
    for _ in range(draw.choice((1, 1, 1, 2))):
        program.inputs.append(Value(program.fresh("x"), draw.choice(SHAPES)))
    program.values += program.inputs
    for value in program.inputs:
        if program.chance(0.8):
            project(program, value, draw.choice((3, 4, 6, 8)))
    wanted = draw.randrange(5, 16)
    while len(program.body) < wanted:
        attempt = copy.deepcopy(program, {id(draw): draw})  # one source of chance for all attempts
        try:
            draw.choice(OPERATORS)(attempt)
        except Unfit:
            continue
        program = attempt
    return program


def results(program: Program) -> list[str]:
    """Names of the outputs: a layer on all that nothing else reads, perhaps some of that as it is."""
    ends = [value for value in program.values if not value.read] or program.values[-1:]
    outputs = [value.name for value in ends if program.chance(0.2)]
    flat = ", ".join(f"{value.name}.flatten(1)" for value in ends)
    count = sum(prod(value.shape) for value in ends)
    head = program.member("head", f"nn.Linear({count}, 3)")
    program.body.append(f"result = {head}(torch.cat([{flat}], 1))")
    return ["result", *outputs]


def draw_masks(model: nn.Module, draw: random.Random) -> Masks:
    """Some layers lose nothing, some a part, some everything; the last one, an output, seldom."""
    masks = {}
    for name, size in maskable(model).items():
        share = draw.choice((0.0, 0.3, 0.5, 0.5, 0.8, 1.0))
        if share and (not is_head(name) or draw.random() < 0.1):
            masks[name] = torch.tensor([draw.random() >= share for _ in range(size)])
    return masks


def zero_columns_(model: nn.Module, draw: random.Random) -> None:
    """Some layers do not read some of their inputs."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and draw.random() < 0.2:
                module.weight[:, draw.randrange(module.weight.shape[1])] = 0


def inputs_for(program: Program, batch: int) -> Example:
    tensors = tuple(torch.randn(batch, *v.shape, dtype=torch.float64) for v in program.inputs)
    return tensors if len(tensors) > 1 else tensors[0]


def assert_agrees(seed: int) -> None:
    """Raise AssertionError, with the source, unless masked and compact agree for the seed."""
    program = drawn(seed)
    source = program.source(results(program))
    torch.manual_seed(seed)
    model = randomise(network(source, f"<graph {seed}>")).double().eval()
    draw = random.Random(seed + 1)
    zero_columns_(model, draw)
    masks = draw_masks(model, draw)
    try:
        compare(program, model, masks)
    except Exception as error:
        kept = {name: keep.int().tolist() for name, keep in masks.items()}
        raise AssertionError(f"seed {seed}: {error}\nmasks {kept}\n{source}") from error


def compare(program: Program, model: nn.Module, masks: Masks) -> None:
    example, inputs = inputs_for(program, 2), inputs_for(program, 3)
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks, example)
    with torch.no_grad():
        found: Any = call(compact_at_once(model, masks, example), inputs)
        worst = difference(call(masked, inputs), found)
    assert worst <= TOLERANCE, f"differs from the network behind apply_masks_ by {worst:.3g}"
    if not program.unclear:
        worst = difference(masked_by_hooks(copy.deepcopy(model), masks, inputs), found)
        assert worst <= TOLERANCE, f"differs from the network with hooks by {worst:.3g}"
