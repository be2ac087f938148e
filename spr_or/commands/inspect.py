"""`spr-or inspect`: what pruning could remove from a network, before anything is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.own_code import line_of

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from spr_or.pruning.inspection import Inspection


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A function or class that makes it, as module:name: my_module:my_network.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the function: num_classes=10. Give it several times for several.",
        ),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SHAPE",
            help="Shape of an input without the batch, as 3,32,32; with :N behind it for whole "
            "numbers below N, as 128:30522; with a name before it for a keyword, as mask=128:2. "
            "Give it several times for several inputs. Default: guessed from the first layer.",
        ),
    ] = None,
    entities: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What is removed as a whole: filters, neurons, channels, heads, blocks.",
        ),
    ] = "filters,neurons",
    ignored: Annotated[
        list[str] | None,
        typer.Option(
            "--ignored",
            metavar="NAME",
            help="A layer to leave out, or a pattern such as layer4.*. Give it several times.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all numbers there.", callback=outputs.file
        ),
    ] = None,
) -> None:
    """Show what pruning could remove from a network, layer by layer.

    Nothing is trained. For each layer: its entities, and what leaves the network with one of them,
    weights that read it included. Then the layers that are left alone, and why, and the operators
    that keep their full width, with the line of your code.

    Exit status: 0 done, 1 the network cannot be traced, 2 bad usage, a network that cannot be built
    or one that has no such entities, 130 interrupted.
    """
    from spr_or.pruning.compaction.errors import CompactionError
    from spr_or.pruning.inspection import inspect_network

    words = [word.strip() for word in entities.split(",") if word.strip()]
    try:
        model = _build(network, set_ or [])
        example, guessed = _example(model, input_ or [])
    except ValueError as error:
        raise terminal.failed(error, 2) from None
    try:
        found = inspect_network(model, example, words, ignored or [])
    except CompactionError as error:
        raise terminal.failed(error, 1) from None
    except ValueError as error:
        raise terminal.failed(error, 2) from None
    screen = terminal.console()
    _show(screen, network, found, words, _shapes(example), guessed)
    if json_file:
        from spr_or.utils.files import write_json

        write_json(
            json_file,
            {"network": network, "entities": words, "inputs": _shapes(example),
             "inputs_guessed": guessed, **asdict(found)},
        )  # fmt: skip
        terminal.say(screen, f"numbers: {json_file}")


def _build(path: str, settings: Sequence[str]) -> nn.Module:
    """The network in evaluation mode."""
    from torch import nn

    from spr_or.utils.import_path import load_object

    arguments = dict(_setting(text) for text in settings)
    try:
        made = load_object(path)
        if not isinstance(made, nn.Module):
            made = made(**arguments)
    except Exception as error:  # the user's own code may raise anything
        place = line_of(error)
        raise ValueError(
            f"{path}: {type(error).__name__}: {error}{f' ({place})' if place else ''}"
        ) from None
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path} gives a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip().isidentifier():
        raise ValueError(f"--set {text}: not of the form key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _example(model: nn.Module, shapes: Sequence[str]) -> tuple[Any, bool]:
    """Inputs of two samples, and whether they were guessed."""
    if not shapes:
        return _guessed(model), True
    inputs = [_input(text) for text in shapes]
    names = [name for name, _ in inputs]
    if any(names) and not all(names):
        raise ValueError("--input: give a name to every input, or to none")
    if all(names):
        return dict(inputs), False
    tensors = [tensor for _, tensor in inputs]
    return (tensors[0] if len(tensors) == 1 else tuple(tensors)), False


def _input(text: str) -> tuple[str, Any]:
    """(name or "", tensor) of "name=3,32,32" or "128:30522"."""
    import torch

    name, _, rest = text.rpartition("=")
    sizes, colon, below = rest.partition(":")
    try:
        shape = [2, *(int(n) for n in sizes.split(",") if n.strip())]
        bound = int(below) if colon else 1
    except ValueError:
        shape = []
        bound = 1
    if not shape or min(shape) < 1 or bound < 1 or (name and not name.isidentifier()):
        raise ValueError(f"--input {text}: not of the form 3,32,32 or 128:30522 or name=3,32,32")
    generator = torch.Generator().manual_seed(0)
    if colon:
        return name, torch.randint(bound, shape, generator=generator)
    return name, torch.randn(shape, generator=generator)


def _guessed(model: nn.Module) -> Any:
    """The first of the usual inputs that the network takes."""
    import torch

    from spr_or.pruning.following_norms import guessed_inputs

    guesses = guessed_inputs(model)
    for guess in guesses:
        try:
            with torch.no_grad():
                model(guess)
        except Exception:  # a guess of another size; the user's model raises what it likes
            continue
        return guess
    tried = ", ".join(str(tuple(guess.shape)) for guess in guesses) or "none"
    raise ValueError(f"the network takes no usual input (tried: {tried}): give --input")


def _shapes(example: Any) -> dict[str, list[int]]:
    """{name or position: shape}, without the batch."""
    if isinstance(example, dict):
        return {name: list(x.shape[1:]) for name, x in example.items()}
    inputs = example if isinstance(example, tuple) else (example,)
    return {str(i): list(x.shape[1:]) for i, x in enumerate(inputs)}


def _show(
    screen: Console,
    network: str,
    found: Inspection,
    words: Sequence[str],
    shapes: dict[str, list[int]],
    guessed: bool,
) -> None:
    listed = " and ".join("×".join(map(str, shape)) or "one number" for shape in shapes.values())
    title = f"{network} for inputs of {listed}"
    rows: list[tuple[str, ...]] = [
        (layer.label, f"{layer.count} {layer.kind}", str(len(layer.modules)),
         f"{layer.weights:,}", _mean(layer.parameters), _mean(layer.macs))
        for layer in found.layers
    ]  # fmt: skip
    columns: tuple[str, ...] = ("layer", "entities", "crosses", "holds", "parameters", "MACs")
    if all(len(layer.modules) == 1 for layer in found.layers):
        columns = tuple(c for c in columns if c != "crosses")
        rows = [(row[0], row[1], *row[3:]) for row in rows]
    terminal.show(screen, terminal.table(columns, rows, title=title, text=("layer", "entities")))
    if guessed:
        terminal.say(screen, "The input was guessed: MACs depend on it. --input gives another one.")
    crosses = "crosses: modules that one entity has weights in. " if "crosses" in columns else ""
    terminal.say(
        screen,
        f"{crosses}holds: weights of one entity. parameters, MACs: what leaves with one, readers "
        "included, for one sample; the mean over half of the layer's entities, removed together "
        "at random.",
    )
    if found.left_alone:
        _show_left_alone(screen, found)
    _show_obstacles(screen, found)
    terminal.say(
        screen,
        f"in all: {found.parameters:,} parameters, {found.macs:,} MACs. Half of each layer's "
        f"entities, at random, removes {_share(found.half_parameters, found.parameters)} of the "
        f"parameters and {_share(found.half_macs, found.macs)} of the MACs.",
    )


def _show_left_alone(screen: Console, found: Inspection) -> None:
    by_reason: dict[str, list[str]] = {}
    for left in found.left_alone:
        by_reason.setdefault(left.reason, []).append(left.label)
    rows = [(", ".join(labels), reason) for reason, labels in by_reason.items()]
    screen.print()
    terminal.show(
        screen,
        terminal.table(("left alone", "because"), rows, text=("left alone", "because")),
    )


def _show_obstacles(screen: Console, found: Inspection) -> None:
    if not found.obstacles:
        terminal.say(screen, "Every operator runs on what is left.")
        return
    terminal.say(
        screen,
        "At full width, with constants put back where something was removed (the layers in front "
        "shrink, what reads the operator does not):",
    )
    for obstacle in found.obstacles:
        times = f" ({obstacle.times} times)" if obstacle.times > 1 else ""
        behind = f", behind {', '.join(obstacle.layers)}" if obstacle.layers else ""
        where = f" [{_relative(obstacle.where)}]" if obstacle.where else ""
        terminal.say(
            screen, f"  {obstacle.operator}{times}{behind}: {obstacle.reason}{where}", indent="    "
        )


def _relative(where: str) -> str:
    here = f"{Path.cwd()}/"
    return where.removeprefix(here)


def _mean(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _share(left: int, whole: int) -> str:
    return f"{100 * (whole - left) / whole:.1f} %" if whole else "0 %"
