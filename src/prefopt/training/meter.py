"""Metrics as (sum, count): added over micro-batches and ranks, divided once when they are read."""

from __future__ import annotations

from collections.abc import Mapping

from prefopt.types import Stat


class Meter:
    """Adds what the micro-batches of a step report.

    >>> meter = Meter()
    >>> meter.add({"loss": Stat(6.0, 2)})
    >>> meter.add({"loss": Stat(1.0, 2), "kl": Stat(0.0, 0)})
    >>> meter.result()
    {'loss': 1.75}
    """

    def __init__(self) -> None:
        self.stats: dict[str, Stat] = {}

    def add(self, stats: Mapping[str, Stat]) -> None:
        """Take the sums and counts of one micro-batch."""
        for name, stat in stats.items():
            total, count = self.stats.get(name, Stat(0.0, 0.0))
            self.stats[name] = Stat(total + float(stat.total), count + float(stat.count))

    def result(self) -> dict[str, float]:
        """Means over all ranks, the same on each (every rank must call it); a metric that counted nothing is left out."""
        merged = Meter()
        for stats in _gather(self.stats):
            merged.add(stats)
        return {name: stat.total / stat.count for name, stat in merged.stats.items() if stat.count}


def _gather(stats: dict[str, Stat]) -> list[dict[str, Stat]]:
    """Every rank's sums, in the order of the ranks: ranks may have seen different metrics, so names travel along."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [stats]
    gathered: list[dict[str, Stat]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, stats)
    return gathered
