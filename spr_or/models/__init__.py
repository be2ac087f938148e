"""The networks of the folder ``models`` beside ``spr_or``, importable from any folder.

A checkout has this file, which points there; a wheel has the networks themselves in its place
(``setup.py``). So ``from spr_or.models.toy import mlp`` works in both.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "models")]
