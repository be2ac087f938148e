r"""The activation patterns of a neuron on samples in the plane, and the neuron that helps a loss most.

A neuron with the weights w = (w_1, w_2, b) fires at the samples with w . x~_m > 0, where
x~_m = (x_m, 1).  The n planes w . x~_m = 0 cut the space of w into cones, one for each set of samples that
a line can separate: n^2 - n + 2 of them if no three samples lie on a line.  On a cone the neuron's
output is linear in w.  So the direction that helps a loss with the slopes nu most,

.. math::  \max_{\lVert d\rVert_2 = 1} -\sigma \sum_m \nu_m \max(0, d \cdot \tilde x_m),

stands in a finite list, although the problem is not convex.  On a cone with the samples S the sum is
V . d with V = sum_S nu_m x~_m.  If the maximum is positive, it lies at the projection of -sigma V onto
the cone: at -sigma V itself, its projection onto the plane of a face, or an edge:

* the cones                      -sigma V
* the faces, on w . x~_m = 0     -sigma (V - (V . x~_m) x~_m / ||x~_m||^2)
* the edges                      +-(x~_m x x~_k)

Each of these directions is a neuron and is valued as one, also where it lies outside of its cone: a
list that is too long does no harm.  The same holds for the neurons of a `Region`, which fire at
some samples and do not fire at others: a region is a union of cones, and its faces are theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A direction this far outside a closed cone counts as on its border.  To allow more directions can
# only lower a bound.
_BORDER = 1e-9
# Three samples whose triangle has less than this (relative) area count as lying on a line.
_FLAT = 1e-9


class Region(NamedTuple):
    """Neurons with output weight ``sign`` that fire at ``on`` and do not at ``off`` (both (n,) bool)."""

    sign: int
    on: Tensor
    off: Tensor

    def holds(self, z: Tensor) -> Tensor:
        """Which of the neurons with pre-activations z (..., n) lie in the closed region: (...) bool."""
        return ~((self.on & (z < -_BORDER)) | (self.off & (z > _BORDER))).any(-1)


class Arrangement(NamedTuple):
    """The cones, faces and edges that n samples in the plane cut the neurons into.

    points : (n, 3) float64, x~_m
    cones : (n^2 - n + 2, n) float64, 1 where a neuron of the cone fires
    faces : (2 n (n - 1), n) float64, the same on the faces; normals : (2 n (n - 1), 3), their planes
    edges : (n (n - 1), 3) float64, unit vectors
    """

    points: Tensor
    cones: Tensor
    faces: Tensor
    normals: Tensor
    edges: Tensor

    def directions(self, nu: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """The list above for multipliers nu (n,): unit directions (C, 3) and their z (C, n)."""
        weighted = nu.unsqueeze(1) * self.points
        inside = self.cones @ weighted
        along = self.faces @ weighted
        along = along - (along * self.normals).sum(-1, keepdim=True) * self.normals
        free = torch.cat([inside, along])
        length = free.norm(dim=-1, keepdim=True)
        unit = torch.where(length > 0, -sign * free / length, self.edges[:1])
        found = torch.cat([unit, self.edges])
        return found, found @ self.points.T


def arrangement(points: Tensor) -> Arrangement:
    """The arrangement of x~ = ``points`` (n, 3) float64, n >= 3.

    Raises ``ValueError`` if three of the samples lie on a line, or two are equal: then the cones
    around an edge are not the four that are listed here.

    >>> a = arrangement(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]).double())
    >>> [len(part) for part in a]
    [3, 8, 12, 12, 6]
    """
    n = len(points)
    if n < 3:
        raise ValueError(f"an arrangement needs at least three samples, got {n}")
    first, second = torch.triu_indices(n, n, 1)
    cross = torch.linalg.cross(points[first], points[second])
    size = points.norm(dim=-1)
    length = cross.norm(dim=-1)
    z = cross @ points.T
    pair = torch.arange(len(first))
    z[pair, first] = z[pair, second] = torch.inf  # the two planes of the edge itself
    low = z.abs().amin(-1)
    flat = (low <= _FLAT * size.prod() ** (3 / n)).nonzero()
    if len(flat):
        k = int(flat[0])
        third = int(z[k].abs().argmin())
        raise ValueError(
            f"samples {first[k]}, {second[k]} and {third} lie on a line: move one of them a little"
        )
    edges = cross / length.unsqueeze(-1)
    fires = torch.cat([z > 0, z < 0])
    pairs = torch.cat([pair, pair])
    cones, faces = [], []
    for a, b in ((False, False), (False, True), (True, False), (True, True)):
        near = fires.clone()
        rows = torch.arange(len(near))
        near[rows, first[pairs]] = a
        near[rows, second[pairs]] = b
        cones.append(near)
    for own, other in ((first, second), (second, first)):
        for side in (False, True):
            near = fires.clone()
            rows = torch.arange(len(near))
            near[rows, own[pairs]] = False
            near[rows, other[pairs]] = side
            faces.append(torch.cat([own[pairs].unsqueeze(1), near], dim=1))
    plane = torch.cat(faces).unique(dim=0)
    return Arrangement(
        points,
        torch.cat(cones).unique(dim=0).double(),
        plane[:, 1:].double(),
        (points / size.unsqueeze(-1))[plane[:, 0]],
        torch.cat([edges, -edges]),
    )


class Neuron(NamedTuple):
    """The most helpful neuron of a region: direction (3,), its z (n,), and how much it helps, at least 0."""

    direction: Tensor
    z: Tensor
    gain: float


def most_helpful(a: Arrangement, nu: Tensor, regions: list[Region]) -> list[Neuron | None]:
    """For each region the direction d that maximises -sign sum_m nu_m max(0, d . x~_m), nu (n,).

    None where the region is empty.
    """
    lists = {}
    for sign in {region.sign for region in regions}:
        found, z = a.directions(nu, sign)
        lists[sign] = found, z, -sign * (z.clamp(min=0) @ nu)
    result: list[Neuron | None] = []
    for region in regions:
        found, z, gain = lists[region.sign]
        allowed = region.holds(z)
        if not bool(allowed.any()):
            result.append(None)
            continue
        best = int(torch.where(allowed, gain, -torch.inf).argmax())
        result.append(Neuron(found[best], z[best], max(0.0, float(gain[best]))))
    return result
