"""Plans: the numbers of the calls to compute, known before the first one is made.

Every plan begins with call 0, and is a sorted tuple. N is the number of calls of the run, which is more than its steps
for samplers that call twice a step.
"""

from __future__ import annotations

Plan = tuple[int, ...]


def calls_for(speed: float, n: int, depth: float = float("inf")) -> int:
    """How many of `n` calls may be computed to be `speed` times as fast, to the nearest.

    depth: the blocks of a network whose other calls run one block; infinite where they run none.
    """
    return round((n / speed - n / depth) / (1 - 1 / depth))


def fixed_interval(n: int, interval: int, first: int, last: bool = False) -> Plan:
    """The first calls, and then every `interval`-th; with `last`, the last call too."""
    calls = {*range(min(first, n)), *range(first - 1, n, interval)}
    return tuple(sorted(calls | {n - 1} if last else calls))


def even(n: int, k: int) -> Plan:
    """`k` calls: the first two, and others evenly spaced up to the last of `n`."""
    return _ascending([0.0, *(1 + (n - 2) * j / max(k - 2, 1) for j in range(k - 1))], n - 1)


def dense_early(n: int, k: int, power: float) -> Plan:
    """`k` calls at (j / (k - 1))^power of the way to the second-to-last of `n`, the second at 1: gaps that grow."""
    end = n - 2 if k < n else n - 1
    positions = [(j / max(k - 1, 1)) ** power * end for j in range(k)]
    return _ascending([position if j != 1 else 1.0 for j, position in enumerate(positions)], end)


def growing_gaps(n: int, window: float, growth: float, first: int) -> Plan:
    """Spectrum's (arXiv 2603.01623, appendix B.1): `first` calls, then one after each gap of a length that grows.

    A gap is `window` calls from one computed call to the next, rounded down, and `growth` more after each.
    """
    calls = list(range(min(first, n)))
    since = 0
    for call in range(first, n):
        since += 1
        if since >= int(window + 1e-9):
            calls.append(call)
            window += growth
            since = 0
    return tuple(calls)


def growing_gaps_of(n: int, k: int, window: float = 2.0) -> Plan:
    """The growing gaps that come nearest to `k` calls in all; of those with as many, the one whose gaps grow at the
    middle rate, which is the paper's at 14 and at 10 of 50 calls.

    The first tenth of the calls is computed, the paper's five of 50, but no more than half of `k`.
    """
    if k >= n:
        return tuple(range(n))
    first = max(2, min(round(n / 10), k // 2))
    plans = list(dict.fromkeys(growing_gaps(n, window, step / 20, first) for step in range(20 * n)))
    off = min(abs(len(plan) - k) for plan in plans)
    nearest = [plan for plan in plans if abs(len(plan) - k) == off]
    return nearest[len(nearest) // 2]


def _ascending(positions: list[float], end: int) -> Plan:
    """Rounded, and moved where two would be one: as many distinct calls, none beyond `end`."""
    calls: list[int] = []
    for position in positions:
        calls.append(max(round(position), calls[-1] + 1 if calls else 0))
    for i in reversed(range(len(calls))):
        calls[i] = min(calls[i], end - (len(calls) - 1 - i))
    return tuple(calls)
