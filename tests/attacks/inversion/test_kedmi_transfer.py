from __future__ import annotations

import torch
from torch import nn

from oakum.attacks.access import Access, Knowledge, Target
from oakum.attacks.inversion.kedmi import KEDMI
from oakum.attacks.inversion.kedmi_transfer import KEDMITransfer
from oakum.models.base import InputShape
from oakum.models.priors.inversion_gan import InversionGAN
from oakum.registry import load


def test_it_is_kedmi_with_the_undefended_models_prior() -> None:
    assert load("attacks.inversion", "kedmi_transfer") is KEDMITransfer
    assert load("attacks.inversion", "kedmi") is KEDMI
    assert (KEDMI.prior_of, KEDMITransfer.prior_of) == ("target", "undefended")
    assert KEDMITransfer.prior_networks == InversionGAN.network_names
    assert KEDMITransfer.Config().model_dump() == KEDMI.Config().model_dump()


def test_with_one_prior_both_give_the_same_reconstructions() -> None:
    torch.manual_seed(0)
    config = InversionGAN.Config(latent_size=4, width=2, minibatch_outputs=2, minibatch_kernel=2)
    prior = InversionGAN(config, InputShape((1, 8, 8)), 3).build()
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    knowledge = Knowledge(seed=5, networks=prior, latent_size=4)
    found = [
        attack(attack.Config(iterations=5, samples=2)).reconstruct(
            Target(lambda: target, Access.WEIGHTS, 3), torch.tensor([0, 2]), knowledge
        )
        for attack in (KEDMI, KEDMITransfer)
    ]
    assert found[0].shape == (2, 2, 1, 8, 8)
    assert torch.equal(*found)
