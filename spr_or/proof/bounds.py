r"""The bound that one record proves, in float64 with every rounding enclosed.

Write e_i = lambda u_i, r_i = e_i alpha (ridge), p_i = e_i (1 - alpha) (price).  A node fixes some y_i to 0
(not *alive*) or 1 (*one*); its problem is min over w, y of loss(w) + sum_i r_i ||w^i||^2 + p_i y_i with
|w^i| <= M_i y_i.  For every vector g the supremum

.. math::  s_i(g) = \max_{|x| \le M_i} \bigl( -\langle g^i, x\rangle - x' D_i x \bigr) - p_i

is what entity i gains by being in use; it costs nothing to leave it out.

**A record without moved curvature** has a point w.  Let nu = fl(loss'(X w)): whatever it is, Fenchel's
inequality gives loss(w') >= -(1/n) sum l*(nu) + <g, w'> with g = X' nu / n, hence with D_i = r_i I

.. math::  \text{optimum} \ge -\tfrac1n \sum_m \ell^*(\nu_m) - \sum_{i\ \text{one}} s_i
           - \sum_{i\ \text{free}} \max(0, s_i) .

**A record with moved curvature D** (squared loss) names every entity alive.  Let H = X'X/n + diag(r) - D
be positive semidefinite over the columns it names.  Then R(w) = w'Hw - 2 C'w + c_0, C = X'Y/n,
c_0 = ||Y||^2/n, is convex and above its tangent at any w with slope g = 2 (H w - C), whose constant is
c_0 - w'Hw; the optimum is at least that minus what the entities gain with this g and D.  D couples the
columns of an entity, or of a cluster of entities, which then gains the maximum over its supports S of
max_x -<g_S, x> - x'D_SS x - sum_S p_i.  Several outputs share D and S: their maxima over x are summed.

For a block, x is bounded by any multipliers eta >= 0 of the box: with A = D_SS + diag(eta), and any x^ with
residual rho = -g - 2 A x^,

.. math::  \max_{|x| \le M} -g'x - x'D_{SS}x \le \hat x'(-g - A\hat x) + \tfrac14 \rho' A^{-1} \rho
           + \sum_j \eta_j M_j^2, \qquad \rho'A^{-1}\rho \le \sum_j \rho_j^2 / (\mu D_{jj}),

where D >= mu diag(D) is proven once for the whole cluster and holds for each of its principal parts.

**A limited number of entities.**  If at most m of them are used and c are at one, then the free ones gain
no more than the m - c largest of max(0, s_i), summed.  What an entity's indicator decides is then not s_i,
but what all gain with it less what they gain without it: s_i less the largest gain that has no place beside
it (`_marginal`).  Blocks that couple entities go without this, which only lowers the bound.

**Signs.**  Where a weight must not be negative, x_j lies in [0, M_i], and a slope that pulls it down gains
nothing: only the positive part of -g_j counts.  Blocks are bounded over the whole box.

**Weights of samples** t_m change the loss to (1/n) sum t_m l, and its conjugate to
(1/n) sum t_m l*(nu_m / t_m).

**Roundings.**  g is known within radii delta: since |x_j| <= M_j, entity i gains at most
sum_j delta_j M_j more.  X'X/n, X'Y/n and X'nu/n are formed by chunks of samples, so that gamma belongs to
few operations, a thousand for a quarter of a million samples.
Entries of H, and what rounding does to them, are bounded by a_j a_k with a_j^2 = ||X_j||^2/n + D_jj + r_j.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from spr_or.proof.data import NEGLIGIBLE, Data
from spr_or.proof.gradients import Gradients
from spr_or.proof.rounding import (
    SAFE,
    TINY,
    UNIT,
    Array,
    down,
    gamma,
    lengths,
    operations,
    positive_definite,
    product,
    total,
)  # fmt: skip
from spr_or.proof.tree import Record, State

INDEFINITE = "the loss without the curvature it moves is not proven convex"
_SWEEPS = 60
_NUMBERS = 2e7  # in the matrices of the supports of some clusters, at a time

Found = tuple[float, Array] | str
Mask = NDArray[np.bool_]


class Bounds:
    """Bounds and scores of the records of one proof."""

    def __init__(self, data: Data, records: list[Record]) -> None:
        self.data = data
        self.X_lengths = lengths(data.X)
        self.Y_lengths = lengths(data.Y)
        self.records = records
        self.gradients = Gradients(data, records, self.X_lengths)
        self._moments(records)

    def __call__(self, number: int, state: State) -> Found:
        """The bound of a record and the scores (N,) of its entities; or why it has none."""
        try:
            if self.records[number].d is None:
                return self._plain(number, state)
            return self._moved(self.records[number], state)
        except np.linalg.LinAlgError as error:
            return f"its bound cannot be computed: {error}"

    # --- without moved curvature --------------------------------------------------------------------

    def _plain(self, number: int, state: State) -> Found:
        base, g, owner = self.gradients(number)
        data = self.data
        gain = phi(g, data.ridge[owner, None], data.M[owner, None]).sum(axis=1)
        gain = np.bincount(owner, gain, minlength=len(data.columns))
        return self._paid(base, self._net(gain, data.price), state)

    def _paid(self, base: float, score: Array, state: State) -> tuple[float, Array]:
        """The bound left when all entities alive have taken what they gain, and their marginal gains."""
        free = state.alive & ~state.one
        if self.data.most is None:
            taken = np.concatenate([score[state.one], np.maximum(score[free], 0.0)])
        else:
            places = self.data.most - int(state.one[: self.data.priced].sum())
            gains = np.sort(np.maximum(score[free], 0.0))[::-1]
            taken = np.concatenate([score[state.one], gains[: max(0, places)]])
            score = score.copy()
            score[free] = _marginal(score[free], gains, places)
        paid, error = total(taken)
        return down(base - paid, error), score

    def _net(self, gain: Array, price: Array) -> Array:
        """What entities gain, summed over k columns and q outputs, less their price; rounded up."""
        return _less(gain * (1 + gamma(self.data.k * self.data.Y.shape[1] + 4)), price)

    # --- with moved curvature -----------------------------------------------------------------------

    def _moments(self, records: list[Record]) -> None:
        """X'X/n, X'Y/n and ||Y||^2/n over the columns of all records that move curvature."""
        data = self.data
        self.c0, self.c0_error = total(np.square(data.Y) / data.n)
        self.c0_error = SAFE * (self.c0_error + 2 * UNIT * self.c0)
        self.row = np.full(data.X.shape[1], -1)
        named = {i for r in records if r.d is not None for i in r.entities.tolist()}
        if not named:
            return
        columns = np.concatenate([data.columns[i] for i in sorted(named)])
        self.row[columns] = np.arange(len(columns))
        X = data.X[:, columns]
        G = product(X, X) / data.n
        self.G = np.tril(G) + np.tril(G, -1).T
        self.C = product(X, data.Y) / data.n
        self.lengths = SAFE * self.X_lengths[columns] / np.sqrt(data.n)

    def _moved(self, record: Record, state: State) -> Found:
        data = self.data
        if data.loss != "squared":
            return "moves curvature of a loss that is not squared"
        if not len(record.entities):  # nothing is left to choose
            return down(self.c0, self.c0_error), np.full(len(data.columns), np.nan)
        owned = [data.columns[i] for i in record.entities]
        sizes = np.array([len(at) for at in owned])
        at = self.row[np.concatenate(owned)]
        P = len(at)
        real = np.arange(data.k) < sizes[:, None]
        position = np.where(real, np.cumsum(real.ravel()).reshape(real.shape) - 1, -1)  # (n, k)
        w = record.W[real]  # (P, q)
        ridge = np.repeat(data.ridge[record.entities], sizes)
        H = self.G[np.ix_(at, at)]
        H[np.arange(P), np.arange(P)] += ridge
        moved = _take_away(H, record, position)
        size = np.sqrt(np.square(self.lengths[at]) + moved + ridge) * SAFE
        # In each entry of H: X'X/n, its division, the ridge, what was added and taken away.
        c = SAFE * (gamma(operations(len(data.X))) + 16 * UNIT)
        if not positive_definite(H, SAFE * P * c * np.square(size)):
            return INDEFINITE
        Hw = H @ w
        g = 2 * (Hw - self.C[at])
        reach = size @ np.abs(w)  # (q,)
        known = (c + gamma(P + 6)) * reach + 2 * c * self.Y_lengths / np.sqrt(data.n)
        radius = SAFE * 2 * size[:, None] * known + 4 * UNIT * np.abs(g) + TINY
        radius += 4 * NEGLIGIBLE * np.abs(w)  # a ridge that was taken for 0
        inner, error = total(w * Hw)
        error += self.c0_error + SAFE * (c + 2 * gamma(P + 6)) * float(np.square(reach).sum())
        error += 2 * NEGLIGIBLE * float(np.square(w).sum())
        base = down(self.c0 - inner, error)
        if record.d is not None and record.d.ndim == 2:
            upward = np.where(data.signed[np.concatenate(owned)][:, None], -g, np.abs(g))
            gain = phi(
                np.maximum(upward + radius, 0.0),
                moved[:, None],
                np.repeat(data.M[record.entities], sizes)[:, None],
            )
            gain = np.bincount(
                np.repeat(np.arange(len(sizes)), sizes), gain.sum(axis=1), len(sizes)
            )
            score = np.full(len(data.columns), np.nan)
            score[record.entities] = self._net(gain, data.price[record.entities])
            return self._paid(base, score, state)
        return self._clustered(record, state, base, position, -g, radius)

    def _clustered(
        self, record: Record, state: State, base: float, position: NDArray, u: Array, radius: Array
    ) -> Found:
        """What clusters gain by the best of their supports, for u (P, q); a block an entity is a cluster of
        one."""
        data, k = self.data, self.data.k
        assert record.d is not None
        rows = _cluster_rows(record)  # (m, s) rows of the record, -1 where there is none
        m, s = rows.shape
        present = rows >= 0
        entity = np.where(present, record.entities[rows], -1)
        flat = np.where(present[:, :, None], position[rows], -1).reshape(m, s * k)
        D = np.where((flat >= 0)[:, :, None] & (flat >= 0)[:, None, :], record.d, 0.0)
        places = np.arange(s * k)
        D[:, places, places] += flat < 0
        # Scaled by powers of two, which rounds nothing, so that all columns count alike.
        diagonal = D[:, places, places]
        scale = np.exp2(-np.round(np.log2(diagonal) / 2))
        scaled = scale[:, :, None] * D * scale[:, None, :]
        mu = 0.5 * np.linalg.eigvalsh(scaled)[:, 0]
        if not (mu > 0).all() or not positive_definite(scaled, np.repeat(mu[:, None], s * k, 1)):
            return "moves a curvature that is not proven positive"
        table = np.array(list(itertools.product((False, True), repeat=s)))  # (S, s)
        alive = present & state.alive[entity]
        one = present & state.one[entity]
        allowed = ~(table[None] & ~alive[:, None]).any(2) & ~(~table[None] & one[:, None]).any(2)
        inside = np.repeat(table, k, axis=1)[None] & (flat >= 0)[:, None]  # (m, S, K)
        M = np.repeat(np.where(present, data.M[entity], 0.0), k, axis=1)
        least = mu[:, None, None] / np.square(scale)[:, None]
        step = max(1, int(_NUMBERS // (len(table) * (s * k) ** 2)))  # so many at a time
        parts = [slice(start, start + step) for start in range(0, m, step)]
        gain = np.zeros((m, len(table)))
        for slope, off in zip(u.T, radius.T, strict=True):
            u_, off_ = (np.where(flat >= 0, x[flat], 0.0)[:, None] * inside for x in (slope, off))
            gain += np.concatenate(
                [_block_gain(u_[i], D[i], inside[i], M[i, None], least[i]) for i in parts]
            )
            gain += SAFE * (off_ * M[:, None]).sum(2)
        gain *= 1 + gamma(2 * u.shape[1] + 2)  # of terms that are not negative
        price = np.where(present, data.price[entity], 0.0) @ table.T.astype(float)
        gain = _less(gain, price)
        gain[~allowed] = -np.inf
        best = gain.max(1)
        score = np.full(len(data.columns), np.nan)
        for slot in range(s):
            with_it = np.where(table[:, slot], gain, -np.inf).max(1)
            without = np.where(table[:, slot], -np.inf, gain).max(1)
            free = alive[:, slot] & ~one[:, slot]
            score[entity[free, slot]] = (with_it - without)[free]
        paid, error = total(best)
        return down(base - paid, error), score


def phi(u: Array, d: Array, M: Array) -> Array:
    """At least max over |x| <= M of u x - d x^2, for u >= 0 and d >= 0."""
    inner = u <= 2 * d * M
    safe = np.where(inner & (d > 0), d, 1.0)
    # Neither form can overflow or underflow towards a smaller value.
    value = np.where(inner & (d > 0), u * (u / (4 * safe)), M * (u - d * M))
    return np.maximum(value, 0.0) * (1 + 16 * UNIT) + TINY


def _block_gain(u: Array, D: Array, inside: Mask, M: Array, least: Array) -> Array:
    """At least max u'x - x'D_SS x over |x_j| <= M_j, (m, S), for u (m, S, K) that is 0 outside S.

    ``D`` (m, K, K), ``inside`` (m, S, K) the columns of S; D_SS >= diag(least), broadcast to (m, S, K).
    """
    K = u.shape[-1]
    A = np.where(inside[..., None] & inside[..., None, :], D[:, None], 0.0)
    places = np.arange(K)
    A[..., places, places] += ~inside
    limit = np.broadcast_to(M, u.shape)
    eta = _multipliers(u, A, limit)
    A[..., places, places] += eta
    x = 0.5 * np.linalg.solve(A, u[..., None])[..., 0]
    Ax = (A @ x[..., None])[..., 0]
    size = np.abs(u) + 2 * (np.abs(A) @ np.abs(x)[..., None])[..., 0]
    g = gamma(K + 6)
    residual = np.abs(u - 2 * Ax) + SAFE * g * size
    value = (x * (u - Ax)).sum(-1) + SAFE * g * (np.abs(x) * size).sum(-1)
    rest = (residual * (residual / least)).sum(-1) / 4
    box = (eta * limit * limit).sum(-1)
    return value + SAFE * rest + box * (1 + gamma(K + 4)) + TINY


def _multipliers(u: Array, A: Array, M: Array) -> Array:
    """Some eta >= 0 for the box |x_j| <= M_j, near the best: coordinate ascent where x leaves the box."""
    x = 0.5 * np.linalg.solve(A, u[..., None])[..., 0]
    outside = (np.abs(x) > M).any(-1)
    eta = np.zeros_like(u)
    if not outside.any():
        return eta
    u, A, M = u[outside], A[outside], M[outside]
    x = np.clip(x[outside], -M, M)
    for _ in range(_SWEEPS):
        before = x.copy()
        for j in range(u.shape[-1]):
            rest = (A[:, j] * x).sum(-1) - A[:, j, j] * x[:, j]
            x[:, j] = np.clip((u[:, j] / 2 - rest) / A[:, j, j], -M[:, j], M[:, j])
        if (np.abs(x - before) <= 1e-12 * M).all():
            break
    push = u - 2 * (A @ x[..., None])[..., 0]
    at_limit = (np.abs(x) >= M) & (x != 0)
    eta[outside] = np.where(at_limit, np.maximum(push / np.where(at_limit, 2 * x, 1.0), 0.0), 0.0)
    return eta


def _take_away(H: Array, record: Record, position: NDArray) -> Array:
    """Subtract the curvature that a record moves from H (P, P), in place: the diagonal of it, (P,).

    ``position`` (n, k) numbers the columns of the record's entities, -1 for padding.
    """
    d = record.d
    assert d is not None
    moved = np.zeros(len(H))
    if d.ndim == 2:
        at = position[position >= 0]
        moved[at] = d[position >= 0]
        H[at, at] -= moved[at]
        return moved
    rows = _cluster_rows(record)  # (m, s)
    flat = np.where(rows[:, :, None] >= 0, position[rows], -1).reshape(len(rows), -1)
    pair = (flat[:, :, None] >= 0) & (flat[:, None, :] >= 0)
    left = np.broadcast_to(flat[:, :, None], pair.shape)[pair]
    right = np.broadcast_to(flat[:, None, :], pair.shape)[pair]
    H[left, right] -= d[pair]
    places = np.arange(flat.shape[1])
    moved[flat[flat >= 0]] = d[:, places, places][flat >= 0]
    return moved


def _cluster_rows(record: Record) -> NDArray:
    """Clusters (m, s) as rows of the record's entities, -1 for what it does not name."""
    if record.clusters is None:
        return np.arange(len(record.entities))[:, None]
    row = {int(entity): number for number, entity in enumerate(record.entities)}
    return np.array([[row.get(int(i), -1) for i in c] for c in record.clusters]).reshape(
        record.clusters.shape
    )


def _less(gain: Array, price: Array) -> Array:
    """gain - price, rounded up."""
    return gain - price + 16 * UNIT * (np.abs(gain) + price)


def _marginal(score: Array, gains: Array, places: int) -> Array:
    """What each of the free entities adds to the sum of the ``places`` largest ``gains``, the positive parts
    of the scores, falling; the difference is rounded once, which `tree` allows for."""
    if places <= 0:
        return score
    ahead = float(gains[places - 1]) if places <= len(gains) else 0.0
    behind = float(gains[places]) if places < len(gains) else 0.0
    return np.where(np.maximum(score, 0.0) >= ahead, score - behind, score - ahead)
