"""Links from pages to files of the repository, which are no part of the site, become plain text."""

import re
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>(?!https?:|#)[^)#\s]+)\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Unlink what lies outside docs/."""

    def plain(match: re.Match[str]) -> str:
        target = (_DOCS / page.file.src_uri).parent / match["target"]
        return match[0] if target.resolve().is_relative_to(_DOCS) else match["text"]

    return _LINK.sub(plain, markdown)
