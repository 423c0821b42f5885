"""Batch-coupled losses give the same gradients however the global batch is cut into shards (two real processes)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from oakum.defenses.advreg import AdvReg
from oakum.defenses.base import Defense
from oakum.defenses.bido import BiDO
from oakum.defenses.confidence_penalty import ConfidencePenalty
from oakum.defenses.dropout import Dropout
from oakum.defenses.label_smoothing import LabelSmoothing
from oakum.defenses.relaxloss import RelaxLoss
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.collective import Collective
from oakum.training.state import Batch, TrainState

PLATFORM = Path(__file__).parents[2] / "platform"
ROWS, CLASSES = 21, 3


def defenses(mean: float) -> dict[str, tuple[Defense, int]]:
    """Return settings with an epoch; the RelaxLoss targets lie between the means of the two shards and the whole."""
    relaxed = {
        f"relaxloss/{variant}/{side:+}/{epoch}": (
            RelaxLoss(RelaxLoss.Config(alpha=mean + side, variant=variant)),
            epoch,
        )
        for variant in ("paper", "released_code")
        for side in (-1e-3, 1e-3)
        for epoch in (0, 1)
    }
    dependent = {
        f"bido/{measure}": (BiDO(BiDO.Config(lambda_x=0.1, lambda_y=0.5, measure=measure)), 0)
        for measure in ("hsic", "coco")
    }
    apart = {
        "confidence_penalty": (ConfidencePenalty(ConfidencePenalty.Config(alpha=1.0)), 0),
        "label_smoothing": (LabelSmoothing(LabelSmoothing.Config(epsilon=-0.1)), 0),
        "dropout": (Dropout(Dropout.Config()), 0),
        "advreg": (AdvReg(AdvReg.Config(warmup_epochs=0)), 0),
    }
    return {"none": (Defense(Defense.Config()), 0), **relaxed, **dependent, **apart}


def gradients(rank: int, world: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(ROWS, 6, dtype=torch.float64, generator=generator)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(8, 5)), InputShape((6,)), CLASSES).double()
    result = {}
    for name, (defense, epoch) in defenses(F.cross_entropy(model(x), y).item()).items():
        model.zero_grad()
        model.head_dropout.rate = 0.0
        defense.build(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        collective = Collective(rank, world)
        state = TrainState(model, optimizer, num_classes=CLASSES, seed=0, collective=collective, epoch=epoch)
        state = defense.prepare(state)
        index = torch.arange(ROWS)[rank::world]
        defense.loss(state, Batch(x[index], y[index], index)).backward()
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        if world > 1:
            dist.all_reduce(flat)
        result[name] = flat / world
    return result


def test_two_workers_have_the_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    workers = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment) for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    expected = gradients(0, 1)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(got[name], value, rtol=1e-6, atol=1e-10), name


if __name__ == "__main__":
    folder, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=own_rank, world_size=2)
    torch.save(gradients(own_rank, 2), folder / f"{own_rank}.pt")
    dist.destroy_process_group()
