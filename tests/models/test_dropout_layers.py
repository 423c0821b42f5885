"""Dropout whose masks belong to samples, alone and inside the models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oakum.models._dropout import SampleDropout
from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import MCNN
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.seeding import keyed_uniform, sample_keys

CLASSES = 5


def layer(rate: float, keys: Tensor | None = None) -> SampleDropout:
    dropout = SampleDropout().train()
    dropout.rate, dropout.keys = rate, keys
    return dropout


def keys(count: int, seed: int = 3) -> Tensor:
    return sample_keys(seed, torch.arange(count))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_values_equal_a_twin_by_loops(rate: float) -> None:
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    got = layer(rate, keys(4))(x)
    for sample in range(4):
        draws = keyed_uniform(keys(4)[sample : sample + 1], 6)[0].tolist()
        for place, (value, draw) in enumerate(zip(x[sample].flatten().tolist(), draws, strict=True)):
            expected = 0.0 if draw < rate else value / (1 - rate)
            assert got[sample].flatten()[place].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_and_the_mean_is_kept(rate: float) -> None:
    got = layer(rate, keys(400))(torch.ones(400, 250))
    assert (got == 0).float().mean().item() == pytest.approx(rate, abs=0.006)
    assert got.mean().item() == pytest.approx(1.0, abs=0.04)
    assert got.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])


def test_a_mask_depends_on_its_key_alone() -> None:
    x = torch.ones(30, 17)
    whole = layer(0.5, keys(30))(x)
    chosen = torch.tensor([28, 3, 3, 11])
    assert torch.equal(layer(0.5, keys(30)[chosen])(x[chosen]), whole[chosen])
    assert len({tuple(row.tolist()) for row in whole}) == 30
    assert not torch.equal(layer(0.5, keys(30, seed=4))(x), whole)


def test_gradients_pass_where_values_do() -> None:
    x = torch.randn(6, 9, requires_grad=True)
    got = layer(0.4, keys(6))(x)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(gradient != 0, got != 0)
    assert gradient[gradient != 0].unique().tolist() == pytest.approx([1 / 0.6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_shape_are_kept(dtype: torch.dtype) -> None:
    x = torch.ones(3, 2, 4, 4, dtype=dtype)
    got = layer(0.5, keys(3))(x)
    assert got.dtype == dtype and got.shape == x.shape


def test_it_passes_everything_when_off_or_in_eval_mode() -> None:
    x = torch.randn(4, 5)
    assert layer(0.0)(x) is x
    assert layer(0.9).eval()(x) is x


@pytest.mark.parametrize("wrong", [None, keys(3), keys(5)])
def test_missing_keys_are_an_error(wrong: Tensor | None) -> None:
    with pytest.raises(RuntimeError, match="one key for each sample"):
        layer(0.5, wrong)(torch.ones(4, 5))


MODELS = {
    "mlp": lambda: MLP(MLP.Config(hidden=(12, 7)), InputShape((6,)), CLASSES),
    "mcnn": lambda: MCNN(MCNN.Config(), InputShape((1, 32, 32)), CLASSES),
    "small_cnn": lambda: SmallCNN(SmallCNN.Config(width=4), InputShape((1, 8, 8)), CLASSES),
}


def build(name: str) -> tuple[Classifier, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]()
    return model, torch.rand(4, *model.input_shape.dims)


@pytest.mark.parametrize("name", MODELS)
def test_models_drop_what_the_last_layer_gets(name: str) -> None:
    model, x = build(name)
    (dropout,) = model.dropout_layers()
    dropout.rate, dropout.keys = 0.5, keys(4)
    model.train()
    logits, taps = model(x, with_taps=True)
    features = taps[-1].flatten(1)
    kept = (keyed_uniform(keys(4), features.shape[1]) >= 0.5).float()
    torch.testing.assert_close(logits, model.head(2 * kept * features))


@pytest.mark.parametrize("name", MODELS)
def test_models_are_unchanged_while_it_is_off(name: str) -> None:
    model, x = build(name)
    (dropout,) = model.dropout_layers()
    weights = model.state_dict()
    assert not [key for key in weights if "dropout" in key]
    model.eval()
    expected = model(x)
    dropout.rate = 0.9
    assert torch.equal(model(x), expected)
    assert model.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_layer_of_a_model_is_listed(name: str) -> None:
    model, _ = build(name)
    inside = {id(module) for module in model.modules() if isinstance(module, SampleDropout)}
    assert {id(each) for each in model.dropout_layers()} == inside
