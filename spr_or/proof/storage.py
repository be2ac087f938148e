"""A proof as flat arrays, for a file.

Ragged lists become one array and its lengths.  For several outputs a record that moves curvature without
clusters keeps the indicators y (n,) behind its point and not the point, n k q numbers: `point` gives one
back, and any point will do for a tangent bound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spr_or.proof.data import Data
from spr_or.proof.rounding import Array
from spr_or.proof.tree import Proof, Record

_LEAST = 1e-8  # of an indicator

Arrays = dict[str, Any]


def pack(proof: Proof, data: Data) -> Arrays:
    """The arrays of a proof."""
    records = proof.records
    k, q = data.shape[1:]
    moved = [r for r in records if r.d is not None]
    packed: Arrays = {
        name: np.array([getattr(r, name) for r in records], dtype=np.int64)
        for name in ("parent", "value", "branch")
    }
    packed["width"] = np.array((k, q) if records else (0, 0), dtype=np.int64)
    packed["split"] = np.array([r.d is not None for r in records])
    for name in ("entities", "zeros", "ones"):
        parts = [getattr(r, name) for r in records]
        packed[name] = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        packed[f"{name}_length"] = np.array([len(part) for part in parts], dtype=np.int64)
    by_y = [r for r in moved if q > 1 and r.clusters is None]
    points = [r for r in records if q == 1 or r.d is None or r.clusters is not None]
    packed["W"] = _joined([r.W for r in points], np.float64)
    shapes = [(0, 0) if r.clusters is None else r.clusters.shape for r in records]
    packed["clusters_shape"] = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    packed["clusters"] = _joined([r.clusters for r in records if r.clusters is not None], np.int64)
    packed["d"] = _joined([r.d for r in moved], np.float64)
    if by_y:
        packed["y"] = np.concatenate([indicators(data, r.entities, r.W, r.d) for r in by_y])
    return packed


def unpack(packed: Arrays, data: Data) -> Proof:
    """The proof that was packed.  Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``IndexError`` where
    the arrays do not fit each other."""
    k, q = (int(x) for x in packed["width"])
    split = [bool(x) for x in packed["split"]]
    lengths = _lengths(packed, "entities")
    entities, zeros, ones = (_ragged(packed, name) for name in ("entities", "zeros", "ones"))
    shapes = [(int(m), int(s)) for m, s in np.asarray(packed["clusters_shape"]).reshape(-1, 2)]
    if not len(split) == len(lengths) == len(shapes) or min(min(s) for s in shapes) < 0:
        raise ValueError("its parts are not of one length")
    # Of each record with moved curvature: blocks of clusters, blocks of entities or a diagonal.
    wide = [
        (m, s * k, s * k) if m else (n, k, k) if q == 1 < k else (n, k)
        for n, (m, s), has in zip(lengths, shapes, split, strict=True)
        if has
    ]
    moved = iter(_cut(packed["d"], wide, np.float64))
    clusters = _cut(packed["clusters"], shapes, np.int64)
    # Which records have y in the place of W.
    by_y = [has and "y" in packed and not m for has, (m, _) in zip(split, shapes, strict=True)]
    stored = [0 if own else n for n, own in zip(lengths, by_y, strict=True)]
    points = _cut(packed["W"], [(n, k, q) for n in stored], np.float64)
    counts = [(n,) for n, own in zip(lengths, by_y, strict=True) if own]
    near = iter(_cut(packed["y"], counts, np.float64) if "y" in packed else [])
    numbers = (np.asarray(packed[name]).tolist() for name in ("parent", "value", "branch"))
    for own in (own for own, has in zip(entities, by_y, strict=True) if has):
        named = np.unique(own)
        if len(named) != len(own) or (len(own) and not 0 <= own.min() <= own.max() < data.shape[0]):
            raise ValueError("a record names an entity twice, or one that there is not")
    records = []
    for i, (parent, value, branch) in enumerate(zip(*numbers, strict=True)):
        d = next(moved) if split[i] else None
        W = points[i] if d is None or not by_y[i] else point(data, entities[i], d, next(near))
        cluster = clusters[i] if shapes[i][0] else None
        records.append(
            Record(
                int(parent), int(value), entities[i], W, d, zeros[i], ones[i], int(branch), cluster
            )
        )
    if len(records) != len(split):
        raise ValueError("its parts are not of one length")
    return Proof(records)


def indicators(data: Data, entities: Array, W: Array, d: Array | None) -> Array:
    """The y (n,) behind a point W (n, k, q) of moved curvature d (n, k): W = y Omega, C - R W = D Omega."""
    at, real, R, C, moved = _system(data, entities, d)
    flat = W[real]
    omega = (C - R @ flat) / moved[:, None]
    owner = np.repeat(np.arange(len(real)), real.sum(axis=1))
    top = np.bincount(owner, (flat * omega).sum(axis=1), len(real))
    return np.asarray(
        top / np.maximum(np.bincount(owner, np.square(omega).sum(axis=1), len(real)), 1e-300)
    )


def point(data: Data, entities: Array, d: Array, y: Array) -> Array:
    """The W (n, k, q) of the entities for indicators y (n,): W = S (S R S + D)^-1 S C, S = diag(sqrt(y))."""
    at, real, R, C, moved = _system(data, entities, d)
    S = np.repeat(np.sqrt(np.clip(y, _LEAST, 1.0)), real.sum(axis=1))
    A = S[:, None] * R * S
    A[np.arange(len(S)), np.arange(len(S))] += moved
    W = np.zeros((*real.shape, C.shape[1]))
    W[real] = S[:, None] * np.linalg.solve(A, S[:, None] * C)
    return W


def _system(data: Data, entities: Array, d: Array | None) -> tuple[Array, Any, Array, Array, Array]:
    """Columns, which of (n, k) are real, R = X'X/n + diag(ridge) - D, C = X'Y/n, and the diagonal of D."""
    assert d is not None
    owned = [data.columns[i] for i in entities]
    sizes = np.array([len(own) for own in owned], dtype=np.int64)  # also of no entity at all
    at = np.concatenate([np.zeros(0, np.int64), *owned])
    real = np.arange(data.k) < sizes[:, None]
    moved = d[real]
    X = data.X[:, at]
    R = X.T @ X / data.n
    R[np.arange(len(at)), np.arange(len(at))] += np.repeat(data.ridge[entities], sizes) - moved
    return at, real, R, X.T @ data.Y / data.n, moved


def _joined(parts: list[Any], dtype: type) -> Array:
    return np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0, dtype)


def _lengths(packed: Arrays, name: str) -> list[int]:
    lengths = [int(x) for x in packed[f"{name}_length"]]
    if lengths and min(lengths) < 0:
        raise ValueError(f"{name} has a negative length")
    return lengths


def _ragged(packed: Arrays, name: str) -> list[Array]:
    return _cut(packed[name], [(n,) for n in _lengths(packed, name)], np.int64)


def _cut(values: Any, shapes: list[Any], dtype: type) -> list[Array]:
    """An array cut into pieces of the shapes; ``ValueError`` where they do not use it up, or numbers are not
    whole or not finite."""
    flat = np.asarray(values, dtype=np.float64 if dtype is np.float64 else None)
    if flat.size == 0:
        flat = np.zeros(0, dtype)
    if flat.ndim != 1 or sum(math.prod(shape) for shape in shapes) != len(flat):
        raise ValueError("its arrays have other lengths than it says")
    if not np.isfinite(flat).all() if dtype is np.float64 else flat.dtype.kind not in "iu":
        raise ValueError("its arrays hold numbers that are not finite, or not whole")
    stops = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    pieces: list[Array] = np.split(flat.astype(dtype), stops) if shapes else []
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
