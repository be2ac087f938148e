"""Stored networks: found by name, refused when their bytes are others."""

import hashlib
from pathlib import Path

import pytest

from spr_or.utils import stored_weights
from spr_or.utils.stored_weights import check_hash, find_weights, stored_names


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results" / "some_network"
    folder.mkdir(parents=True)
    (folder / "dense.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  dense.safetensors\n")
    monkeypatch.setattr(stored_weights, "shipped_folder", lambda kind: tmp_path / kind)
    return folder / "dense.safetensors"


def test_a_stored_network_is_found_by_its_name(stored, tmp_path, monkeypatch):
    assert stored_names() == ["some_network"]
    assert find_weights("some_network") == stored
    assert find_weights(Path("some_network")) == stored
    assert find_weights("another.pt") == Path("another.pt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_network").write_bytes(b"mine")  # a file of that name goes first
    assert find_weights("some_network") == Path("some_network")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"others"), "the file is damaged or was replaced"),
        (lambda path: (path.parent / "SHA256SUMS").write_text(""), "nothing of it"),
        (lambda path: (path.parent / "SHA256SUMS").unlink(), "is missing"),
    ],
)
def test_other_bytes_are_refused(stored, change, said):
    change(stored)
    with pytest.raises(ValueError, match=said):
        find_weights("some_network")


def test_what_is_stored_has_its_hash():
    for name in stored_names():
        check_hash(find_weights(name))
