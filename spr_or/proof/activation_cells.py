r"""Where a neuron on samples in the plane fires, in integers; and how much it can help a loss, at most.

A neuron with the weights w = (w_1, w_2, b) fires at the samples with w . x~_m > 0, where x~_m = (x_m, b_0).
The planes w . x~_m = 0 cut the space of w into cones, the cells.  They are found by cutting one sample at a
time: a cell is a list of corners in cyclic order, and a plane that has corners on both sides cuts it into
two.  Samples are floats, so multiples of a power of two, and all signs are those of integers: no cell is
missing, whatever the samples are, also where several lie on a line.

On a cell with the samples S the neuron's help is linear in w,

.. math::  -\sigma \sum_m \nu_m \max(0, d \cdot \tilde x_m) = g \cdot d, \qquad
           g = -\sigma \sum_{m \in S} \nu_m \tilde x_m .

The cell is {d : N_j d >= 0} with the inward normals N_j of its faces.  For any t >= 0 and any d of length
1 in it, g d <= (g + sum_j t_j N_j) d <= ||g + sum_j t_j N_j||.  So every t gives an upper bound.  Tried are
t = 0, the best t of each face and of the two faces at each corner; one of these is exact unless the maximum
is negative.  For that case, with unit vectors r_i along the corners and a unit vector h with
h r_i >= kappa > 0,

.. math::  g \cdot d \le \max_i (g \cdot r_i)_+ / \kappa ,

because d = sum_i c_i r_i with c >= 0 and 1 >= h d >= kappa sum_i c_i.  Roundings are enclosed as in
`rounding`.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np

from spr_or.proof.rounding import SAFE, TINY, UNIT, Array, gamma

Vector = tuple[int, int, int]


class Cells(NamedTuple):
    """The cells of n samples.

    points : (n, 3) float64, x~_m
    fires : (K, n) bool, at which samples the neurons of each cell fire
    first : (K,) int64, the first of each cell's corners, which stand one after the other
    left, right : (C, 3) float64, for each corner the inward normals of the two faces that meet there, exact
    rays : (C, 3) float64, along the corner, of length 1, each number within 4 roundings
    """

    points: Array
    fires: Array
    first: Array
    left: Array
    right: Array
    rays: Array


def cells_of(points: Array) -> Cells:
    """The cells of x~ = ``points`` (n, 3) float64.

    Raises ``ValueError`` if all samples lie on one line: then no cell has a corner.

    >>> found = cells_of(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    >>> len(found.fires)  # a line separates all subsets but two
    14
    """
    numbers = _integers(points)
    cells = _first_cells(numbers)
    started = set(cells[0][0])
    for m in range(len(numbers)):
        if m not in started:
            cells = [part for cell in cells for part in _cut(cell, m, numbers)]
    fires = np.array([[signs[m] > 0 for m in range(len(numbers))] for signs, _ in cells])
    counts = [len(corners) for _, corners in cells]
    left, right, rays = [], [], []
    for signs, corners in cells:
        for (_, before), (ray, after) in zip([corners[-1], *corners[:-1]], corners, strict=True):
            left.append(signs[before] * points[before])
            right.append(signs[after] * points[after])
            rays.append(_unit(ray))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return Cells(points, fires, first, np.array(left), np.array(right), np.array(rays))


def largest_gains(cells: Cells, nu: Array, sign: int) -> Array:
    """Upper bounds of max(0, -sign sum_m nu_m max(0, d . x~_m)) over the unit vectors d of each cell, (K,).

    nu : (n,) float64; sign : of the output weight, 1 or -1
    """
    points = cells.points
    g = -sign * (cells.fires.astype(float) @ (nu[:, None] * points))
    off = SAFE * gamma(len(nu) + 2) * _length(np.abs(nu) @ np.abs(points))
    counts = np.diff(np.append(cells.first, len(cells.rays)))
    here = np.repeat(g, counts, axis=0)
    faces = _pushed(here, cells.right)
    corners = _pushed_twice(here, cells.left, cells.right)
    least = np.minimum.reduceat(np.minimum(faces, corners), cells.first)
    least = np.minimum(least, _length(g) * (1 + 8 * UNIT)) + off
    along = (here * cells.rays).sum(1) + SAFE * (off + 16 * UNIT * _length(here)) + TINY
    most = np.maximum.reduceat(along, cells.first)
    middle = np.add.reduceat(cells.rays, cells.first, axis=0)
    middle = np.repeat(middle / _length(middle)[:, None], counts, axis=0)
    kappa = np.minimum.reduceat((middle * cells.rays).sum(1) - 32 * UNIT, cells.first)
    outside = np.where(most <= 0, 0.0, np.where(kappa > 0, SAFE * most / kappa, np.inf))
    return np.minimum((1 + 16 * UNIT) * least + TINY, outside)


def _pushed(g: Array, normal: Array) -> Array:
    """||g + t N|| for the best t >= 0, rounded up: (C,)."""
    t = np.maximum(0.0, -(g * normal).sum(1) / (normal * normal).sum(1))[:, None]
    return _reach(g, t * normal)


def _pushed_twice(g: Array, first: Array, second: Array) -> Array:
    """||g + s N + t O|| for the best s and t, rounded up: (C,)."""
    a, b, c = ((x * y).sum(1) for x, y in ((first, first), (first, second), (second, second)))
    p, q = (-(g * x).sum(1) for x in (first, second))
    cross = np.cross(first, second)
    det = np.maximum((cross * cross).sum(1), TINY)
    s, t = np.maximum(0.0, (p * c - q * b) / det), np.maximum(0.0, (q * a - p * b) / det)
    return _reach(g, s[:, None] * first, t[:, None] * second)


def _reach(*parts: Array) -> Array:
    """The length of a sum of a few vectors, rounded up; inf where it left the range of float64."""
    size = np.sum([_length(part) for part in parts], axis=0)
    reached = _length(np.sum(parts, axis=0)) + 16 * UNIT * size + TINY
    return np.where(np.isfinite(reached), reached, np.inf)


def _length(vectors: Array) -> Array:
    return np.sqrt(np.square(vectors).sum(-1))


def _integers(points: Array) -> list[Vector]:
    """The points, all multiplied by one power of two that makes them integers."""
    exact = [[Fraction(x) for x in row] for row in points.tolist()]
    unit = max(x.denominator for row in exact for x in row)
    return [tuple(int(x * unit) for x in row) for row in exact]  # type: ignore[misc]


# A cell: on which side of each plane it lies, and its corners in order, each with the plane of the face that
# leads to the next.
Cell = tuple[dict[int, int], list[tuple[Vector, int]]]


def _first_cells(points: list[Vector]) -> list[Cell]:
    """The eight cells of three samples that are not on a line."""
    for three in combinations(range(len(points)), 3):
        a, b, c = (points[m] for m in three)
        volume = _dot(_cross(a, b), c)
        if volume:
            break
    else:
        raise ValueError("all samples lie on one line: the cells of their neurons have no corners")
    cells: list[Cell] = []
    for sides in ((s, t, u) for s in (1, -1) for t in (1, -1) for u in (1, -1)):
        signs = dict(zip(three, sides, strict=True))
        corners = []
        for k in range(3):
            # The ray on the planes of the first two of (i, j, l), inside for the third.
            i, j, l = three[k], three[(k + 1) % 3], three[(k + 2) % 3]  # noqa: E741
            ray = _cross(points[i], points[j])
            corners.append((_times(signs[l] * _sign(volume), ray), j))
        cells.append((signs, corners))
    return cells


def _cut(cell: Cell, m: int, points: list[Vector]) -> list[Cell]:
    """The parts of a cell on both sides of the plane of sample m: one or two cells."""
    signs, corners = cell
    heights = [_dot(points[m], ray) for ray, _ in corners]
    parts: list[Cell] = []
    for side in (1, -1):
        if any(side * h > 0 for h in heights):
            parts.append(({**signs, m: side}, _clipped(corners, heights, side, m, points)))
    return parts


def _clipped(
    corners: list[tuple[Vector, int]],
    heights: list[int],
    side: int,
    m: int,
    points: list[Vector],
) -> list[tuple[Vector, int]]:
    """The corners of the part with side * height >= 0; its new face is that of plane m."""
    if all(side * h >= 0 for h in heights):
        return corners
    kept = []
    following = [*zip(corners[1:], heights[1:], strict=True), (corners[0], heights[0])]
    for (ray, face), h, ((ahead, _), k) in zip(corners, heights, following, strict=True):
        now, later = side * h, side * k
        if now > 0 or (now == 0 and later > 0):
            kept.append((ray, face))
        elif now == 0 and later < 0:
            kept.append((ray, m))
        if now * later < 0:
            kept.append((_crossing(ray, ahead, h, k, face, m, points), m if now > 0 else face))
    return kept


def _crossing(
    a: Vector, b: Vector, h: int, k: int, face: int, m: int, points: list[Vector]
) -> Vector:
    """Where plane m meets the face between the rays a and b, at heights h and k of opposite signs."""
    ray = _cross(points[face], points[m])
    between = tuple(abs(k) * x + abs(h) * y for x, y in zip(a, b, strict=True))
    return _times(_sign(_dot(ray, between)), ray)  # type: ignore[arg-type]


def _unit(ray: Vector) -> list[float]:
    """A ray of length 1; numbers with a common factor may be too large for floats."""
    largest = max(abs(x) for x in ray)
    scaled = [float(Fraction(x, largest)) for x in ray]
    length = float(np.sqrt(sum(x * x for x in scaled)))
    return [x / length for x in scaled]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _dot(a: Vector, b: Vector) -> int:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _times(factor: int, a: Vector) -> Vector:
    return factor * a[0], factor * a[1], factor * a[2]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
