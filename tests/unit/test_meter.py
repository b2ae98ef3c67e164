"""Metrics: sums and counts, divided once, the same on every rank."""

from __future__ import annotations

import math
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from prefopt.training.meter import Meter
from prefopt.types import Stat


def test_a_mean_is_not_a_mean_of_means() -> None:
    meter = Meter()
    meter.add({"loss": Stat(1.0, 1)})
    meter.add({"loss": Stat(0.0, 3)})
    assert meter.result() == {"loss": 0.25}


def test_counts_may_be_weights() -> None:
    meter = Meter()
    meter.add({"loss": Stat(1.0, 0.25)})
    meter.add({"loss": Stat(0.0, 0.25)})
    assert meter.result() == {"loss": 2.0}


def test_what_counted_nothing_is_left_out() -> None:
    meter = Meter()
    meter.add({"kl": Stat(0.0, 0), "loss": Stat(2.0, 1)})
    assert meter.result() == {"loss": 2.0}


def test_a_metric_seen_by_one_micro_batch_only_is_divided_by_its_own_count() -> None:
    meter = Meter()
    meter.add({"loss": Stat(2.0, 2)})
    meter.add({"loss": Stat(2.0, 2), "accuracy": Stat(1.0, 2)})
    assert meter.result() == {"loss": 1.0, "accuracy": 0.5}


def test_infinities_and_nan_show() -> None:
    meter = Meter()
    meter.add({"a": Stat(math.inf, 1), "b": Stat(math.nan, 1)})
    meter.add({"a": Stat(-math.inf, 1), "b": Stat(1.0, 1)})
    assert all(math.isnan(value) for value in meter.result().values())


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    meter = Meter()
    meter.add({"loss": Stat(1.0 + rank, 1 + 2 * rank)} | ({"only": Stat(3.0, 2)} if rank else {}))
    Path(folder, f"{rank}.txt").write_text(repr(sorted(meter.result().items())))
    assert meter.stats["loss"] == Stat(1.0 + rank, 1 + 2 * rank)  # this rank's own sums are not changed
    dist.destroy_process_group()


def test_two_ranks_agree(tmp_path: Path) -> None:
    """(1 + 2) / (1 + 3), and a metric only one rank saw."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    assert {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)} == {"[('loss', 0.75), ('only', 1.5)]"}
