"""Lambda in the course of a phase: what it may not pass."""

import math

import pytest

from spr_or.pruning.lam_course import LamCourse


def test_lambda_rises_only_as_far_as_what_is_on_its_way_needs() -> None:
    """At a pace of 0.3 an epoch 0.6 is two epochs away: twice lambda does it in one."""
    course = LamCourse(1.0, epochs=10, target=50.0)
    course.read(0.0, far=(0.9, math.inf))
    assert course.lam == pytest.approx(3.0)  # nothing is known of the pace yet
    course.read(0.0, far=(0.6, math.inf))
    assert course.lam == pytest.approx(6.0)
    course.read(0.0, far=(0.2, math.inf))  # it will be there before an epoch is over
    assert course.lam == pytest.approx(6.0)
    course.read(0.0, far=(0.2, math.inf))  # something holds it
    assert course.lam == pytest.approx(18.0)


def test_the_pace_counts_readings_within_epochs() -> None:
    whole, quarters = LamCourse(1.0, 5, target=50.0), LamCourse(1.0, 5, target=50.0, steps=703)
    for far in (0.9, 0.8):
        whole.read(0.0, (far, math.inf))
    quarters.read(0.0, (0.9, math.inf))
    for far in (0.875, 0.85, 0.825, 0.8):
        quarters.read(0.0, (far, math.inf))
    assert whole.lam == pytest.approx(9.0)
    assert quarters.lam == pytest.approx(3.0 ** (5 / 4))


def test_its_state_continues_it() -> None:
    course, other = (LamCourse(start, 10, target=50.0) for start in (1.0, 7.0))
    course.read(0.0, far=(0.9, math.inf))
    other.load(course.state())
    for one in (course, other):
        one.read(0.0, far=(0.6, math.inf))
    assert course.lam == other.lam == pytest.approx(6.0)


def test_no_layer_goes_more_than_half_of_its_way_at_once() -> None:
    course = LamCourse(1.0, epochs=10, target=50.0)
    course.read(0.0, far=(9.0, 0.9))
    assert course.lam == pytest.approx(3.0)
    course.read(0.0, far=(8.9, 0.75))  # half of 0.75 at 0.15 an epoch
    assert course.lam == pytest.approx(7.5)
    course.read(0.0, far=(8.8, 0.1))  # it would be empty before the next one
    assert course.lam == pytest.approx(0.25 * 7.5)
    quarters = LamCourse(1.0, 5, target=50.0, steps=703)
    quarters.read(0.0, far=(9.0, 0.9))
    before = quarters.lam
    quarters.read(
        0.0, far=(8.9, 0.75)
    )  # half its way is 2.5 times the pace: more than it rises by anyway
    assert quarters.lam == pytest.approx(before * 3.0 ** (1 / 4))
