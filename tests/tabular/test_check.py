"""`spr_or.check` and `load_certificate`: a certificate, its file, and a folder of `spr-or solve`."""

import csv
import json

import numpy as np
import pytest

import spr_or as so
from spr_or.tabular.prepare import prepare
from spr_or.tabular.results import write_result


@pytest.fixture
def folder(tmp_path):
    """What `spr-or solve` leaves, with the M given."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    y = 2 * X[:, 0] + 0.1 * rng.normal(size=30)
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *np.column_stack([X, y]).tolist()])
    data = prepare(tmp_path / "own.csv", "y", None, "squared")
    certificate = so.solve(data.problem(0.1, 0.1, 5.0))
    write_result(tmp_path / "solved", data, certificate, None)
    return tmp_path / "solved"


def test_a_certificate_and_its_folder_are_checked_alike(folder):
    certificate = so.load_certificate(folder)
    by_hand, stored = so.check(certificate), so.check(str(folder))
    assert by_hand.ok and stored.ok and stored.problems == []
    assert (by_hand.objective, by_hand.bound) == (stored.objective, stored.bound)
    assert so.check(certificate, exact=True).ok and so.check(folder, exact=True).ok
    assert so.check(folder / "certificate.json").ok  # the file stands for its folder


def test_what_does_not_hold_is_listed(folder):
    content = json.loads((folder / "certificate.json").read_text())
    content["result"]["bound"] *= 1.01
    (folder / "certificate.json").write_text(json.dumps(content))
    for found in (so.check(so.load_certificate(folder)), so.check(folder)):
        assert not found.ok and any("proves the bound" in problem for problem in found.problems)


def test_the_data_may_have_moved_but_not_changed(folder):
    here, there = folder.parent / "own.csv", folder.parent / "moved.csv"
    here.rename(there)
    with pytest.raises(ValueError, match="no such file"):
        so.check(folder)
    assert so.check(folder, data=there).ok
    there.write_text(there.read_text().replace("a,b", "a,d", 1))
    with pytest.raises(ValueError, match="SHA-256"):
        so.check(folder, data=there)


def test_a_certificate_without_its_data_needs_its_problem(folder):
    problem = so.load_certificate(folder).problem
    alone = folder.parent / "alone.json"
    so.load_certificate(folder).save(alone)
    with pytest.raises(ValueError, match="give the problem"):
        so.load_certificate(alone)
    assert so.load_certificate(alone, problem).check().ok


def test_a_folder_of_a_path_names_its_parts(folder):
    path = folder.parent / "path"
    path.mkdir()
    folder.rename(path / "lambda-01")
    with pytest.raises(ValueError, match="lambda-01"):
        so.check(path)
    assert so.check(path / "lambda-01").ok


def test_other_things_are_refused(folder, tmp_path):
    with pytest.raises(TypeError, match="not int"):
        so.check(3)
    with pytest.raises(ValueError, match="data belongs to"):
        so.check(so.load_certificate(folder), data="own.csv")
    with pytest.raises(ValueError, match="no result of spr-or solve there"):
        so.check(tmp_path)
