"""KED-MI's discriminator, losses, sampling and search against the released code's outputs."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from numpy.testing import assert_allclose

from oakum.attacks.inversion.kedmi import Distributions, kedmi_loss, search_distributions
from oakum.metrics import inversion
from oakum.models.base import InputShape
from oakum.models.priors._minibatch_discrimination import MinibatchDiscrimination
from oakum.models.priors.inversion_gan import Discriminator, InversionGAN, discriminator_loss, generator_loss

MINIBATCH_OUTPUTS = {"KED_Discriminator_1000": 0, "KED_MinibatchDiscriminator_1000": 64}


def check_discriminator_loss(case) -> None:
    logits = (case.tensor(f"kedmi/d_{batch}") for batch in ("labelled", "unlabelled", "fake"))
    found = discriminator_loss(*logits, case.tensor("kedmi/target_logits").softmax(dim=1))
    names = ("d_loss", "soft_cross_entropy", "loss_unlabelled")
    assert_allclose(found, [case[f"kedmi/{name}"] for name in names], rtol=1e-5)


def check_generator_loss(case) -> None:
    features = (case.tensor(f"kedmi/feat_{batch}") for batch in ("fake", "unlabelled"))
    found = generator_loss(*features, case.tensor("kedmi/d_fake"))
    names = ("g_loss", "feature_matching_l1", "entropy_sum_not_mean")
    assert_allclose(found, [case[f"kedmi/{name}"] for name in names], rtol=1e-5)


def prior_loss(logits: torch.Tensor) -> torch.Tensor:
    return kedmi_loss(logits, logits, torch.zeros(len(logits), dtype=torch.long))[0]


def check_log_sum_exp(case) -> None:
    realness = case.tensor(case.name)
    expected = torch.log1p(realness.exp()) - realness
    assert_allclose(prior_loss(case.tensor("kedmi/d_unlabelled")), expected, rtol=1e-4, atol=1e-6)


def check_prior_loss(case) -> None:
    assert_allclose(prior_loss(case.tensor("kedmi/d_fake")).mean(), case[case.name], rtol=1e-5)


@torch.no_grad()
def check_minibatch_discrimination(case) -> None:
    projection = case.tensor("kedmi/mbd_T")
    module = MinibatchDiscrimination(*projection.shape)
    module.projection.copy_(projection)
    assert_allclose(module(case.tensor("kedmi/mbd_in")), case[case.name], rtol=1e-4, atol=1e-6)


def check_sampling(case) -> None:
    distributions = Distributions(case.tensor("kedmi/reparam_mu"), case.tensor("kedmi/reparam_logvar"))
    assert_allclose(distributions.latents(case.tensor("kedmi/reparam_eps")), case[case.name], rtol=1e-6, atol=1e-7)


def toy_networks(case):
    a, b, wt, we = (case.tensor(f"kedmi/attack_toy_{name}") for name in ("A", "b", "Wt", "We"))
    side = int(a.shape[1] ** 0.5)
    return (
        lambda z: torch.sigmoid(z @ a + b).view(-1, 1, side, side),
        lambda x: 1.5 * x.flatten(1) @ wt,
        lambda x: x.flatten(1) @ wt,
        lambda x: x.flatten(1) @ we,
    )


def run_attack(case) -> tuple[Distributions, torch.Tensor]:
    """Return what the search found and the latents (iterations, B, Z) that it drew."""
    rate, weight, iterations, _ = case["kedmi/attack_hyper"]
    generator, discriminator, classifier, _ = toy_networks(case)
    classes, noise = case.tensor("kedmi/attack_iden"), case.tensor("kedmi/attack_eps")
    start = torch.zeros_like(noise[0])
    drawn = []

    def recording_generator(z: torch.Tensor) -> torch.Tensor:
        drawn.append(z.detach())
        return generator(z)

    found = search_distributions(
        Distributions(start, start),
        classes,
        recording_generator,
        discriminator,
        classifier,
        lambda iteration: noise[iteration],
        iterations=int(iterations),
        learning_rate=float(rate),
        nominal_batch=len(classes),
        identity_weight=float(weight),
    )
    return found, torch.stack(drawn)


def check_attack(case) -> None:
    found, drawn = run_attack(case)
    assert_allclose(drawn, case["kedmi/attack_z"], atol=1e-4)
    assert_allclose(found.mean, case["kedmi/attack_mu_final"], atol=1e-4)
    assert_allclose(found.log_variance, case["kedmi/attack_logvar_final"], atol=1e-4)


def check_attack_accuracy(case) -> None:
    """The released loop draws its final samples from the stream that its iterations drew from."""
    found, _ = run_attack(case)
    generator, _, _, evaluator = toy_networks(case)
    noise, wanted = case.tensor("kedmi/attack_eps"), case["kedmi/attack_iden"]
    stream = torch.Generator().manual_seed(1245)
    for used in noise:
        torch.testing.assert_close(torch.randn(used.shape, generator=stream), used)
    shares = []
    for _ in range(int(case["kedmi/attack_hyper"][3])):
        scores = evaluator(generator(found.latents(torch.randn(noise[0].shape, generator=stream))))
        shares.append([100 * inversion.is_hit(scores, wanted, k).mean() for k in (1, 5)])
    shares = np.array(shares)
    assert_allclose([*shares.mean(0), *shares.std(0, ddof=1)], case[case.name], rtol=1e-6)


@torch.no_grad()
def fill(module: torch.nn.Module) -> None:
    """Fill the parameters by the rule of the vectors' README, in registration order."""
    for k, (name, weight) in enumerate(module.named_parameters()):
        count = weight.numel()
        wave = torch.cos(0.618 * torch.arange(count, dtype=torch.float64) + 0.37 * k).view(weight.shape)
        if weight.dim() > 1:
            weight.copy_(wave * 2 / math.sqrt(count / weight.shape[0]))
        else:
            weight.copy_(1 + 0.1 * wave if name.endswith("weight") else 0.1 * wave)


@torch.no_grad()
def check_forward(case) -> None:
    """The released network compares the rows of a batch in eval mode too, as ours does in training mode."""
    net = case.groups["net"]
    description = json.loads(str(case["nets_json"]))[net]
    _, *dims = description["input"]
    config = InversionGAN.Config(minibatch_outputs=MINIBATCH_OUTPUTS[net])
    module = InversionGAN(config, InputShape(tuple(dims)), description["outputs"][-1][-1]).build()["discriminator"]
    assert isinstance(module, Discriminator)
    assert [list(weight.shape) for weight in module.parameters()] == description["tensors"]
    fill(module)
    index = torch.arange(math.prod(description["input"]), dtype=torch.float64)
    x = (0.5 + 0.5 * torch.cos(0.1 * index**1.1)).view(description["input"]).float()
    for index, output in enumerate((module.features(x), module(x))):
        head = case.at(f"out{index}_head")
        assert_allclose(output.flatten()[: len(head)], head, rtol=1e-3, atol=1e-4)
        spread = [output.double().mean(), output.double().std()]
        assert_allclose(spread, case.at(f"out{index}_mean_std"), rtol=1e-3, atol=1e-4)


OWNS = r"kedmi/|forward/KED_"
RULES = [
    (r"kedmi/(d_labelled|d_unlabelled|d_fake|target_logits|feat_fake|feat_unlabelled)", None),
    (r"(?P<case>kedmi)/(d_loss|soft_cross_entropy|loss_unlabelled)", check_discriminator_loss),
    (r"(?P<case>kedmi/g_loss)", check_generator_loss),
    (r"(?P<case>kedmi/entropy_sum_not_mean)", check_generator_loss),
    (r"(?P<case>kedmi/feature_matching_l1)", check_generator_loss),
    (r"(?P<case>kedmi/log_sum_exp_unlabelled)", check_log_sum_exp),
    (r"(?P<case>kedmi/attack_prior_improved)", check_prior_loss),
    (r"kedmi/mbd_(T|in)", None),
    (r"(?P<case>kedmi/mbd_out)", check_minibatch_discrimination),
    (r"kedmi/reparam_(mu|logvar|eps)", None),
    (r"(?P<case>kedmi/reparam_z)", check_sampling),
    (r"kedmi/attack_(toy_\w+|iden|hyper|eps)", None),
    (r"(?P<case>kedmi/attack)_(z|mu_final|logvar_final)", check_attack),
    (r"(?P<case>kedmi/attack_acc_acc5_std_std5)", check_attack_accuracy),
    (r"(?P<case>forward/(?P<net>KED_\w+))/.*", check_forward),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
