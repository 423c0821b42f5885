"""What the inversion side costs against the plain forms of the same numbers.

Every comparison runs in one process on one thread. Both sides take turns, and their outputs must agree (in float64,
where rounding cannot hide a difference). Times are CPU seconds of the process, so that other work on the machine
disturbs them less; the ratio is the median over rounds of slow / fast.

* dependence: BiDO's measures and their gradients on the taps of VGG-16, against every kernel computed anew for each
  layer and inverted in full.
* share: the same measures as a share of an undefended training step of VGG-16. A cost, not a gain.
* gmi, kedmi: latent searches of all seeds at once through frozen networks, against one seed at a time through
  networks that gather gradients of their weights. Attacks on CPUs have channels last.
* frechet: from factors of the covariances, against the root of their product.
* minibatch: minibatch discrimination block by block, against one tensor of all pairs.

    python benchmarks/inversion.py --rounds 5 --out benchmarks/results/inversion.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from membership import Result, compared, machine, seconds
from scipy.linalg import sqrtm
from torch import Tensor, nn

from oakum.attacks.inversion._latent_search import frozen
from oakum.attacks.inversion.gmi import search_latents
from oakum.attacks.inversion.kedmi import Distributions, search_distributions
from oakum.defenses.bido import layer_dependences
from oakum.metrics.dependence import HSIC_RIDGE
from oakum.metrics.inversion import frechet_distance
from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import MCNN
from oakum.models.priors._minibatch_discrimination import summed_closeness
from oakum.models.priors.inversion_gan import InversionGAN
from oakum.models.priors.wgan_gp import WGANGP
from oakum.models.vgg16_bn1d import VGG16BN1d

IDENTITIES = 5
LATENTS = 100
SIGMA = 5.0
FACES = 1000
TAPS = {
    64: ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (2048,)),
    32: ((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512,)),
}
IDENTITY_WEIGHT = 100.0
GMI_RATE, MOMENTUM = 1e-2, 0.9
KEDMI_RATE = 2e-2
Measure = Literal["hsic", "coco"]
MEASURES: tuple[Measure, ...] = ("hsic", "coco")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
# 1.5 times and 3 times as many identity-iterations a second as the plain loop in float32.
SEARCH_GOALS = {"float32": 1 / 1.5, "bfloat16": 1 / 3}
Networks = dict[str, nn.Module]


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        rows, side: batch and image side of VGG-16.
        seeds, iterations: of the latent searches.
        features, samples: of the large Frechet distance, and, for each case, of its feature sets.
        fewer_features: of the one that is compared with a matrix root.
    """

    rows: int = 64
    side: int = 64
    seeds: int = 20
    iterations: int = 20
    features: int = 2048
    samples: tuple[int, ...] = (1500, 5000)
    fewer_features: int = 512


QUICK = Size(rows=16, side=32, seeds=2, iterations=2, features=64, samples=(32, 128), fewer_features=32)


def hidden_layers(size: Size, dtype: torch.dtype) -> list[Tensor]:
    """Return one random tensor for each tap of VGG-16, (rows, ...), which gradients are taken with respect to."""
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.randn(size.rows, *shape, generator=generator).relu() for shape in TAPS[size.side])
    return [layer.to(dtype).requires_grad_() for layer in drawn]


def faces(size: Size) -> tuple[Tensor, Tensor]:
    """Return images (rows, 3, side, side) in [0, 1] and labels (rows,): four images of each of several identities."""
    images = torch.rand(size.rows, 3, size.side, size.side, generator=torch.Generator().manual_seed(2))
    return images, torch.arange(size.rows // 4).repeat_interleave(4)


def gaussian_kernel(rows: Tensor) -> Tensor:
    squares = rows.square().sum(dim=1)
    distances = (squares[:, None] - 2 * rows @ rows.T + squares[None, :]).abs()
    return torch.exp(-distances / (2 * SIGMA**2 * rows.shape[1]))


def plain_dependence(first: Tensor, second: Tensor, measure: Measure) -> Tensor:
    """Return HSIC or COCO of two kernel matrices as their formulas are written, with explicit inverses."""
    count = len(first)
    identity = torch.eye(count, dtype=first.dtype)
    centering = identity - 1 / count
    if measure == "coco":
        product = centering @ first @ centering @ centering @ second @ centering
        norm: Tensor = torch.linalg.matrix_norm(product)
        return norm.sqrt() / count
    ridge = HSIC_RIDGE * count * identity
    a, b = (centered @ torch.inverse(centered + ridge) for centered in (first @ centering, second @ centering))
    return (a * b.T).sum()


def plain_dependences(hidden: list[Tensor], x: Tensor, y: Tensor, *, measure: Measure) -> tuple[Tensor, Tensor]:
    """Return D(Z_j, X) and D(Z_j, Y), each (J,): every kernel of every pair computed for itself."""
    on_input, on_label = [], []
    for layer in hidden:
        on_input.append(plain_dependence(gaussian_kernel(layer.flatten(1)), gaussian_kernel(x.flatten(1)), measure))
        on_label.append(plain_dependence(gaussian_kernel(layer.flatten(1)), y @ y.T, measure))
    return torch.stack(on_input), torch.stack(on_label)


def dependence_step(
    dependences: Callable[..., tuple[Tensor, Tensor]], hidden: list[Tensor], x: Tensor, y: Tensor, measure: Measure
) -> list[Tensor]:
    """Return the values and the gradients with respect to the hidden layers of BiDO's terms."""
    labels = F.one_hot(y, FACES).to(x.dtype)
    wide = [layer.to(x.dtype) for layer in hidden]
    on_input, on_label = dependences(wide, x, labels, measure=measure)
    penalty = 0.05 * on_input.sum() - 0.5 * on_label.sum()
    return [on_input.detach(), on_label.detach(), *torch.autograd.grad(penalty, hidden)]


def compare_dependence(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    for measure in MEASURES:
        x, y = faces(size)
        exact = hidden_layers(size, torch.float64), x.double(), y, measure
        for ours, plain in zip(
            dependence_step(layer_dependences, *exact), dependence_step(plain_dependences, *exact), strict=True
        ):
            scale = float(plain.abs().max())
            np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=1e-6, atol=1e-8 * scale)
        layers = hidden_layers(size, torch.float32)
        slow = partial(dependence_step, plain_dependences, layers, x, y, measure)
        fast = partial(dependence_step, layer_dependences, layers, x, y, measure)
        times = compared(slow, fast, rounds)
        about = {"rows": size.rows, "side": size.side, "agreement": "rtol 1e-6 in float64, values and gradients"}
        yield f"dependence/{measure}", about | times | goal("fast / slow", 1 / times["ratio"], 1 / 3)


def training_step(
    model: Classifier, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, dtype: torch.dtype | None
) -> None:
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(x)
    assert isinstance(logits, Tensor)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits.float(), y).backward()
    optimizer.step()


def compare_share(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    """BiDO's terms beside the step they are added to; under bfloat16 they get its taps and compute in float32."""
    torch.manual_seed(0)
    model = VGG16BN1d(VGG16BN1d.Config(), InputShape((3, size.side, size.side)), FACES).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x, y = faces(size)
    for name, dtype in PRECISIONS.items():
        step = partial(training_step, model, optimizer, x, y, dtype)
        layers = hidden_layers(size, dtype or torch.float32)
        terms = {measure: partial(dependence_step, layer_dependences, layers, x, y, measure) for measure in MEASURES}
        step()
        for work in terms.values():
            work()
        rows = [(seconds(step), {measure: seconds(work) for measure, work in terms.items()}) for _ in range(rounds)]
        for measure in MEASURES:
            shares = [own[measure] / whole for whole, own in rows]
            yield (
                f"share/{measure}/{name}",
                {
                    "rows": size.rows,
                    "side": size.side,
                    "step_seconds": statistics.median(whole for whole, _ in rows),
                    "dependence_seconds": statistics.median(own[measure] for _, own in rows),
                    "shares": shares,
                }
                | goal("share of a step", statistics.median(shares), 0.03 if dtype is None else 0.05),
            )


def digit_networks(prior: Literal["wgan_gp", "inversion_gan"]) -> Networks:
    """Return generator, judge (critic or discriminator) and target of the MNIST experiments, untrained."""
    torch.manual_seed(0)
    shape = InputShape((1, 32, 32))
    target = MCNN(MCNN.Config(), shape, IDENTITIES)
    if prior == "wgan_gp":
        networks = WGANGP(WGANGP.Config(), shape).build()
        return {"generator": networks["generator"], "judge": networks["critic"], "target": target}
    networks = InversionGAN(InversionGAN.Config(), shape, IDENTITIES).build()
    return {"generator": networks["generator"], "judge": networks["discriminator"], "target": target}


def prepared(networks: Networks, *, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Networks:
    """Return copies in eval mode."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return {
        name: copy.deepcopy(network).eval().to(dtype=dtype).to(memory_format=layout)
        for name, network in networks.items()
    }


def gmi_by_seed(networks: Networks, starts: Tensor, iterations: int, autocast: torch.dtype | None) -> Tensor:
    """Search one seed after the other; return latents (S * identities, Z). Weights gather gradients, unused."""
    classes, found = torch.arange(IDENTITIES), []
    for z in starts:
        velocity = torch.zeros_like(z)
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        for _ in range(iterations):
            z = z.detach().requires_grad_(True)
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                images = networks["generator"](z)
                judged, scores = networks["judge"](images), networks["target"](images)
            identity = F.cross_entropy(scores.to(z.dtype), classes)
            (IDENTITY_WEIGHT * identity - judged.to(z.dtype).mean()).backward()
            assert z.grad is not None
            before = velocity
            velocity = MOMENTUM * before - GMI_RATE * z.grad
            z = (z.detach() - MOMENTUM * before + (1 + MOMENTUM) * velocity).clamp(-1, 1)
        found.append(z.detach())
    return torch.cat(found)


def gmi_by_oakum(networks: Networks, starts: Tensor, iterations: int, autocast: torch.dtype | None) -> Tensor:
    with frozen(*networks.values()):
        return search_latents(
            starts.flatten(0, 1),
            torch.arange(IDENTITIES).repeat(len(starts)),
            networks["generator"],
            networks["judge"],
            networks["target"],
            iterations=iterations,
            learning_rate=GMI_RATE,
            nominal_batch=IDENTITIES,
            momentum=MOMENTUM,
            identity_weight=IDENTITY_WEIGHT,
            autocast_dtype=autocast,
        ).latents


def kedmi_by_seed(networks: Networks, noise: Tensor, iterations: int, autocast: torch.dtype | None) -> Tensor:
    """Fit one seed after the other; return means and log-variances (S * identities, 2 Z)."""
    classes, found = torch.arange(IDENTITIES), []
    for own in noise:
        mean = torch.zeros(IDENTITIES, LATENTS, dtype=noise.dtype, requires_grad=True)
        log_variance = torch.zeros_like(mean, requires_grad=True)
        optimizer = torch.optim.Adam([mean, log_variance], lr=KEDMI_RATE)
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        for iteration in range(iterations):
            z = mean + (0.5 * log_variance).exp() * own[iteration]
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                images = networks["generator"](z)
                judged, scores = networks["judge"](images), networks["target"](images)
            real = judged.to(z.dtype).logsumexp(dim=1)
            identity = F.cross_entropy(scores.to(z.dtype), classes)
            optimizer.zero_grad()
            (F.softplus(real).mean() - real.mean() + IDENTITY_WEIGHT * identity).backward()
            optimizer.step()
        found.append(torch.cat([mean, log_variance], dim=1).detach())
    return torch.cat(found)


def kedmi_by_oakum(networks: Networks, noise: Tensor, iterations: int, autocast: torch.dtype | None) -> Tensor:
    seeds = len(noise)
    draws = noise.transpose(0, 1).flatten(1, 2)
    mean = torch.zeros(seeds * IDENTITIES, LATENTS, dtype=noise.dtype)
    with frozen(*networks.values()):
        found = search_distributions(
            Distributions(mean, torch.zeros_like(mean)),
            torch.arange(IDENTITIES).repeat(seeds),
            networks["generator"],
            networks["judge"],
            networks["target"],
            lambda iteration: draws[iteration],
            iterations=iterations,
            learning_rate=KEDMI_RATE,
            nominal_batch=IDENTITIES,
            identity_weight=IDENTITY_WEIGHT,
            autocast_dtype=autocast,
        )
    return torch.cat([found.mean, found.log_variance], dim=1)


def compare_searches(
    name: str,
    networks: Networks,
    draws: Tensor,
    by_seed: Callable[..., Tensor],
    by_oakum: Callable[..., Tensor],
    size: Size,
    rounds: int,
) -> Iterator[tuple[str, Result]]:
    """Compare both searches under each precision; oakum's with the networks in both memory layouts."""
    count = size.seeds * IDENTITIES * size.iterations
    exact = by_seed(prepared(networks, dtype=torch.float64), draws.double(), 2, None)
    plain = prepared(networks)
    for layout in ("contiguous", "channels_last"):
        is_last = layout == "channels_last"
        ours = prepared(networks, dtype=torch.float64, channels_last=is_last)
        np.testing.assert_allclose(by_oakum(ours, draws.double(), 2, None), exact, rtol=1e-6, atol=1e-8)
        fast = prepared(networks, channels_last=is_last)
        plain_float32 = 0.0
        for precision, dtype in PRECISIONS.items():
            sides = (
                partial(by_seed, plain, draws, size.iterations, dtype),
                partial(by_oakum, fast, draws, size.iterations, dtype),
            )
            times = compared(*sides, rounds)
            about = {
                "identities": IDENTITIES,
                "seeds": size.seeds,
                "iterations": size.iterations,
                "agreement": "rtol 1e-6 in float64, two iterations",
                "slow_identity_iterations_per_second": count / times["slow_seconds"],
                "fast_identity_iterations_per_second": count / times["fast_seconds"],
            }
            plain_float32 = plain_float32 or times["slow_seconds"]
            share = times["fast_seconds"] / plain_float32
            wanted = goal(f"fast in {precision} / slow in float32", share, SEARCH_GOALS[precision])
            yield f"{name}/{precision}/{layout}", about | times | wanted


def compare_gmi(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    starts = torch.randn(size.seeds, IDENTITIES, LATENTS, generator=torch.Generator().manual_seed(3))
    networks = digit_networks("wgan_gp")
    yield from compare_searches("gmi", networks, starts, gmi_by_seed, gmi_by_oakum, size, rounds)


def compare_kedmi(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(size.seeds, size.iterations, IDENTITIES, LATENTS, generator=generator)
    networks = digit_networks("inversion_gan")
    yield from compare_searches("kedmi", networks, noise, kedmi_by_seed, kedmi_by_oakum, size, rounds)


def plain_frechet(first: Any, second: Any) -> float:
    """Return the distance with the root of the product of the covariances."""
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(gap + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real)


def compare_frechet(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    rng = np.random.default_rng(0)

    def sets(count: int, width: int) -> tuple[Any, Any]:
        mixing = rng.normal(size=(width, width)) / np.sqrt(width)
        return rng.normal(size=(count, width)) @ mixing, rng.normal(0.1, 1.2, size=(count, width)) @ mixing

    few = sets(4 * size.fewer_features, size.fewer_features)
    ours = frechet_distance(*few).value
    assert ours is not None
    np.testing.assert_allclose(ours, plain_frechet(*few), rtol=1e-6)
    times = compared(partial(plain_frechet, *few), partial(frechet_distance, *few), rounds)
    about = {"samples": len(few[0]), "agreement": "rtol 1e-6"}
    yield f"frechet/{size.fewer_features}", about | times
    for count in size.samples:
        work = partial(frechet_distance, *sets(count, size.features))
        taken = statistics.median(seconds(work) for _ in range(rounds))
        yield f"frechet/{size.features}/{count}", {"samples": count} | goal("seconds", taken, 5.0)


def broadcast_closeness(projected: Tensor) -> Tensor:
    """Return what `summed_closeness` does, from one tensor of all pairs (N, N, B, C)."""
    distances = (projected[:, None] - projected[None, :]).abs().sum(dim=3)
    return distances.neg().exp().sum(dim=1) - 1


def closeness_step(closeness: Callable[[Tensor], Tensor], projected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums and the gradient of their squares with respect to the projected rows."""
    values = closeness(projected)
    (gradient,) = torch.autograd.grad(values.square().sum(), projected)
    return values.detach(), gradient


def compare_minibatch(size: Size, rounds: int) -> Iterator[tuple[str, Result]]:
    drawn = 0.05 * torch.randn(size.rows, 64, 50, generator=torch.Generator().manual_seed(5))
    exact = drawn.double().requires_grad_()
    for ours, plain in zip(
        closeness_step(summed_closeness, exact), closeness_step(broadcast_closeness, exact), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=1e-9, atol=1e-9)
    projected = drawn.requires_grad_()
    about = {"rows": size.rows, "outputs": 64, "kernel": 50, "agreement": "rtol 1e-9 in float64, values and gradients"}
    slow, fast = (
        partial(closeness_step, broadcast_closeness, projected),
        partial(closeness_step, summed_closeness, projected),
    )
    yield "minibatch", about | compared(slow, fast, rounds)


def goal(what: str, value: float, limit: float) -> Result:
    """Return a figure beside the largest value that it should have."""
    return {"figure": what, "value": value, "goal": limit, "met": value <= limit}


COMPARISONS: dict[str, Callable[[Size, int], Iterator[tuple[str, Result]]]] = {
    "dependence": compare_dependence,
    "share": compare_share,
    "gmi": compare_gmi,
    "kedmi": compare_kedmi,
    "frechet": compare_frechet,
    "minibatch": compare_minibatch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that it runs, and no figure worth keeping"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else Size()
    results = {}
    for chosen in options.only:
        for name, result in COMPARISONS[chosen](size, options.rounds):
            results[name] = result
            print(json.dumps({name: result}), file=sys.stderr, flush=True)
    card = {
        "benchmark": "inversion" + (" (quick)" if options.quick else ""),
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
