"""What is asked of a support beyond its price: entities that must be in it, how many, which together.

A support y in {0, 1}^N obeys the rules if y_i = 1 for every required entity, sum_i y_i <= ``most``,
y_i <= y_p where entity i needs entity p (a hierarchy, such as an interaction with its main effects), and y is
none of the ``forbidden`` supports: with those found already forbidden, the next best is the optimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class NoSupportLeft(ValueError):
    """Every support that obeys the other rules is forbidden."""


@dataclass(frozen=True, eq=False)
class SupportRules:
    """Rules for supports of N entities.

    required : (N,) bool, the entities of every support
    most : the largest number of entities, or None
    needs : (R, 2) int64, pairs (i, p): entity i only together with entity p
    forbidden : (F, N) bool, supports that do not count
    """

    required: Tensor
    most: int | None
    needs: Tensor
    forbidden: Tensor

    def allow(self, support: Tensor) -> Tensor:
        """Whether supports (..., N) bool obey the rules: (...) bool.

        >>> rules = support_rules(3, max_entities=2, needs={2: [0]})
        >>> rules.allow(torch.tensor([[True, False, True], [False, False, True]])).tolist()
        [True, False]
        """
        fine = (support | ~self.required).all(-1)
        if self.most is not None:
            fine = fine & (support.sum(-1) <= self.most)
        if len(self.needs):
            fine = fine & (~support[..., self.needs[:, 0]] | support[..., self.needs[:, 1]]).all(-1)
        for other in self.forbidden:
            fine = fine & (support != other).any(-1)
        return fine

    def close(self, alive: Tensor, one: Tensor) -> tuple[Tensor, Tensor, bool]:
        """What the rules imply where only entities ``alive`` (N,) can be used and those at ``one`` are:
        alive, one, and whether any support is left.

        >>> rules = support_rules(3, max_entities=2, needs={2: [0]})
        >>> yes, no = torch.ones(3, dtype=torch.bool), torch.tensor([False, False, True])
        >>> [x.tolist() if torch.is_tensor(x) else x for x in rules.close(yes, no)]
        [[True, False, True], [True, False, True], True]
        """
        alive, one = alive.clone(), one | self.required
        child, parent = self.needs.unbind(1)
        for _ in range(len(self.needs) + 1):
            before = int(one.sum()) - int(alive.sum())
            one[parent[one[child]]] = True
            alive[child[~alive[parent]]] = False
            if int(one.sum()) - int(alive.sum()) == before:
                break
        possible = bool((alive | ~one).all())
        if self.most is not None:
            used = int(one.sum())
            possible = possible and used <= self.most
            if used == self.most:
                alive &= one
        if len(self.forbidden) and bool((alive == one).all()):
            possible = possible and not bool((self.forbidden == one).all(1).any())
        return alive, one, possible

    def mend(self, support: Tensor, promise: Tensor) -> Tensor:
        """A support (N,) near the one given that obeys the rules: what is needed joins it; while it
        has too many entities, those of the least ``promise`` (N,) leave it that none of the others needs."""
        support = support | self.required
        child, parent = self.needs.unbind(1)
        for _ in range(len(self.needs)):
            support[parent[support[child]]] = True
        if self.most is None:
            return support
        for _ in range(int(support.sum()) - self.most):
            held = self.required.clone()
            held[parent[support[child]]] = True
            loose = support & ~held
            support[torch.where(loose, promise, torch.inf).argmin()] = False
        return support


def support_rules(
    count: int,
    required: Iterable[int] = (),
    max_entities: int | None = None,
    needs: Mapping[int, Iterable[int]] | None = None,
    forbidden: Iterable[Iterable[int]] = (),
) -> SupportRules | None:
    """Check the rules for ``count`` entities; None where there are none.

    Raises ``ValueError`` for entities that there are not, one that needs itself over others, and rules that
    no support obeys.

    >>> support_rules(3) is None
    True
    >>> support_rules(2, required=[0, 1], max_entities=1)
    Traceback (most recent call last):
    ...
    ValueError: max_entities is 1, but 2 entities are required, with those that they need
    """
    asked = _indices(required, count, "required")
    pairs = [
        (child, parent)
        for key, others in (needs or {}).items()
        for child in _indices([key], count, "needs")
        for parent in _indices(others, count, "needs")
    ]
    others = list(forbidden)
    supports = torch.zeros((len(others), count), dtype=torch.bool)
    for row, members in zip(supports, others, strict=True):
        row[_indices(members, count, "forbidden")] = True
    if not asked and not pairs and max_entities is None and not len(supports):
        return None
    if max_entities is not None and (
        isinstance(max_entities, bool) or not isinstance(max_entities, int) or max_entities < 0
    ):
        raise ValueError(f"max_entities must be a whole number of at least 0, got {max_entities!r}")
    above: dict[int, set[int]] = {}
    for child, parent in pairs:
        above.setdefault(child, set()).add(parent)
    for start in above:
        seen: set[int] = set()
        ahead = [start]
        while ahead:
            for parent in above.get(ahead.pop(), ()):
                if parent == start:
                    raise ValueError(f"needs: entity {start} needs itself, over the others")
                if parent not in seen:
                    seen.add(parent)
                    ahead.append(parent)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[asked] = True
    needed = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    rules = SupportRules(mask, max_entities, needed, supports)
    _, one, _ = rules.close(torch.ones_like(mask), mask)
    if max_entities is not None and int(one.sum()) > max_entities:
        raise ValueError(
            f"max_entities is {max_entities}, but {int(one.sum())} entities are required, with those "
            "that they need"
        )
    return SupportRules(one, max_entities, needed, supports)


def _indices(values: Iterable[int], count: int, name: str) -> list[int]:
    found = []
    for value in values:
        if isinstance(value, bool) or value != int(value) or not 0 <= value < count:
            raise ValueError(f"{name} names entity {value!r}; there are 0 to {count - 1}")
        found.append(int(value))
    return found
