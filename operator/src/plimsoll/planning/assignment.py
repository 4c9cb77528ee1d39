"""Which way each of several new deployments runs, decided together: numbers in, numbers out.

One deployment takes the cheapest way that has room, and nothing is better. Several compete: the first would
take the small GPUs that only the second could have used. So a few drafts are made, each is improved by moves
that anyone can follow, and the best is kept:

1. in order of precedence, everyone takes the cheapest way that has room;
2. the same, but scarce slots have a price, so that who can do without them leaves them;
3. the same with prices that admit as much as possible, whatever it costs;
4. as 3, and of equal priority those come first that hold most for the slots they take; kept only where age
   would cost more than a hundredth of what is admitted.

Moves: who finds no room gets it if somebody can move elsewhere; who has a cheaper way takes it if whoever is
there loses less by moving. Slots count, not nodes: with sizes 1, 2, 4, 8 a set of stages fits exactly when
for every size s the GPUs in free slots of s are at least the GPUs of stages of size s or more, and placing by
slot loss then finds the places (docs/planning.md). Prices of slots are Lagrange multipliers by subgradient
steps (Held, Wolfe, Crowder 1974). They only guide, so their arithmetic in floats decides no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STEPS = 60
"""Subgradient steps; prices change little after that on instances of up to 1,000 deployments."""
SHRINK = 0.97
FIRST_STEP = 1.5
BUDGET = 200_000
"""Moves looked at for one draft. A bound on time that does not depend on the machine, so that equal snapshots
give equal plans."""
AGE_PERCENT = 99
"""Age decides between equal priorities as long as so much is admitted of what density would admit. Always age
costs 1.3 % of the admitted weight in the mean and 4 % at worst, always density keeps old deployments waiting
for nothing (docs/benchmarks.md)."""
ADMISSION = 4.0
"""How much more a GPU that is admitted counts than the dearest way costs a GPU."""


@dataclass(frozen=True, slots=True)
class Way:
    """One option of a deployment. `rows`: the slot counts that it takes `gpus` from, for one replica."""

    cost: int
    gpus: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """A deployment that needs places. `ways`: cheapest first, at least one; deployments that can run alike
    should share the tuple."""

    ways: tuple[Way, ...]
    replicas: int
    level: int
    """Rank of its priority: 0 is the lowest."""

    @property
    def value(self) -> int:
        """GPUs of one replica at its cheapest: how much it is to admit it."""
        return self.ways[0].gpus


@dataclass(frozen=True, slots=True)
class Pick:
    way: Way
    replicas: int


def assign(demands: Sequence[Demand], slots: Sequence[int]) -> list[Pick | None]:
    """A way for each demand, in the order of `demands` (precedence), or None where no replica has room.
    `slots`: GPUs in free slots by row."""
    if not any(_Draft(demands, slots).most(demand, way) for demand in demands for way in demand.ways):
        return [None] * len(demands)
    precedence = range(len(demands))
    plain = _drafted(demands, slots, _Guide(demands), precedence)
    thrifty, admitting = (_Guide(demands, slots, plain.picks, costs=costs) for costs in (True, False))
    by_age = min(
        plain,
        _drafted(demands, slots, thrifty, precedence),
        _drafted(demands, slots, admitting, precedence),
        key=lambda draft: draft.merit(),
    )
    order = sorted(precedence, key=lambda index: admitting.density(demands[index]))
    dense = _drafted(demands, slots, admitting, order)
    if 100 * by_age.worth >= AGE_PERCENT * dense.worth and not dense.complete:
        return by_age.picks
    return min(by_age, dense, key=lambda draft: draft.merit()).picks


def _drafted(demands: Sequence[Demand], slots: Sequence[int], guide: _Guide, order: Sequence[int]) -> _Draft:
    draft = _Draft(demands, slots)
    for index in order:
        draft.admit(index, guide)
    draft.economise()
    for index in order:
        if draft.picks[index] is None:
            draft.admit(index, guide)
    for index in order:
        if draft.picks[index] is None:
            draft.admit_some(index, guide)
    return draft


class _Draft:
    """An assignment in the making. Every pick is counted in `left`."""

    def __init__(self, demands: Sequence[Demand], slots: Sequence[int]) -> None:
        self._demands = demands
        self._left = list(slots)
        self._budget = BUDGET
        self._alike: dict[tuple[int, int], dict[int, None]] = {}
        """Who holds the same: by way and replicas. Of those it is enough to look at one."""
        self.picks: list[Pick | None] = [None] * len(demands)

    def merit(self) -> tuple[object, ...]:
        """Sort key, best first: most admitted of the highest priority, then of the next; then cost."""
        admitted = dict.fromkeys(sorted({demand.level for demand in self._demands}, reverse=True), 0)
        cost = 0
        for demand, pick in zip(self._demands, self.picks, strict=True):
            if pick:
                admitted[demand.level] += demand.value * pick.replicas
                cost += pick.way.cost * pick.replicas
        return (*(-gpus for gpus in admitted.values()), cost)

    @property
    def worth(self) -> float:
        """Of all that is admitted, higher priorities counting more."""
        return sum(
            pick.replicas * _worth(demand)
            for demand, pick in zip(self._demands, self.picks, strict=True)
            if pick
        )

    @property
    def complete(self) -> bool:
        """Whether everyone has all replicas."""
        return all(
            pick is not None and pick.replicas == demand.replicas
            for demand, pick in zip(self._demands, self.picks, strict=True)
        )

    def most(self, demand: Demand, way: Way) -> int:
        """Replicas that fit."""
        return min(demand.replicas, *(max(0, self._left[row]) // way.gpus for row in way.rows))

    def admit(self, index: int, guide: _Guide) -> None:
        """All replicas: straight, or by moving one other."""
        demand = self._demands[index]
        ways = guide.sorted(demand)
        straight = next((way for way in ways if self.most(demand, way) == demand.replicas), None)
        if straight is not None:
            self._set(index, Pick(straight, demand.replicas))
            return
        for way in ways:
            if self._swap(index, Pick(way, demand.replicas), limit=None):
                return

    def admit_some(self, index: int, guide: _Guide) -> None:
        """As many replicas as fit."""
        demand = self._demands[index]
        best = max(guide.sorted(demand), key=lambda way: self.most(demand, way))
        if replicas := self.most(demand, best):
            self._set(index, Pick(best, replicas))

    def economise(self) -> None:
        """Cheaper ways, one deployment or two at a time, until nothing gets cheaper."""
        changed = True
        while changed and self._budget > 0:
            changed = False
            for index, pick in enumerate(self.picks):
                if pick and self._cheaper(index, pick):
                    changed = True

    def _cheaper(self, index: int, before: Pick) -> bool:
        self._set(index, None)
        for way in self._demands[index].ways:
            gain = (before.way.cost - way.cost) * before.replicas
            if gain <= 0:
                break
            wished = Pick(way, before.replicas)
            if self._fits(wished):
                self._set(index, wished)
                return True
            if self._swap(index, wished, limit=gain):
                return True
        self._set(index, before)
        return False

    def _swap(self, index: int, wished: Pick, limit: int | None) -> bool:
        """Take `wished` for `index`, which holds nothing, by moving the one other that loses least, and less
        than `limit`."""
        short = [row for row in wished.way.rows if self._left[row] < wished.way.gpus * wished.replicas]
        best: tuple[int, int, Pick] | None = None
        for other, standing in self._movable(wished, short):
            self._count(standing, -1)
            self._count(wished, 1)
            for way in self._demands[other].ways:
                loss = (way.cost - standing.way.cost) * standing.replicas
                least = best[0] if best else limit
                if least is not None and loss >= least:
                    break
                moved = Pick(way, standing.replicas)
                if way is not standing.way and self._fits(moved):
                    best = (loss, other, moved)
                    break
            self._count(wished, -1)
            self._count(standing, 1)
        if best is None:
            return False
        _, other, moved = best
        self._set(other, moved)
        self._set(index, wished)
        return True

    def _movable(self, wished: Pick, short: Sequence[int]) -> Iterator[tuple[int, Pick]]:
        """Who holds enough of what is short; one of those that are alike."""
        asked = wished.way.gpus * wished.replicas
        for alike in list(self._alike.values()):
            other = next(iter(alike), None)
            standing = self.picks[other] if other is not None else None
            if other is None or standing is None or self._budget <= 0:
                continue
            self._budget -= 1
            held, rows = standing.way.gpus * standing.replicas, standing.way.rows
            if all(row in rows and self._left[row] + held >= asked for row in short):
                yield other, standing

    def _fits(self, pick: Pick) -> bool:
        asked = pick.way.gpus * pick.replicas
        return all(self._left[row] >= asked for row in pick.way.rows)

    def _set(self, index: int, pick: Pick | None) -> None:
        if before := self.picks[index]:
            self._count(before, -1)
            del self._alike[id(before.way), before.replicas][index]
        if pick:
            self._count(pick, 1)
            self._alike.setdefault((id(pick.way), pick.replicas), {})[index] = None
        self.picks[index] = pick

    def _count(self, pick: Pick, sign: int) -> None:
        for row in pick.way.rows:
            self._left[row] -= sign * pick.way.gpus * pick.replicas


class _Guide:
    """In what order ways are tried: by cost, and by what the slots they take are worth to others.

    `slots` and `picks`: how many there are, and an assignment that is possible; without them nothing is
    scarce. `costs`: whether costs count beside the slots.
    """

    def __init__(
        self,
        demands: Sequence[Demand],
        slots: Sequence[int] = (),
        picks: Sequence[Pick | None] = (),
        *,
        costs: bool = True,
    ) -> None:
        dearest = max((way.cost / way.gpus for demand in demands for way in demand.ways), default=1.0)
        self._unit = 1 / dearest if costs and dearest else 0.0
        self._prices = [0.0] * len(slots)
        self._sorted: dict[int, list[Way]] = {}
        if slots:
            self._prices = self._found(demands, slots, picks)

    def sorted(self, demand: Demand) -> list[Way]:
        key = id(demand.ways)
        if key not in self._sorted:
            self._sorted[key] = sorted(demand.ways, key=lambda way: (self._price(way), way.cost))
        return self._sorted[key]

    def density(self, demand: Demand) -> tuple[int, float]:
        """Sort key: higher priority first, then who takes least of what is scarce for what it holds."""
        return -demand.level, self._price(self.sorted(demand)[0]) / demand.value

    def _price(self, way: Way) -> float:
        if not self._prices:
            return way.cost * self._unit
        return way.cost * self._unit + way.gpus * sum([self._prices[row] for row in way.rows])

    def _found(
        self, demands: Sequence[Demand], slots: Sequence[int], picks: Sequence[Pick | None]
    ) -> list[float]:
        """What a GPU of each row is worth when most is to be admitted, by priority, and cheaply. The step is
        Polyak's: by how far the bound is from what `picks` reach."""
        reached = sum(
            pick.replicas * (_worth(demand) - pick.way.cost * self._unit)
            for demand, pick in zip(demands, picks, strict=True)
            if pick
        )
        best, lowest, step = self._prices, float("inf"), FIRST_STEP
        for _ in range(STEPS):
            gain, load = self._answered(demands, len(slots))
            bound = gain + sum(price * there for price, there in zip(self._prices, slots, strict=True))
            if bound < lowest:
                best, lowest = self._prices, bound
            slope = [
                taken - there if price > 0 or taken > there else 0
                for price, taken, there in zip(self._prices, load, slots, strict=True)
            ]
            length = sum(part * part for part in slope)
            if not length or bound <= reached:
                break
            self._prices = [
                max(0.0, price + step * (bound - reached) / length * part)
                for price, part in zip(self._prices, slope, strict=True)
            ]
            step *= SHRINK
        return best

    def _answered(self, demands: Sequence[Demand], rows: int) -> tuple[float, list[int]]:
        """What everybody gains at these prices, and how much of each row they would take."""
        gain, load = 0.0, [0] * rows
        known: dict[int, tuple[float, Way]] = {}
        for demand in demands:
            if id(demand.ways) not in known:
                known[id(demand.ways)] = min(
                    ((self._price(way), way) for way in demand.ways), key=lambda pair: pair[0]
                )
            price, way = known[id(demand.ways)]
            worth = _worth(demand)
            if price < worth:
                gain += demand.replicas * (worth - price)
                for row in way.rows:
                    load[row] += way.gpus * demand.replicas
        return gain, load


def _worth(demand: Demand) -> float:
    """Of one replica that is admitted, where the dearest GPU costs 1."""
    return (demand.level + 1) * demand.value * ADMISSION
