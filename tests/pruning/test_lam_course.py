"""Lambda in the course of a phase: what it may not pass."""

import pytest

from spr_or.pruning.lam_course import LamCourse


def test_lambda_rises_only_as_far_as_what_is_on_its_way_needs() -> None:
    """At a pace of 0.3 an epoch 0.6 is two epochs away: twice lambda does it in one."""
    course = LamCourse(1.0, epochs=10, target=50.0)
    course.read(0.0, far=0.9)
    assert course.lam == pytest.approx(3.0)  # nothing is known of the pace yet
    course.read(0.0, far=0.6)
    assert course.lam == pytest.approx(6.0)
    course.read(0.0, far=0.2)  # it will be there before an epoch is over
    assert course.lam == pytest.approx(6.0)
    course.read(0.0, far=0.2)  # something holds it
    assert course.lam == pytest.approx(18.0)


def test_the_pace_counts_readings_within_epochs() -> None:
    whole, quarters = LamCourse(1.0, 5, target=50.0), LamCourse(1.0, 5, target=50.0, steps=703)
    for far in (0.9, 0.8):
        whole.read(0.0, far)
    quarters.read(0.0, 0.9)
    for far in (0.875, 0.85, 0.825, 0.8):
        quarters.read(0.0, far)
    assert whole.lam == pytest.approx(9.0)
    assert quarters.lam == pytest.approx(3.0 ** (5 / 4))


def test_its_state_continues_it() -> None:
    course, other = (LamCourse(start, 10, target=50.0) for start in (1.0, 7.0))
    course.read(0.0, far=0.9)
    other.load(course.state())
    for one in (course, other):
        one.read(0.0, far=0.6)
    assert course.lam == other.lam == pytest.approx(6.0)
