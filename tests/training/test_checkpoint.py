from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from oakum.training.checkpoint import (
    RECORD_FILE,
    CheckpointError,
    load_module,
    load_parts,
    load_strictly,
    save_module,
    save_parts,
)


def network(width: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def stepped(module: nn.Module) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.rand(5, 4)).sum().backward()
    optimizer.step()
    return optimizer


def test_parts_come_back_bit_for_bit(tmp_path: Path) -> None:
    module = network()
    optimizer = stepped(module)
    save_parts(tmp_path, {"model": module, "optimizer": optimizer}, {"epoch": 3})
    other = network(seed=1)
    restored = stepped(other)
    assert load_parts(tmp_path, {"model": other, "optimizer": restored}) == {"epoch": 3}
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    first, second = optimizer.state_dict(), restored.state_dict()
    assert first["param_groups"] == second["param_groups"]
    for index, entry in first["state"].items():
        assert all(torch.equal(torch.as_tensor(second["state"][index][name]), entry[name]) for name in entry)


def test_tied_and_strided_tensors_are_kept(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    with torch.no_grad():
        module[0].weight.copy_(torch.arange(9.0).view(3, 3).T)
    save_module(module, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    load_module(other, tmp_path / "m.safetensors")
    assert torch.equal(other[0].weight, module[0].weight) and torch.equal(other[1].weight, module[0].weight)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (network(width=5), "has shape"),
        (nn.Sequential(nn.Linear(4, 3)), "unexpected"),
        (nn.Sequential(*network(), nn.Linear(2, 2)), "missing '3."),
    ],
    ids=["wider", "fewer layers", "more layers"],
)
def test_another_architecture_is_refused_and_changes_nothing(other: nn.Module, reason: str, tmp_path: Path) -> None:
    save_module(network(), tmp_path / "model.safetensors")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another architecture") as caught:
        load_module(other, tmp_path / "model.safetensors")
    assert reason in str(caught.value) and "model.safetensors" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_load_strictly_names_the_misshapen_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"'0.weight' has shape \(5, 4\), the model needs \(3, 4\)"):
        load_strictly(network(), network(width=5).state_dict(), where="here")


def test_other_parts_are_refused(tmp_path: Path) -> None:
    save_parts(tmp_path, {"model": network()}, {})
    with pytest.raises(CheckpointError, match=r"holds \['model'\], needed are \['critic', 'model'\]"):
        load_parts(tmp_path, {"model": network(), "critic": network()})


def test_a_checkpoint_holds_nothing_that_runs(tmp_path: Path) -> None:
    save_parts(tmp_path, {"model": network()}, {"epoch": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / RECORD_FILE).read_text())["record"] == {"epoch": 1}
