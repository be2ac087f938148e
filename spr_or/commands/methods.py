"""`spr-or methods`: the pruning methods that a recipe can name."""

from __future__ import annotations

from typing import Annotated

import typer

from spr_or.utils import terminal


def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help='Tell more of one, or of your own "module:name".'),
    ] = None,
) -> None:
    """List the pruning methods, or the keys of one.

    Exit status: 0 done, 2 no such method, 130 interrupted.
    """
    from spr_or.sweeps.compare_file import SPR_FORMS
    from spr_or.training.method import SPR_ITSELF, find_method, shipped_methods
    from spr_or.utils.field_comments import field_comments

    screen = terminal.console()
    if name is None:
        rows = [(SPR_ITSELF, "SPR", "regulariser", "Cacciola, Frangioni, Li, Lodi 2022")]
        for known in shipped_methods():
            method = find_method(known)
            rows.append((known, method.title, method.kind, method.paper))
        columns = ("name", "method", "kind", "paper")
        terminal.show(screen, terminal.table(columns, rows, title="[method] name", text=columns))
        terminal.say(screen, f"A comparison also takes the forms of SPR: {', '.join(SPR_FORMS)}.")
        return
    if name == SPR_ITSELF:
        terminal.say(screen, "SPR: its keys are those of [spr] in a recipe.")
        return
    try:
        method = find_method(name)
    except ValueError as error:
        raise terminal.failed(error, 2) from None
    terminal.say(screen, f"{method.title} ({method.kind}): {method.paper}")
    if method.differs:
        terminal.say(screen, f"Differs from the paper: {method.differs}.")
    meanings = field_comments(method.keys)
    keys = [
        (key, repr(field.get_default()), field.description or meanings.get(key, ""))
        for key, field in method.keys.model_fields.items()
    ]
    if keys:
        heads = ("key", "default", "meaning")
        terminal.show(screen, terminal.table(heads, keys, title="[method]", text=heads))
    else:
        terminal.say(screen, "It has no keys of its own.")
