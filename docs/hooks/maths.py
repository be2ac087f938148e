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
# What the converter knows under another name only; it sizes brackets by \left and \right.
_OTHER_NAMES = (
    (re.compile(r"\\[bB]igl(?![a-zA-Z])"), r"\\left"),
    (re.compile(r"\\[bB]igr(?![a-zA-Z])"), r"\\right"),
    (re.compile(r"\\arg(?![a-zA-Z])"), r"\\operatorname{arg}"),
)


def mathml(formula: str, display: bool) -> str:
    """A LaTeX formula as MathML; the number of a `\\tag` stands to its right.

    Raises what the converter raises for a formula that it does not understand.
    """
    tags = _TAG.findall(formula)
    formula = _TAG.sub("", formula)
    for pattern, name in _OTHER_NAMES:
        formula = pattern.sub(name, formula)
    markup = convert(formula, display="block" if display else "inline")
    if "\\" in re.sub(r"<annotation.*?</annotation>", "", markup):
        raise ValueError(f"a command was left untranslated in {formula!r}")
    # The converter ends a norm at its exponent, so only one of its two bars would stretch.
    markup = re.sub(r"<mo>(&#x0?2016;|&#x02225;|‖)</mo>", r'<mo stretchy="false">\1</mo>', markup)
    if not display:
        # A browser does not break a formula over lines; a long one scrolls on a narrow screen.
        return f'<span class="long-formula">{markup}</span>' if len(formula) > 40 else markup
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
