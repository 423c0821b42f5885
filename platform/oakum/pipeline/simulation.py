"""A plan replayed on simulated nodes: who runs when, without running anything.

What may start is decided by the executor's own `admit`. The driver is one thread: each stage costs it `delay` seconds,
one after the other. What was submitted waits, in the order of its submission for each kind of request, for a node with
room: the first that is less than half busy, else the least busy one (Ray's default policy, without its dice). GPUs are
single devices, of which a stage may take a part. A gang starts when there is room for all its workers.

Everything else is left out: failures, nodes that come and go, the speed of disks and networks.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, merge
from itertools import islice
from math import ceil, floor

from oakum.config import ConfigError
from oakum.pipeline.admission import LOOKAHEAD, ClusterCapacity, admit, find_misfit, total
from oakum.pipeline.stage import Resources, Stage

# As Ray counts: parts of a GPU must add up exactly.
_GPU_UNITS = 10_000
_HALF_BUSY = 0.5


@dataclass(frozen=True)
class Nodes:
    """The simulated cluster: equal nodes."""

    count: int
    cpus: int
    gpus: int = 0

    def capacity(self) -> ClusterCapacity:
        return ClusterCapacity(
            cpus=self.count * self.cpus,
            gpus=self.count * self.gpus,
            largest_node_cpus=self.cpus,
            largest_node_gpus=self.gpus,
            nodes=self.count,
            sizes=((float(self.cpus), float(self.gpus)),) * self.count,
        )


@dataclass(frozen=True)
class Delays:
    """What goes by beside the stages' own seconds.

    Attributes:
        stage: seconds of the driver's one thread for each stage: choosing, submitting and settling it.
        gang: seconds from the moment a gang has its resources to the first line of its training.
    """

    stage: float = 0.0
    gang: float = 0.0

    def of(self, stage: Stage) -> float:
        """Return the least seconds that go by for a stage before it works."""
        return self.stage + self.before_work(stage)

    def before_work(self, stage: Stage) -> float:
        """Return the seconds for which a stage holds its resources before it works."""
        return self.gang if stage.resources.workers > 1 else 0.0


@dataclass(frozen=True)
class Run:
    """One simulated stage: it held its resources from `start` to `end` (seconds from the beginning)."""

    stage: Stage
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """A plan's time on simulated nodes.

    Attributes:
        runs: the stages that ran, in the order of their starts.
        critical_path: the longest chain of stages that wait for each other, first to last.
        critical_seconds: what the chain takes where nothing else is in its way.
    """

    nodes: Nodes
    delays: Delays
    runs: tuple[Run, ...]
    critical_path: tuple[Stage, ...]
    critical_seconds: float

    @property
    def makespan(self) -> float:
        """Seconds from the first submission to the last end."""
        return max((run.end for run in self.runs), default=0.0)

    @property
    def cpu_seconds(self) -> float:
        """Seconds of stages times their CPUs."""
        return sum((run.end - run.start) * total(run.stage.resources)[0] for run in self.runs)

    @property
    def gpu_seconds(self) -> float:
        """Seconds of stages times their GPUs."""
        return sum((run.end - run.start) * total(run.stage.resources)[1] for run in self.runs)

    def busy(self, parts: int = 10) -> tuple[list[float], list[float]]:
        """Return the fractions of all CPUs and of all GPUs that are busy in equal parts of the makespan."""
        cpus, gpus = [0.0] * parts, [0.0] * parts
        width = self.makespan / parts
        for run in self.runs if width else ():
            own_cpus, own_gpus = total(run.stage.resources)
            for part in range(max(0, floor(run.start / width) - 1), min(parts, ceil(run.end / width) + 1)):
                shared = min(run.end, (part + 1) * width) - max(run.start, part * width)
                if shared > 0:
                    cpus[part] += shared / width * own_cpus
                    gpus[part] += shared / width * own_gpus
        found = self.nodes.capacity()
        return [each / found.cpus for each in cpus], [each / found.gpus if found.gpus else 0.0 for each in gpus]

    def bounds(self) -> dict[str, float]:
        """Return what no schedule can beat, each by itself: seconds by what sets them."""
        found = self.nodes.capacity()
        return {
            "critical path": self.critical_seconds,
            "CPUs": self.cpu_seconds / found.cpus,
            "GPUs": self.gpu_seconds / found.gpus if found.gpus else 0.0,
            "scheduler": self.delays.stage * len(self.runs),
        }


def simulate(
    stages: Iterable[Stage],
    seconds: Mapping[str, float],
    nodes: Nodes,
    done: Collection[str] = frozenset(),
    delays: Delays | None = None,
) -> Simulation:
    """Replay a plan.

    Args:
        stages: the plan, inputs before their users.
        seconds: key -> what the stage takes on its own, for all that are not done.
        nodes: where it would run.
        done: keys that need not run.
        delays: what goes by beside the stages; None: nothing.

    Raises:
        ConfigError: a stage can never run on these nodes.
    """
    delays = delays or Delays()
    todo = [stage for stage in stages if stage.key not in done]
    for stage in todo:
        problem = find_misfit(stage.resources, nodes.capacity())
        if problem is not None:
            raise ConfigError(f"stage {stage.label!r} {problem}, or simulate larger nodes")
    path, longest = _critical_path(todo, seconds, delays)
    return Simulation(nodes, delays, tuple(_Replay(todo, seconds, nodes, delays).runs()), path, longest)


def _critical_path(
    todo: Sequence[Stage], seconds: Mapping[str, float], delays: Delays
) -> tuple[tuple[Stage, ...], float]:
    """Return the longest chain and its seconds."""
    ends: dict[str, float] = {}
    for stage in todo:
        begin = max((ends.get(each.key, 0.0) for each in stage.inputs.values()), default=0.0)
        ends[stage.key] = begin + delays.of(stage) + seconds[stage.key]
    last = max(todo, key=lambda stage: ends[stage.key], default=None)
    path: list[Stage] = []
    while last is not None:
        path.append(last)
        inputs = [each for each in last.inputs.values() if each.key in ends]
        last = max(inputs, key=lambda stage: ends[stage.key], default=None)
    return tuple(reversed(path)), max(ends.values(), default=0.0)


class _Replay:
    """One simulation under way. A stage is ready, then submitted, then waiting for a node, then running."""

    def __init__(self, todo: Sequence[Stage], seconds: Mapping[str, float], nodes: Nodes, delays: Delays) -> None:
        self._seconds = seconds
        self._delays = delays
        self._capacity = nodes.capacity()
        self._cluster = _Cluster(nodes)
        self._place_in_plan = {stage.key: index for index, stage in enumerate(todo)}
        self._users: dict[str, list[Stage]] = {stage.key: [] for stage in todo}
        self._missing: dict[str, int] = {}
        self._ready: dict[Resources, list[tuple[float, int, Stage]]] = {}
        self._submitted: dict[str, Stage] = {}
        self._waiting: dict[Resources, deque[tuple[int, Stage]]] = {}
        self._held: dict[str, list[_Share]] = {}
        self._events: list[tuple[float, int, bool, Stage]] = []
        self._count = 0
        self._now = 0.0
        self._driver_free = 0.0
        for stage in todo:
            needed = {each.key for each in stage.inputs.values()} & self._users.keys()
            self._missing[stage.key] = len(needed)
            for key in needed:
                self._users[key].append(stage)
            if not needed:
                self._add_ready(stage)

    def runs(self) -> Iterator[Run]:
        """Yield every stage as it starts."""
        while True:
            if self._now >= self._driver_free:
                self._submit()
            yield from self._start_what_fits()
            if not self._events:
                break
            self._advance()
        # What no node has room for was refused before the first stage.
        assert not any(self._waiting.values())

    def _add_ready(self, stage: Stage) -> None:
        queue = self._ready.setdefault(stage.resources, [])
        insort(queue, (-stage.weight, self._place_in_plan[stage.key], stage))

    def _submit(self) -> None:
        """Submit what the executor would, one stage after the other."""
        admitted = admit(self._ready_in_order(), self._submitted.values(), self._capacity)
        for stage in admitted:
            # Of equal requests, `admit` takes the first ones.
            _, _, first = self._ready[stage.resources].pop(0)
            assert first is stage
            self._submitted[stage.key] = stage
            self._driver_free = max(self._driver_free, self._now) + self._delays.stage
            self._push(self._driver_free, stage, is_end=False)

    def _ready_in_order(self) -> Iterator[Stage]:
        """Yield the ready stages in the ledger's order, without those that `admit` would surely refuse.

        Of equal requests, no more can be admitted than fit, and after one that is refused all are. One more than fits
        is shown, because a refused gang stops what comes after it, and another one, because parts of GPUs are rounded.
        """
        cpus = gpus = 0.0
        for stage in self._submitted.values():
            own_cpus, own_gpus = total(stage.resources)
            cpus, gpus = cpus + own_cpus, gpus + own_gpus
        shown = []
        for resources, queue in self._ready.items():
            own_cpus, own_gpus = total(resources)
            most = (LOOKAHEAD * self._capacity.cpus - cpus) / own_cpus
            if own_gpus:
                most = min(most, (LOOKAHEAD * self._capacity.gpus - gpus) / own_gpus)
            shown.append(islice(queue, max(0, floor(most)) + 2))
        for _, _, stage in merge(*shown):
            yield stage

    def _start_what_fits(self) -> Iterator[Run]:
        open_queues = {resources: queue for resources, queue in self._waiting.items() if queue}
        while open_queues:
            resources = min(open_queues, key=lambda each: open_queues[each][0][0])
            shares = self._cluster.place(resources)
            if shares is None:
                del open_queues[resources]
                continue
            _, stage = open_queues[resources].popleft()
            if not open_queues[resources]:
                del open_queues[resources]
            self._held[stage.key] = shares
            end = self._now + self._delays.before_work(stage) + self._seconds[stage.key]
            self._push(end, stage, is_end=True)
            yield Run(stage, self._now, end)

    def _advance(self) -> None:
        """Go to the next moment at which something happens, and let all of it happen."""
        self._now = self._events[0][0]
        while self._events and self._events[0][0] == self._now:
            _, number, is_end, stage = heappop(self._events)
            if is_end:
                self._finish(stage)
            else:
                self._waiting.setdefault(stage.resources, deque()).append((number, stage))

    def _finish(self, stage: Stage) -> None:
        del self._submitted[stage.key]
        for share in self._held.pop(stage.key):
            share.give_back()
        for user in self._users[stage.key]:
            self._missing[user.key] -= 1
            if not self._missing[user.key]:
                self._add_ready(user)

    def _push(self, time: float, stage: Stage, *, is_end: bool) -> None:
        heappush(self._events, (time, self._count, is_end, stage))
        self._count += 1


class _Node:
    def __init__(self, cpus: int, gpus: int) -> None:
        self.cpus = self.free_cpus = cpus
        self.free_gpus = [_GPU_UNITS] * gpus

    def used(self) -> float:
        """Return the busy fraction of what is busiest."""
        used = 1 - self.free_cpus / self.cpus
        if self.free_gpus:
            used = max(used, 1 - sum(self.free_gpus) / (_GPU_UNITS * len(self.free_gpus)))
        return used

    def take(self, cpus: int, units: int) -> _Share | None:
        """Take CPUs and parts of GPUs: several GPUs as whole ones, less than one from a single device."""
        if cpus > self.free_cpus:
            return None
        devices: list[int] = []
        if units:
            least = min(units, _GPU_UNITS)
            able = [index for index, free in enumerate(self.free_gpus) if free >= least]
            # A part goes to the fullest device that has room, so that whole ones stay free.
            able.sort(key=lambda index: self.free_gpus[index])
            devices = able[: ceil(units / _GPU_UNITS)]
            if len(devices) < ceil(units / _GPU_UNITS):
                return None
        share = _Share(self, cpus, devices, min(units, _GPU_UNITS))
        share.take()
        return share


@dataclass(frozen=True)
class _Share:
    node: _Node
    cpus: int
    devices: list[int]
    units: int

    def take(self) -> None:
        self._change(-1)

    def give_back(self) -> None:
        self._change(1)

    def _change(self, sign: int) -> None:
        self.node.free_cpus += sign * self.cpus
        for device in self.devices:
            self.node.free_gpus[device] += sign * self.units


class _Cluster:
    def __init__(self, nodes: Nodes) -> None:
        self._nodes = [_Node(nodes.cpus, nodes.gpus) for _ in range(nodes.count)]

    def place(self, resources: Resources) -> list[_Share] | None:
        """Take room for all workers of a stage, or nothing."""
        shares: list[_Share] = []
        for _ in range(resources.workers):
            share = self._place_one(resources.cpus, round(resources.gpus * _GPU_UNITS))
            if share is None:
                for each in shares:
                    each.give_back()
                return None
            shares.append(share)
        return shares

    def _place_one(self, cpus: int, units: int) -> _Share | None:
        able = [node for node in self._nodes if node.free_cpus >= cpus and sum(node.free_gpus) >= units]
        able.sort(key=lambda node: max(_HALF_BUSY, node.used()))
        return next((share for node in able if (share := node.take(cpus, units)) is not None), None)
