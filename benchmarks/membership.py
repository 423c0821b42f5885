"""What the membership side costs against the plain forms of the same numbers.

Every comparison runs in one process on one thread. Both sides take turns, and their outputs must agree. Times are CPU
seconds of the process, so that other work on the machine disturbs them less; the ratio is the median over rounds of
slow / fast.

* gradients: statistics of every sample's gradient, against loops with one sample at a time.
* threshold: the best of 78,928 candidates (both shadow folds of Purchase100), against a trial of each.
* surrogate: a step of adversarial regularization's surrogate, without and with gradients through the target.
* dpsgd: a step of DP-SGD and an undefended step on the same network. They are different methods: a cost, not a gain.

    python benchmarks/membership.py --rounds 5 --out benchmarks/results/membership.json
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew
from torch import Tensor, nn

from oakum.attacks.membership._gradients import gradient_statistics
from oakum.defenses.base import Defense
from oakum.defenses.dpsgd import DPSGD
from oakum.metrics.membership import select_threshold
from oakum.models.base import Classifier, InputShape, count_parameters
from oakum.models.mlp import MLP
from oakum.models.resnet20 import ResNet20
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState

CLASSES = 100
CANDIDATES = 39_464
Table = NDArray[np.float64]
Result = dict[str, Any]


def resnet20() -> Classifier:
    torch.manual_seed(0)
    return ResNet20(ResNet20.Config(mean=(0.5,), std=(0.2,)), InputShape((3, 32, 32)), CLASSES).eval()


def purchase_mlp() -> Classifier:
    torch.manual_seed(0)
    return MLP(MLP.Config(), InputShape((600,)), CLASSES).eval()


def samples(model: Classifier, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *model.input_shape.dims, generator=generator)
    return x, torch.randint(CLASSES, (count,), generator=generator)


def gradient_of_x(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the summed loss with respect to the normalized input, (B, *dims)."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    return gradient * model.input_scale


def gradient_of_w(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the summed loss with respect to all parameters, concatenated."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), list(model.parameters()))
    return torch.cat([gradient.ravel() for gradient in gradients])


def seven(gradient: Tensor) -> list[float]:
    """Return the statistics as the released code of RelaxLoss takes them: on the host, vector by vector."""
    vector = gradient.numpy().ravel()
    sizes = np.abs(vector)
    norms = [np.linalg.norm(vector, 1), np.linalg.norm(vector, 2)]
    return [float(v) for v in (*norms, sizes.min(), sizes.max(), vector.mean(), skew(vector), kurtosis(vector))]


def norms_as_released(model: Classifier, x: Tensor, y: Tensor) -> Table:
    """Return `x/l1`, `x/l2`, `w/l1`, `w/l2` (N, 4): two passes and all statistics for every sample, as released."""
    rows = []
    for one in zip(x.split(1), y.split(1), strict=True):
        rows.append(seven(gradient_of_x(model, *one))[:2] + seven(gradient_of_w(model, *one))[:2])
    return np.array(rows)


def norms_in_one_pass(model: Classifier, x: Tensor, y: Tensor) -> Table:
    """Return the same with one pass for every sample and no other statistic: the leanest loop."""
    rows = []
    for sample, label in zip(x.split(1), y.split(1), strict=True):
        sample = sample.clone().requires_grad_()
        of_x, *of_w = torch.autograd.grad(F.cross_entropy(model(sample), label), [sample, *model.parameters()])
        of_x = of_x * model.input_scale
        l1, l2 = torch.stack([g.abs().sum() for g in of_w]).sum(), torch.stack([g.norm() for g in of_w]).norm()
        rows.append(torch.stack([of_x.abs().sum(), of_x.norm(), l1, l2]))
    return torch.stack(rows).double().numpy()


def norms_by_oakum(model: Classifier, x: Tensor, y: Tensor) -> Table:
    """Return the same from `gradient_statistics`, which takes all fourteen."""
    found = gradient_statistics(model, x, y)
    return np.stack([found[name] for name in ("x/l1", "x/l2", "w/l1", "w/l2")], axis=1)


def x_by_sample(model: Classifier, x: Tensor, y: Tensor) -> Table:
    parts = zip(x.split(1), y.split(1), strict=True)
    return torch.cat([gradient_of_x(model, *part) for part in parts]).double().numpy()


def x_by_batch(model: Classifier, x: Tensor, y: Tensor) -> Table:
    parts = zip(x.split(32), y.split(32), strict=True)
    return torch.cat([gradient_of_x(model, *part) for part in parts]).double().numpy()


def threshold_by_trial(members: Table, others: Table) -> float:
    """Return the first threshold with the best balanced accuracy, each candidate tried on all scores."""
    best, threshold = 0.0, 0.0
    for candidate in np.concatenate([members, others]):
        accuracy = 0.5 * (np.mean(members >= candidate) + np.mean(others < candidate))
        if accuracy > best:
            best, threshold = accuracy, float(candidate)
    return threshold


def surrogate_step(model: Classifier, x: Tensor, y: Tensor, through_target: bool) -> Table:
    """Return the gradient of RelaxLoss's surrogate for images on a batch whose first half are members."""
    torch.manual_seed(0)
    surrogate = nn.Sequential(nn.Linear(CLASSES, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
    is_member = (torch.arange(len(x)) < len(x) // 2).float()
    model.zero_grad()
    with torch.set_grad_enabled(through_target):
        logits = model(x).sort(dim=1).values
    F.mse_loss(surrogate(logits).squeeze(1), is_member).backward()
    return torch.cat([p.grad.ravel() for p in surrogate.parameters() if p.grad is not None]).double().numpy()


def compared(slow: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> Result:
    """Run both in turn after a warm-up; return the medians of their times."""
    slow(), fast()
    times = [(seconds(slow), seconds(fast)) for _ in range(rounds)]
    return {
        "slow_seconds": statistics.median(a for a, _ in times),
        "fast_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "ratios": [a / b for a, b in times],
    }


def seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare_gradients(rounds: int) -> Iterator[tuple[str, Result]]:
    """Agreement is asserted in float64: in float32 rounding may switch a ReLU, which moves a gradient visibly."""
    for name, model, count in (("resnet20", resnet20(), 64), ("purchase_mlp", purchase_mlp(), 256)):
        x, y = samples(model, count)
        exact = copy.deepcopy(model).double(), x[:4].double(), y[:4]
        for slow, fast in (
            (norms_as_released, norms_by_oakum),
            (norms_in_one_pass, norms_by_oakum),
            (x_by_sample, x_by_batch),
        ):
            np.testing.assert_allclose(fast(*exact), slow(*exact), rtol=1e-9, atol=1e-12)
            times = compared(partial(slow, model, x, y), partial(fast, model, x, y), rounds)
            about = {"samples": count, "parameters": count_parameters(model), "agreement": "rtol 1e-9 in float64"}
            yield f"gradients/{name}/{fast.__name__}/{slow.__name__}", about | times


def compare_thresholds(rounds: int) -> Iterator[tuple[str, Result]]:
    rng = np.random.default_rng(0)
    scores = rng.normal(0.3, 1, CANDIDATES), rng.normal(0.0, 1, CANDIDATES)
    for name, (members, others) in (("distinct", scores), ("ties", (scores[0].round(3), scores[1].round(3)))):
        assert select_threshold(members, others) == threshold_by_trial(members, others)
        distinct = len(np.unique(np.concatenate([members, others])))
        sides = partial(threshold_by_trial, members, others), partial(select_threshold, members, others)
        about = {"candidates": 2 * CANDIDATES, "distinct": distinct, "agreement": "exact"}
        yield f"threshold/{name}", about | compared(*sides, rounds)


def compare_surrogate(rounds: int) -> Iterator[tuple[str, Result]]:
    model = resnet20()
    step = partial(surrogate_step, model, *samples(model, 128))
    slow, fast = partial(step, through_target=True), partial(step, through_target=False)
    np.testing.assert_allclose(fast(), slow(), rtol=1e-5, atol=1e-8)
    yield "surrogate/resnet20", {"batch": 128, "agreement": "rtol 1e-5"} | compared(slow, fast, rounds)


def train(defense: Defense, make: Callable[[], Classifier], steps: int) -> tuple[float, Table]:
    """Return CPU seconds of a step at batch size 64 in the second epoch, and by how much the weights have moved."""
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, epochs=2, batch_size=64)
    model = defense.build(make())
    assert isinstance(model, Classifier)
    x, y = samples(model, steps * recipe.batch_size)
    start = weights(model)
    state = TrainState(model, build_optimizer(recipe, list(model.parameters())), CLASSES, seed=0)
    ends: list[float] = []
    loop = TrainingLoop(LabeledData(x, y), None, recipe, on_epoch=lambda _: ends.append(time.process_time()))
    trained = defense.fit(defense.prepare(state), loop)
    return (ends[1] - ends[0]) / steps, weights(trained) - start


def weights(module: nn.Module) -> Table:
    return torch.cat([parameter.detach().ravel() for parameter in module.parameters()]).double().numpy()


def dpsgd(per_sample: Literal["hooks", "ghost"], noise_multiplier: float) -> DPSGD:
    return DPSGD(DPSGD.Config(noise_multiplier=noise_multiplier, accountant="rdp", per_sample=per_sample))


def compare_dpsgd(rounds: int) -> Iterator[tuple[str, Result]]:
    """Without noise, both ways of DP-SGD must take the same path."""
    none = Defense(Defense.Config(norm="group"))
    for name, make, steps in (("resnet20", resnet20, 4), ("purchase_mlp", purchase_mlp, 8)):
        first, second = (train(dpsgd(way, 0.0), make, steps=1)[1] for way in ("hooks", "ghost"))
        assert np.linalg.norm(first - second) < 1e-2 * np.linalg.norm(first), "the ways of DP-SGD differ"
        defenses = none, dpsgd("hooks", 1.0), dpsgd("ghost", 1.0)
        rows = [[train(defense, make, steps)[0] for defense in defenses] for _ in range(rounds)]
        for column, way in ((1, "hooks"), (2, "ghost")):
            yield (
                f"dpsgd/{name}/{way}",
                {
                    "batch": 64,
                    "none_step_seconds": statistics.median(row[0] for row in rows),
                    "dpsgd_step_seconds": statistics.median(row[column] for row in rows),
                    "cost_ratio": statistics.median(row[column] / row[0] for row in rows),
                    "cost_ratios": [row[column] / row[0] for row in rows],
                },
            )


def machine() -> Result:
    """Return the processor's name, the threads in use and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = {name: version(name) for name in ("torch", "numpy", "scipy", "opacus")}
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for comparison in (compare_gradients, compare_thresholds, compare_surrogate, compare_dpsgd):
        for name, result in comparison(options.rounds):
            results[name] = result
            print(json.dumps({name: result}), file=sys.stderr, flush=True)
    card = {
        "benchmark": "membership",
        "rounds": options.rounds,
        "time": "CPU seconds of one process, medians",
        **machine(),
        "results": results,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
