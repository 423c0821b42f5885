"""VMI and its DCGAN prior against the released code's outputs."""

from __future__ import annotations

import json
import math

import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from oakum.attacks.inversion._flow import FlowBank, standard_normal_log_density
from oakum.attacks.inversion._variational_families import (
    Flows,
    affine,
    gaussian_entropy,
    gaussian_log_density,
    mixture_log_density,
)
from oakum.attacks.inversion.vmi import identity_loss, images_from, layers_of
from oakum.models.base import InputShape, count_parameters
from oakum.models.priors.dcgan import DCGAN
from oakum.seeding import torch_generator


def triangular(factor: Tensor) -> Tensor:
    """Return the lower triangular factor of the same covariance: the released factors are any matrices."""
    return torch.linalg.cholesky(factor @ factor.T)


def check_gaussian_sample(case) -> None:
    z, mean, factor = (case.tensor(f"vmi/mvn_{name}") for name in ("z", "m", "L"))
    assert_allclose(affine(z, mean[0], factor), case[case.name], rtol=1e-5, atol=1e-6)


def check_gaussian_density(case) -> None:
    z, mean, factor = (case.tensor(f"vmi/mvn_{name}", torch.float64) for name in ("z", "m", "L"))
    assert_allclose(gaussian_log_density(z, mean[0], triangular(factor)), case[case.name], rtol=1e-5)


def check_gaussian_entropy(case) -> None:
    factor = case.tensor("vmi/mvn_L", torch.float64)
    assert_allclose(gaussian_entropy(triangular(factor)), case[case.name], rtol=1e-5)


def check_gaussian_divergence(case) -> None:
    """The released estimate: cross-entropy with the prior on the stored samples, less the entropy, less constants."""
    factor, samples = case.tensor("vmi/mvn_L", torch.float64), case.tensor("vmi/mvn_sample", torch.float64)
    size = len(factor)
    divergence = -gaussian_entropy(triangular(factor)) - standard_normal_log_density(samples).mean()
    assert_allclose(divergence + size / 2, case[case.name], rtol=1e-5)


def check_mixture_density(case) -> None:
    """The released density is ours divided by the number of components once more."""
    logits, z = case.tensor("vmi/gmm_logits", torch.float64), case.tensor("vmi/mvn_z", torch.float64)
    components = []
    for number in range(len(logits)):
        mean, factor = (case.tensor(f"vmi/gmm_{name}{number}", torch.float64) for name in ("m", "L"))
        components.append(gaussian_log_density(z, mean[0], triangular(factor)))
    density = mixture_log_density(torch.stack(components, dim=-1), logits)
    assert_allclose(density - math.log(len(logits)), case[case.name], rtol=1e-5)


def released_flow(case) -> FlowBank:
    """Return the flow with the released parameters. Of the 3x3 kernels the center alone sees a 1x1 image."""
    size, steps, levels = (int(value) for value in case["vmi/flow_hyper_nz_K_L"])
    bank = FlowBank([torch_generator(0)], 1, size, steps, levels)

    def stored(layer: int, name: str) -> Tensor:
        return case.tensor(f"vmi/flow_state/flow.flow.layers.{layer}.{name}", torch.float64)

    def row(layer: int, name: str) -> Tensor:
        return stored(layer, name).reshape(1, 1, -1)

    def matrix(layer: int, name: str) -> Tensor:
        kernel = stored(layer, name)
        center = kernel.shape[-1] // 2
        return kernel[:, :, center, center].T[None]

    state: dict[str, Tensor] = {}
    for layer, part in enumerate(bank.parts):
        prefix = f"parts.{layer}"
        if hasattr(part, "moments"):
            zeros = {"moments": "conv"}
        else:
            zeros = {"last": "block.4"}
            normalized = {"norm": "actnorm", "first.norm": "block.0.actnorm", "second.norm": "block.2.actnorm"}
            for ours, theirs in normalized.items():
                state[f"{prefix}.{ours}.bias"] = row(layer, f"{theirs}.bias")
                state[f"{prefix}.{ours}.log_scale"] = row(layer, f"{theirs}.logs")
            for ours, theirs in {"first": "block.0", "second": "block.2"}.items():
                state[f"{prefix}.{ours}.weight"] = matrix(layer, f"{theirs}.conv.weight")
            for ours, theirs in {
                "permutation": "permute_indices",
                "inverse_permutation": "permute_indices_inverse",
            }.items():
                state[f"{prefix}.{ours}"] = case.tensor(f"vmi/flow_buffer/flow.flow.layers.{layer}.shuffle.{theirs}")[
                    None
                ]
        for ours, theirs in zeros.items():
            state[f"{prefix}.{ours}.weight"] = matrix(layer, f"{theirs}.conv.weight")
            state[f"{prefix}.{ours}.bias"] = row(layer, f"{theirs}.conv.bias")
            state[f"{prefix}.{ours}.log_gain"] = row(layer, f"{theirs}.logs")
    bank.load_state_dict(state)
    return bank.requires_grad_(False)


def flow_sample(case) -> tuple[Tensor, Tensor]:
    assert not case["vmi/flow_coupling_is_affine"]
    bank = released_flow(case)
    base, noises = case.tensor("vmi/flow_z"), []
    while f"vmi/flow_split_noise{len(noises)}" in case:
        noises.append(case.tensor(f"vmi/flow_split_noise{len(noises)}").flatten(1))
    samples, log_density = bank.decode(base[None, :, : bank.top_size], torch.cat(noises, dim=1)[None])
    return samples[0], log_density[0]


def check_flow_sample(case) -> None:
    assert_allclose(flow_sample(case)[0], case[case.name], rtol=1e-9, atol=1e-12)


def check_flow_density(case) -> None:
    samples, log_density = flow_sample(case)
    assert_allclose(log_density, case[case.name], rtol=1e-7)
    assert_allclose(released_flow(case).encode(samples[None])[1][0], case[case.name], rtol=1e-7)


def check_flow_prior_density(case) -> None:
    assert_allclose(standard_normal_log_density(case.tensor("vmi/flow_sample")), case[case.name], rtol=1e-9)


def check_flow_divergence(case) -> None:
    samples, log_density = flow_sample(case)
    assert_allclose((log_density - standard_normal_log_density(samples)).mean(), case[case.name], rtol=1e-7)


def check_flow_top(case) -> None:
    """The top of the released flow is standard normal: its stored mean and log std are zero."""
    assert not case[case.name].any()


def check_permutation(case) -> None:
    """State and buffer tell the same, and the inverse is one."""
    layer, inverse = case.groups["layer"], case[f"{case.name}_inverse"]
    assert_allclose(case[case.name][inverse], range(len(inverse)))
    for name in ("permute_indices", "permute_indices_inverse"):
        key = f"flow.flow.layers.{layer}.shuffle.{name}"
        assert_allclose(case[f"vmi/flow_state/{key}"], case[f"vmi/flow_buffer/{key}"])


def check_label_smoothing(case) -> None:
    scores, wanted = case.tensor("vmi/ls_logsoftmax"), case.tensor("vmi/ls_y")
    loss = identity_loss(scores, wanted, float(case.groups["share"])).mean()
    assert_allclose(loss, case[case.name], rtol=1e-5)


class TenLayers(nn.Module):
    layers = 10

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Linear(8, 4)

    def map(self, z: Tensor) -> Tensor:
        return self.mapping(z)

    def synthesize(self, ws: Tensor) -> Tensor:
        return ws[:, None].sigmoid()


def check_layers(case) -> None:
    """The released range of identity layers names all ten: each gets a latent of its own that the loss moves."""
    generator = TenLayers()
    family = Flows([torch_generator(0)], layers_of(generator), 8, steps=1, levels=1, width=2)
    latents = family.sample(2, [torch_generator(1)])
    latents.retain_grad()
    images_from(generator, latents.flatten(0, 1)).sum().backward()
    moved = latents.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert_allclose(moved, case[case.name])


# The embedding (1, 100) and the linear layer 1 -> 100 of the released generator, which its forward does not use.
UNUSED = [[1, 100], [100, 1], [100]]


@torch.no_grad()
def check_generator(case) -> None:
    description = json.loads(str(case["nets_json"]))["VMI_DCGAN_G_64"]
    (rows, *dims), latent_size = description["outputs"][0], description["input"][1]
    generator = DCGAN(DCGAN.Config(latent_size=latent_size), InputShape(tuple(dims))).build()["generator"]
    fill(generator)
    shapes = [list(value.shape) for value in generator.state_dict().values() if value.is_floating_point()]
    assert shapes + UNUSED == description["tensors"]
    assert count_parameters(generator) + sum(math.prod(shape) for shape in UNUSED) == description["params"]
    index = torch.arange(rows * latent_size, dtype=torch.float64)
    z = torch.cos(0.1 * index**1.1).view(rows, latent_size).float()
    signed = 2 * generator(z) - 1
    head = case.at("out0_head")
    assert_allclose(signed.flatten()[: len(head)], head, rtol=1e-3, atol=1e-5)
    assert_allclose([signed.double().mean(), signed.double().std()], case.at("out0_mean_std"), rtol=1e-3, atol=1e-6)


def fill(module: nn.Module) -> None:
    """Fill the floating state tensors by the rule of the vectors' README, in registration order."""
    floating = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    for k, (name, value) in enumerate(floating.items()):
        wave = torch.cos(0.618 * torch.arange(value.numel(), dtype=torch.float64) + 0.37 * k).view(value.shape)
        if value.dim() >= 2:
            value.copy_(wave * 2 / math.sqrt(value[0].numel()))
        elif name.endswith("running_var"):
            value.copy_(1 + 0.1 * wave.abs())
        else:
            value.copy_(0.1 * wave + name.endswith("weight"))
    module.eval()


def check_sizes(case) -> None:
    """The released counts from ours: a 3x3 kernel has nine weights for each of our matrix's entries."""
    description = json.loads(str(case["nets_json"]))["VMI_FlowMiner_512_K10_L3"]
    (latent_size,) = description["input"][1:]
    bank = FlowBank([torch_generator(0)], 1, latent_size, steps=10, levels=3, dtype=torch.float32)
    kernels = (".first.weight", ".last.weight", ".moments.weight")
    count = sum(parameter.numel() * (9 if name.endswith(kernels) else 1) for name, parameter in bank.named_parameters())
    assert count == description["params"] == 9_878_976
    assert count_parameters(bank) == 1_400_256


OWNS = r"vmi/(?!cutout_)|forward/VMI_|nets_json"
RULES = [
    (r"(?P<case>vmi/mvn_sample)", check_gaussian_sample),
    (r"(?P<case>vmi/mvn_logp_of_z)", check_gaussian_density),
    (r"(?P<case>vmi/mvn_entropy)", check_gaussian_entropy),
    (r"(?P<case>vmi/mvn_kl_to_std_normal_up_to_const)", check_gaussian_divergence),
    (r"vmi/mvn_(m|L|z)", None),
    (r"(?P<case>vmi/gmm_logp_of_z_as_coded_minus_logK)", check_mixture_density),
    (r"vmi/gmm_(m\d+|L\d+|logits)", None),
    (r"(?P<case>vmi/flow_(state|buffer)/flow\.prior_h)", check_flow_top),
    (r"(?P<case>vmi/flow_buffer/flow\.flow\.layers\.(?P<layer>\d+)\.shuffle\.permute_indices)", check_permutation),
    (r"vmi/flow_(state|buffer)/.*", None),
    (r"vmi/flow_(hyper_nz_K_L|coupling_is_affine|z|split_noise\d+)", None),
    (r"(?P<case>vmi/flow_sample)", check_flow_sample),
    (r"(?P<case>vmi/flow_logp_of_sample)", check_flow_density),
    (r"(?P<case>vmi/flow_std_normal_logp)", check_flow_prior_density),
    (r"(?P<case>vmi/flow_kl_estimate)", check_flow_divergence),
    (r"vmi/ls_(logsoftmax|y)", None),
    (r"(?P<case>vmi/ls_loss_smooth(?P<share>[\d.]+))", check_label_smoothing),
    (r"(?P<case>vmi/num_range_0-9)", check_layers),
    (r"(?P<case>forward/VMI_DCGAN_G_64)/.*", check_generator),
    (r"(?P<case>nets_json)", check_sizes),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
