"""Docstrings as Markdown: formulas, lists of parameters and examples."""

import re

import griffe

_MATH = re.compile(r"^( *)\.\. math::[ \t]*(.*(?:\n(?:\1[ ]+\S.*|[ \t]*(?=\n\1[ ]+\S)))*)", re.M)
_INLINE_MATH = re.compile(r":math:`([^`]*)`")
_SECTION = re.compile(r"^(?P<title>[A-Z].*)\n-{3,}\n(?P<body>(?:\S.*\n?|[ ]+\S.*\n?)*)", re.M)
_EXAMPLE = re.compile(r"^>>> .*\n?(?:^(?!\s*$).*\n?)*", re.M)


def markdown(text: str) -> str:
    """The Markdown of a docstring.

    >>> print(markdown("Sum.\\n\\nParameters\\n----------\\na : a number"))
    Sum.
    <BLANKLINE>
    **Parameters**
    <BLANKLINE>
    - `a`: a number
    """
    text = _MATH.sub(lambda m: f"\n\n$${_aligned(' '.join(m[2].split()))}$$\n\n", text)
    text = _INLINE_MATH.sub(r"$\1$", text)
    text = _SECTION.sub(_listed, text)
    return _EXAMPLE.sub(lambda m: f"\n```pycon\n{m[0].rstrip()}\n```\n", text)


def _aligned(formula: str) -> str:
    """Sphinx aligns a formula at & without being told; here it is told."""
    if "&" not in formula or r"\begin" in formula:
        return formula
    return rf"\begin{{align*}} {formula} \end{{align*}}"


def _listed(section: re.Match[str]) -> str:
    lines = [f"**{section['title']}**", ""]
    for line in section["body"].splitlines():
        name, colon, meaning = line.partition(" : ")
        if line.startswith(" "):
            lines.append(f"    {line.strip()}")
        elif colon:
            names = ", ".join(f"`{part.strip()}`" for part in name.split(","))
            lines.append(f"- {names}: {meaning}")
        else:
            lines.append(f"- {line}")
    return "\n".join(lines) + "\n"


class Markdown(griffe.Extension):
    """Rewrites every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Called for modules, classes, functions and attributes."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
