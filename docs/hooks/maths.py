"""Formulas become MathML when the site is built, so that pages need no script and no network.

`pymdownx.arithmatex` finds the formulas; this hook translates what it marked.
"""

import html
import re

from latex2mathml.converter import convert

_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<formula>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
_TAG = re.compile(r"\\tag\{([^{}]*)\}")
# The converter knows no spacing commands of one character, and leaves out these sizes.
_PLAIN = {r"\bigl": r"\left", r"\bigr": r"\right", r"\Bigl": r"\left", r"\Bigr": r"\right"}


def mathml(formula: str, display: bool) -> str:
    """A LaTeX formula as MathML; the number of a `\\tag` stands to its right.

    Raises what the converter raises for a formula that it does not understand.
    """
    tags = _TAG.findall(formula)
    formula = _TAG.sub("", formula)
    markup = convert(formula, display="block" if display else "inline")
    if "\\" in re.sub(r"<annotation.*?</annotation>", "", markup):
        raise ValueError(f"a command was left untranslated in {formula!r}")
    if not display:
        return markup
    number = f'<span class="equation-number">({html.escape(tags[0])})</span>' if tags else ""
    return f'<div class="equation">{markup}{number}</div>'


def on_page_content(content: str, page, **_) -> str:
    """Replace every marked formula of a page."""

    def replaced(match: re.Match[str]) -> str:
        formula = html.unescape(match["formula"]).strip()
        try:
            return mathml(formula, display=match["tag"] == "div")
        except Exception as error:
            raise ValueError(f"{page.file.src_uri}: {formula!r}: {error}") from error

    return _MARKED.sub(replaced, content)
