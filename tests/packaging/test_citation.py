"""`CITATION.cff` is read by machines: it must parse, and agree with the package."""

from pathlib import Path

import yaml

import spr_or

ROOT = Path(__file__).parents[2]


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= citation.keys()
    assert citation["version"] == spr_or.__version__
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1137/22M1542313"
    assert "2206.14056" in paper["identifiers"][0]["value"]
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Cacciola", "Frangioni", "Li", "Lodi"]
