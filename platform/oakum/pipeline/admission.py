"""Which ready stages go to a cluster now, and which can never run there.

The executor on Ray and the simulation ask the same functions; neither this module nor its callers' questions need Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from oakum.pipeline.stage import Resources, Stage

# So many times what fits is submitted, so that workers never wait and an autoscaler sees demand.
LOOKAHEAD = 2
# No stage asks for less: what leaves less room than this has room for none.
_LEAST_CPUS = 1
# As Ray counts: parts of a GPU must add up exactly.
_GPU_UNITS = 10_000


@dataclass(frozen=True)
class ClusterCapacity:
    """What the cluster has, in all and on its largest nodes.

    Attributes:
        sizes: (CPUs, GPUs) of each node; empty where they are not known, as of the nodes that an autoscaler may add.
    """

    cpus: float
    gpus: float
    largest_node_cpus: float
    largest_node_gpus: float
    nodes: int
    sizes: tuple[tuple[float, float], ...] = ()


def admit(ready: Iterable[Stage], submitted: Iterable[Stage], found: ClusterCapacity) -> list[Stage]:
    """Return which ready stages to submit now, in their order.

    As much again as fits is submitted beyond it, so that workers never wait and an autoscaler sees demand. A gang needs
    all its workers at once: it is submitted only when they fit beside all that was submitted, nothing that comes after
    it in the order is let past until then, and while it runs nothing is submitted beyond what fits.

    Takes time linear in the two arguments together, and looks at no more ready stages than it must.
    """
    used_cpus, used_gpus, is_empty, has_gang = 0.0, 0.0, True, False
    for stage in submitted:
        cpus, gpus = total(stage.resources)
        used_cpus, used_gpus, is_empty = used_cpus + cpus, used_gpus + gpus, False
        has_gang = has_gang or stage.resources.workers > 1
    admitted: list[Stage] = []
    for stage in ready:
        is_gang = stage.resources.workers > 1
        cpus, gpus = _total_at_best(stage.resources, found)
        factor = 1 if is_gang or has_gang else LOOKAHEAD
        fits = used_cpus + cpus <= factor * found.cpus and used_gpus + gpus <= factor * found.gpus
        if is_empty or fits:
            used_cpus, used_gpus, is_empty = used_cpus + cpus, used_gpus + gpus, False
            has_gang = has_gang or is_gang
            admitted.append(stage)
        elif is_gang or used_cpus + _LEAST_CPUS > factor * found.cpus:
            break
    return admitted


def find_misfit(resources: Resources, found: ClusterCapacity) -> str | None:
    """Return why a stage can never run on what was found, and what to change; None when it can."""
    if resources.cpus > found.largest_node_cpus:
        return (
            f"asks for {resources.cpus} CPUs, but the largest node has {found.largest_node_cpus:g}; lower "
            "execution.threads (or prior.threads)"
        )
    if resources.gpus > 0 and found.gpus == 0:
        return "asks for a GPU, but the cluster has none; set execution.gpus: 0"
    if resources.gpus > found.largest_node_gpus:
        return (
            f"asks for {resources.gpus:g} GPUs, but the largest node has {found.largest_node_gpus:g}; lower "
            "execution.gpus"
        )
    fewest = resources.least_workers
    if resources.cpus * fewest > found.cpus or resources.gpus * fewest > found.gpus:
        return (
            f"asks for {fewest} workers with {resources.cpus} CPUs and {resources.gpus:g} GPUs each, but "
            f"the cluster has {found.cpus:g} CPUs and {found.gpus:g} GPUs; lower execution.workers"
        )
    places = sum(_count_places(resources, *size) for size in found.sizes)
    if found.sizes and places < fewest:
        return (
            f"asks for {fewest} workers with {resources.cpus} CPUs and {resources.gpus:g} GPUs each, which "
            f"the cluster has in all, but its nodes have room for {places} of them; lower execution.workers or "
            "execution.threads"
        )
    return None


def _count_places(resources: Resources, cpus: float, gpus: float) -> int:
    """Return how many workers an empty node has room for. Less than one GPU comes from a single device."""
    by_cpus = int(cpus // resources.cpus)
    wanted = round(resources.gpus * _GPU_UNITS)
    if not wanted:
        return by_cpus
    by_gpus = int(gpus) * (_GPU_UNITS // wanted) if wanted < _GPU_UNITS else int(gpus * _GPU_UNITS) // wanted
    return min(by_cpus, by_gpus)


def _total_at_best(resources: Resources, found: ClusterCapacity) -> tuple[float, float]:
    """Return the CPUs and GPUs of as many workers as an empty cluster has room for; of the fewest if that is less."""
    room = found.cpus // resources.cpus
    if resources.gpus > 0:
        room = min(room, found.gpus // resources.gpus)
    workers = min(resources.workers, max(resources.least_workers, int(room)))
    return float(resources.cpus * workers), resources.gpus * workers


def total(resources: Resources) -> tuple[float, float]:
    """Return the CPUs and GPUs of all workers of a stage together."""
    return float(resources.cpus * resources.workers), resources.gpus * resources.workers
