"""Which stages are submitted, and which can never run; no cluster is needed to know."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from oakum.pipeline.admission import ClusterCapacity, admit, find_misfit
from oakum.pipeline.stage import Resources, Stage

FOUR = ClusterCapacity(cpus=4, gpus=0, largest_node_cpus=2, largest_node_gpus=0, nodes=2)
GPUS = ClusterCapacity(cpus=16, gpus=2, largest_node_cpus=8, largest_node_gpus=1, nodes=2)


def cluster(*sizes: tuple[float, float]) -> ClusterCapacity:
    """Return what a cluster of such nodes, (CPUs, GPUs) each, has."""
    cpus, gpus = zip(*sizes, strict=True)
    return ClusterCapacity(sum(cpus), sum(gpus), max(cpus), max(gpus), len(sizes), sizes)


def stages(*resources: Resources) -> list[Stage]:
    return [Stage("train", {"number": i}, {}, {}, "", resources=each) for i, each in enumerate(resources)]


ONE, TWO, GANG, GPU = Resources(), Resources(cpus=2), Resources(workers=3), Resources(gpus=1)


@pytest.mark.parametrize(
    ("submitted", "ready", "admitted"),
    [
        ([], [ONE] * 20, [ONE] * 8),
        ([ONE] * 7, [TWO, ONE], [ONE]),
        ([ONE] * 8, [ONE], []),
        # A gang waits until it fits as a whole, and nothing overtakes it while it waits.
        ([], [GANG, ONE, ONE], [GANG, ONE]),
        ([ONE, ONE], [GANG, ONE], []),
        ([ONE], [GANG, ONE], [GANG]),
        ([GANG], [ONE, ONE], [ONE]),
        ([GANG], [TWO, GANG, ONE], []),
        ([GANG], [TWO, ONE], [ONE]),
        # Alone it may start even if nodes were lost since it was found feasible.
        ([], [Resources(workers=9), ONE], [Resources(workers=9)]),
    ],
)
def test_admission(submitted: list[Resources], ready: list[Resources], admitted: list[Resources]) -> None:
    assert [stage.resources for stage in admit(stages(*ready), stages(*submitted), FOUR)] == admitted


def test_gpus_are_counted_apart() -> None:
    assert [stage.resources for stage in admit(stages(*[GPU] * 6, ONE), [], GPUS)] == [GPU] * 4 + [ONE]


@pytest.mark.parametrize(
    ("resources", "found", "problem"),
    [
        (TWO, FOUR, None),
        (Resources(cpus=2, workers=2), FOUR, None),
        (Resources(cpus=3), FOUR, r"asks for 3 CPUs, but the largest node has 2; lower execution\.threads"),
        (Resources(workers=5), FOUR, r"asks for 5 workers with 1 CPUs .* has 4 CPUs .*; lower execution\.workers"),
        (GPU, FOUR, r"asks for a GPU, but the cluster has none; set execution\.gpus: 0"),
        (GPU, GPUS, None),
        (Resources(gpus=0.5, workers=4), GPUS, None),
        (Resources(gpus=2), GPUS, r"asks for 2 GPUs, but the largest node has 1; lower execution\.gpus"),
        (Resources(gpus=1, workers=3), GPUS, r"has 16 CPUs and 2 GPUs; lower execution\.workers"),
    ],
)
def test_what_can_never_run(resources: Resources, found: ClusterCapacity, problem: str | None) -> None:
    text = find_misfit(resources, found)
    assert text is None if problem is None else re.search(problem, text or ""), text


@pytest.mark.parametrize(
    ("resources", "sizes", "room"),
    [
        # Ten CPUs hold nine, but three workers of three do not fit into two nodes of five.
        (Resources(cpus=3, workers=3), [(5, 0), (5, 0)], 2),
        (Resources(cpus=3, workers=3), [(5, 0), (6, 0)], None),
        (Resources(cpus=5, workers=2), [(5, 0), (5, 0)], None),
        (Resources(cpus=2, workers=2), [(3, 0), (1, 0)], 1),
        # The GPU is on the node whose CPUs do not suffice; true of a single worker as well.
        (Resources(cpus=4, gpus=1), [(8, 0), (2, 1)], 0),
        (Resources(cpus=2, gpus=1), [(8, 0), (2, 1)], None),
        (Resources(cpus=1, gpus=2, workers=2), [(8, 3), (8, 1)], 1),
        (Resources(cpus=1, gpus=2, workers=2), [(8, 2), (8, 2)], None),
        # Parts of 0.4 are taken from single devices: two of each.
        (Resources(gpus=0.4, workers=5), [(8, 2)], 4),
        (Resources(gpus=0.4, workers=4), [(8, 2)], None),
        # As Ray counts GPUs, to four places.
        (Resources(gpus=0.1, workers=10), [(16, 1)], None),
        (Resources(gpus=1 / 3, workers=3), [(16, 1)], None),
    ],
)
def test_a_gang_must_fit_the_nodes_and_not_only_their_sum(
    resources: Resources, sizes: list[tuple[float, float]], room: int | None
) -> None:
    text = find_misfit(resources, cluster(*sizes))
    if room is None:
        assert text is None
    else:
        assert text is not None and f"its nodes have room for {room} of them; lower execution.workers" in text


def test_nodes_that_nobody_knows_yet_are_trusted_to_fit() -> None:
    wanted = Resources(cpus=3, workers=3)
    known = cluster((5, 0), (5, 0))
    assert find_misfit(wanted, known) is not None
    assert find_misfit(wanted, replace(known, sizes=())) is None
