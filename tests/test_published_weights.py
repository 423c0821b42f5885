"""Files as the authors of BiDO publish them: other names, wrappers and prefixes, equal networks."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oakum import registry
from oakum.cli_import import add_import, run_import
from oakum.config import ConfigError
from oakum.defenses.mid import BottleneckClassifier
from oakum.models.base import Classifier, InputShape
from oakum.published_weights import ROLES, convert, import_bido
from oakum.weights import open_weights, read_tensors

VECTORS = Path(__file__).parent / "golden" / "data" / "model_inversion.npz"
State = dict[str, Tensor]


class Reshape(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, *self.dims)


def block(inner: int, outer: int, kernel: int, padding: int, pool: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inner, outer, kernel, 1, padding), nn.BatchNorm2d(outer), nn.LeakyReLU(0.2)]
    return [*layers, nn.MaxPool2d(2, 2)] if pool else layers


def up(inner: int, outer: int) -> list[nn.Module]:
    layer = nn.ConvTranspose2d(inner, outer, 5, 2, padding=2, output_padding=1, bias=False)
    return [layer, nn.BatchNorm2d(outer), nn.ReLU()]


def down(inner: int, outer: int, kernel: int = 5) -> list[nn.Module]:
    layer = nn.Conv2d(inner, outer, kernel, 2, kernel // 2)
    return [layer, nn.InstanceNorm2d(outer, affine=True), nn.LeakyReLU(0.2)]


def theirs(role: str) -> nn.Module:
    """Return a network of the published layout, written down again under names that oakum does not use."""
    if role == "mcnn":
        layers = [*block(1, 64, 7, 1, True), *block(64, 128, 5, 0, True), *block(128, 256, 5, 0, False)]
        return nn.Sequential(nn.Sequential(*layers, nn.Flatten()), nn.Linear(256, 5))
    if role == "scnn":
        wide = [*block(64, 128, 5, 0, False), *block(128, 256, 3, 1, False), *block(256, 512, 3, 1, False)]
        layers = [*block(1, 32, 7, 1, True), *block(32, 64, 5, 0, True), *wide, nn.Flatten()]
        return nn.Sequential(nn.Sequential(*layers), nn.Linear(512, 10))
    if role == "gan_generator":
        start = nn.Sequential(nn.Linear(100, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(), Reshape(256, 4, 4))
        last = nn.ConvTranspose2d(64, 1, 5, 2, padding=2, output_padding=1)
        return nn.Sequential(start, *up(256, 128), *up(128, 64), last, nn.Sigmoid())
    first = [nn.Conv2d(1, 64, 5, 2, 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*first, *down(64, 128), *down(128, 256), nn.Conv2d(256, 1, 4), nn.Flatten(0))


def ours(role: str) -> nn.Module:
    if role in ("mcnn", "scnn"):
        cls = registry.load("models", role)
        network: nn.Module = cls(cls.Config(), InputShape((1, 32, 32)), 5 if role == "mcnn" else 10)
        return network
    cls = registry.load("priors", "wgan_gp")
    parts = cls(cls.Config(latent_size=100), InputShape((1, 32, 32))).build()
    found: nn.Module = parts["generator" if role == "gan_generator" else "critic"]
    return found


@torch.no_grad()
def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, statistics included, values of its own."""
    stream = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.1
            value.copy_(torch.rand(value.shape, generator=stream) * 0.2 + low)
        else:
            value.fill_(7)
    return network.eval()


def renamed(network: nn.Module) -> State:
    return renamed_state(network.state_dict())


def renamed_state(state: State) -> State:
    """Return the state under names that say nothing: `part3.weight`."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    return {f"part{layers.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": state[name] for name in state}


def saved(tmp_path: Path, content: Any, **options: Any) -> Path:
    file = tmp_path / "published.tar"
    torch.save(content, file, **options)
    return file


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "wrapped": lambda state: {"state_dict": state},
    "parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("role", ["mcnn", "scnn", "gan_generator", "gmi_critic"])
def test_the_imported_network_computes_what_the_published_one_does(role: str, wrapper: str, tmp_path: Path) -> None:
    published = filled(theirs(role))
    file = saved(tmp_path, WRAPPERS[wrapper](published.state_dict()))
    network = ours(role).eval()
    written = import_bido(file, role, f"bido_{role}", tmp_path / "weights")
    assert written == open_weights(tmp_path / "weights", f"bido_{role}")
    network.load_state_dict(read_tensors(written), strict=True)
    shape = (3, 100) if role == "gan_generator" else (3, 1, 32, 32)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), published(x), rtol=0, atol=1e-6)
    assert written.facts["role"] == role
    assert written.facts["input_shape"] == [1, 32, 32]
    assert written.facts["num_classes"] == {"mcnn": 5, "scnn": 10}.get(role)
    assert written.facts["origin"].startswith("published.tar of the authors of BiDO (SHA-256 ")


def narrow(role: str, size: tuple[int, ...]) -> nn.Module:
    """Return the role's network with 6 classes and hardly any channels."""
    shape = InputShape(size)
    if role == "kedmi_discriminator":
        gan = registry.load("priors", "inversion_gan")
        parts = gan(gan.Config(width=2, minibatch_outputs=3, minibatch_kernel=2), shape, 6).build()
        discriminator: nn.Module = parts["discriminator"]
        return discriminator
    cls = registry.load("models", UNDER_ANOTHER_NAME.get(role, role))
    network: Classifier = cls(cls.Config(width=2), shape, 6)
    return BottleneckClassifier(network) if role.endswith("vib") else network


UNDER_ANOTHER_NAME = {"target_vgg16": "vgg16_bn1d", "target_vgg16_vib": "vgg16_bn1d"}


def small_role(monkeypatch: pytest.MonkeyPatch, role: str) -> nn.Module:
    """Make the role's network narrow, and return one of it with values."""
    kind = replace(ROLES[role], build=lambda size, given: narrow(role, size))
    monkeypatch.setitem(ROLES, role, kind)
    return filled(narrow(role, kind.sizes[0]))


def in_order(state: State, *parts: str) -> State:
    return {name: value for part in parts for name, value in state.items() if name.startswith(part)}


def as_convolutions(state: State) -> State:
    """Write the gates' linear layers as the 1x1 convolutions that they are in the published file."""
    return {name: value[..., None, None] if ".weigh." in name else value for name, value in state.items()}


IR_ORDERS = [("stem.", "groups.", "embed."), ("stem.", "embed.", "groups.")]


@pytest.mark.parametrize("order", IR_ORDERS)
def test_face_networks_in_either_order_of_their_parts(
    order: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role, head in (("facenet112", ("head.",)), ("ir_se50", ("judge.", "head.")), ("ir_se50", ())):
        state = small_role(monkeypatch, role).state_dict()
        published = as_convolutions(in_order(state, *order, *head))
        found = convert(saved(tmp_path, {f"module.{name}": value for name, value in published.items()}), role)
        assert found.size == (3, 112, 112) and found.num_classes == (6 if head else None)
        expected = in_order(state, *order, *head)
        assert found.tensors.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.tensors.items())


@pytest.mark.parametrize("role", ["target_vgg16", "kedmi_discriminator", "vgg19_evaluator"])
def test_large_networks_by_their_narrow_forms(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_role(monkeypatch, role)
    found = convert(saved(tmp_path, renamed(network)), role)
    assert found.num_classes == 6
    state = network.state_dict()
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.tensors.items())


def test_the_bottleneck_lacks_the_normalization_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_role(monkeypatch, "target_vgg16_vib").state_dict()
    needed = {name: value for name, value in state.items() if "feature_norm" not in name}
    found = convert(saved(tmp_path, needed), "target_vgg16_vib")
    assert found.num_classes == 6
    assert found.tensors.keys() == needed.keys()
    assert all(torch.equal(value, needed[name]) for name, value in found.tensors.items())


def vmi_network(model: str, size: tuple[int, int, int], depth: int, embedding: int) -> Classifier:
    """Return a target of the VMI experiments with 6 classes whose channels are all 1, so that files are small."""
    cls = registry.load("models", model)
    network: Classifier = cls(cls.Config(depth=depth, embedding=embedding, width=1), InputShape(size), 6)
    return network


@pytest.fixture
def narrow_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the channels of the VMI experiments' networks 1 where the roles build them."""
    load = registry.load

    def load_narrow(kind: str, name: str) -> Any:
        cls = load(kind, name)
        if not name.startswith("resnet_cls"):
            return cls
        narrow_config = type("Narrow", (cls.Config,), {"__annotations__": {"width": int}, "width": 1})
        return type("Narrow", (cls,), {"Config": narrow_config})

    monkeypatch.setattr("oakum.published_weights.registry.load", load_narrow)


VMI_FILES = [((3, 64, 64), 34, 5), ((3, 32, 32), 10, 2), ((1, 32, 32), 10, 2)]


@pytest.mark.parametrize(("size", "depth", "embedding"), VMI_FILES)
@pytest.mark.parametrize("role", ["resnet_cls", "resnet_cls_h"])
def test_targets_of_vmi_by_their_narrow_forms(
    role: str, size: tuple[int, int, int], depth: int, embedding: int, tmp_path: Path, narrow_resnets: None
) -> None:
    state = filled(vmi_network(role, size, depth, embedding)).state_dict()
    found = convert(saved(tmp_path, renamed_state(state)), role)
    assert found.size == size and found.num_classes == 6
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.tensors.items())


@pytest.mark.parametrize("order", [("feature_norm", "embed"), ("embed", "feature_norm")])
@pytest.mark.parametrize(("size", "depth", "embedding"), VMI_FILES)
def test_targets_of_vmi_with_a_bottleneck_in_either_order(
    size: tuple[int, int, int],
    depth: int,
    embedding: int,
    order: tuple[str, str],
    tmp_path: Path,
    narrow_resnets: None,
) -> None:
    network = filled(BottleneckClassifier(vmi_network("resnet_cls", size, depth, embedding)))
    middle = [f"classifier.{part}." for part in order]
    state = in_order(network.state_dict(), "classifier.stem.", "classifier.stages.", *middle, "statistics.", "head.")
    assert state.keys() == network.state_dict().keys()
    found = convert(saved(tmp_path, renamed_state(state)), "resnet_vib")
    assert found.size == size and found.num_classes == 6
    network.load_state_dict(found.tensors, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in found.tensors.items())


def test_another_depth_than_the_published_ones_is_refused(tmp_path: Path, narrow_resnets: None) -> None:
    state = filled(vmi_network("resnet_cls_h", (3, 64, 64), 34, 5)).state_dict()
    less = {name: value for name, value in state.items() if not name.startswith("stages.2.5.")}
    with pytest.raises(
        ConfigError, match=r"is not the published resnet_cls_h .* where 'stages\.2\.5\.branch\.0\.weight'"
    ):
        convert(saved(tmp_path, less), "resnet_cls_h")


def test_the_target_of_the_mnist_experiments_with_a_bottleneck(tmp_path: Path) -> None:
    blocks = [*block(1, 64, 7, 1, True), *block(64, 128, 5, 0, True), *block(128, 256, 5, 0, False), nn.Flatten()]
    body, statistics, head = nn.Sequential(*blocks), nn.Linear(256, 256), nn.Linear(128, 5)
    published = filled(nn.ModuleList([body, statistics, head]))
    written = import_bido(saved(tmp_path, published.state_dict()), "mcnn_vib", "their_mid", tmp_path / "weights")
    assert written.facts["architecture"] == "mid on mcnn" and written.facts["num_classes"] == 5
    cls = registry.load("models", "mcnn")
    network = BottleneckClassifier(cls(cls.Config(), InputShape((1, 32, 32)), 5)).eval()
    network.load_state_dict(read_tensors(written), strict=True)
    x = torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean = statistics(body(x))[:, :128]
        torch.testing.assert_close(network(x), head(mean), rtol=0, atol=1e-6)


NETS = {
    "mcnn": "MCNN",
    "scnn": "SCNN",
    "target_vgg16": "VGG16_bido_celeba",
    "vgg19_evaluator": "VGG19_eval_cifar10",
    "resnet_cls_h": "ResNetClsH34_img64_z50_1000",
    "gan_generator": "GMI_Generator_celeba",
    "gmi_critic": "GMI_DGWGAN",
    "kedmi_discriminator": "KED_MinibatchDiscriminator_1000",
}


@pytest.mark.parametrize("role", NETS)
def test_roles_have_the_tensors_of_the_released_code(role: str) -> None:
    net = json.loads(str(np.load(VECTORS)["nets_json"]))[NETS[role]]
    with torch.device("meta"):
        given = [torch.empty(shape) for shape in net["tensors"]]
        network = ROLES[role].build(ROLES[role].sizes[0], given)
    shapes = [list(value.shape) for value in network.state_dict().values() if value.is_floating_point()]
    assert shapes == net["tensors"]


@pytest.mark.parametrize(
    ("role", "size", "matrices", "parameters"),
    [
        ("target_vgg16_vib", (3, 64, 64), [(2048, 2048), (1000, 1024)], 19_944_488),
        ("mcnn_vib", (1, 32, 32), [(256, 256), (5, 128)], 1_094_917),
        ("resnet_vib", (3, 64, 64), [(50, 512), (50, 50), (1000, 25)], 21_339_896),
        ("resnet_cls_h", (3, 32, 32), [(2, 512), (5, 2)], 4_907_861),
        ("resnet_cls", (3, 64, 64), [(50, 512), (1000, 50)], 21_362_446),
    ],
)
def test_networks_have_the_published_size(
    role: str, size: tuple[int, int, int], matrices: list[tuple[int, int]], parameters: int
) -> None:
    with torch.device("meta"):
        network = ROLES[role].build(size, [torch.empty(shape) for shape in matrices])
    published = in_order(dict(network.named_parameters()), *ROLES[role].orders[0])
    assert sum(value.numel() for value in published.values()) == parameters


def mcnn_state() -> State:
    return dict(filled(theirs("mcnn")).state_dict())


def without(name: str) -> State:
    state = mcnn_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            mcnn_state() | {"0.4.weight": torch.zeros(128, 64, 3, 3)},
            r"is not the published mcnn \(mcnn\): its tensor '0.4.weight' has shape \(128, 64, 3, 3\) where "
            r"'block2.0.weight' has \(128, 64, 5, 5\)",
        ),
        (without("1.bias"), r"ends after 19 tensors; 'head.bias' of shape \(5,\) is missing"),
        (without("0.1.weight"), "its tensor '0.1.bias' stands where 'block1.1.weight' is"),
        (mcnn_state() | {"2.weight": torch.zeros(5, 5)}, r"goes on with '2.weight' of shape \(5, 5\)"),
        (mcnn_state() | {"1.scale": torch.zeros(5)}, r"goes on with '1.scale' of shape \(5,\), for which there is no"),
        (mcnn_state() | {"epoch": torch.tensor(3)}, r"holds 'epoch' \(torch.int64\), which is neither a weight nor a"),
        (mcnn_state() | {"0.1.num_batches_tracked": torch.zeros(2).long()}, r"has shape \(2,\), expected one number"),
        ({"counter": torch.tensor(1)}, "holds no weights"),
        ({}, "holds no weights"),
        (filled(theirs("scnn")).state_dict(), "is not the published mcnn"),
    ],
)
def test_another_network_is_refused(state: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        import_bido(saved(tmp_path, state), "mcnn", "bido_mcnn", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("role", ["resnet_cls", "resnet_cls_h", "resnet_vib"])
@pytest.mark.parametrize("first", [torch.zeros(8192, 3), torch.zeros(1, 3), torch.zeros(3)])
def test_a_matrix_that_makes_no_embedding_is_refused(role: str, first: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"is not the published {role} .*its tensor 'a.weight' has shape"):
        convert(saved(tmp_path, {"a.weight": first}), role)


def test_swapped_normalization_tensors_are_seen(tmp_path: Path) -> None:
    """Weight, bias and both statistics have one shape: only their names tell them apart."""
    state = mcnn_state()
    order = list(state)
    i, j = order.index("0.1.running_mean"), order.index("0.1.running_var")
    order[i], order[j] = order[j], order[i]
    with pytest.raises(ConfigError, match=r"'0.1.running_var' stands where 'block1.1.running_mean' is"):
        convert(saved(tmp_path, {name: state[name] for name in order}), "mcnn")


def moved(state: State, names: list[str], behind: str) -> State:
    """Return the same tensors with some of them put behind another one."""
    rest = [name for name in state if name not in names]
    place = rest.index(behind) + 1
    return {name: state[name] for name in [*rest[:place], *names, *rest[place:]]}


def test_units_of_equal_shape_in_another_order_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The units of a group are equal but for their numbers, which are the only ones that tell."""
    state = dict(small_role(monkeypatch, "facenet112").state_dict())
    assert convert(saved(tmp_path, state), "facenet112").num_classes == 6
    unit = [name for name in state if name.startswith("groups.2.9.")]
    last = [name for name in state if name.startswith("groups.2.10.")][-1]
    swapped = moved(state, unit, last)
    assert [state[name].shape for name in swapped] == [value.shape for value in state.values()]
    with pytest.raises(ConfigError, match=rf"'{unit[0]}' comes after those of 'groups\.2\.10', so weights of equal"):
        convert(saved(tmp_path, {f"module.{name}": value for name, value in swapped.items()}), "facenet112")
    weights = [f"groups.2.{number}.branch.1.weight" for number in (9, 10)]
    assert set(weights) <= state.keys()
    one = {name: dict(zip(weights, weights[::-1], strict=True)).get(name, name) for name in state}
    with pytest.raises(
        ConfigError, match=r"'groups\.2\.9\.[a-z0-9.]*' is apart from the other tensors of 'groups\.2\.9'"
    ):
        convert(saved(tmp_path, {name: state[name] for name in one.values()}), "facenet112")


def test_parts_may_be_numbered_with_gaps_and_hold_tensors_of_their_own(tmp_path: Path) -> None:
    names = [name.replace("0.", "body.", 1) if name.startswith("0.") else f"11.{name}" for name in mcnn_state()]
    names = [name.replace("body.10", "body.12") for name in names]
    state = dict(zip(names, mcnn_state().values(), strict=True))
    assert convert(saved(tmp_path, state), "mcnn").num_classes == 5


def test_old_files_without_counters_and_half_precision(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in mcnn_state().items() if value.is_floating_point()}
    found = convert(saved(tmp_path, state, _use_new_zipfile_serialization=False), "mcnn")
    assert all(value.dtype == torch.float32 for value in found.tensors.values() if value.is_floating_point())
    assert found.tensors["block1.1.num_batches_tracked"] == 0
    assert torch.equal(found.tensors["head.weight"], state["1.weight"].float())
    network = ours("mcnn")
    network.load_state_dict(found.tensors, strict=True)
    assert convert(saved(tmp_path, mcnn_state()), "mcnn").tensors["block1.1.num_batches_tracked"] == 7


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = mcnn_state() | {"1.bias": torch.full((5,), float("nan"))}
    with pytest.raises(ConfigError, match=r"NaN or infinity in 'head.bias'"):
        import_bido(saved(tmp_path, state), "mcnn", "bido_mcnn", tmp_path / "weights")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.place),))

    def __init__(self, place: Path) -> None:
        self.place = str(place)


@pytest.mark.parametrize("form", ["object", "module", "pickle", "text", "cut"])
def test_anything_but_tensors_is_refused_and_never_executed(form: str, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    file = tmp_path / "published.tar"
    if form == "object":
        torch.save({"state_dict": mcnn_state() | {"x": Harmful(trace)}}, file)
    elif form == "module":
        torch.save(theirs("mcnn"), file)
    elif form == "pickle":
        file.write_bytes(pickle.dumps(Harmful(trace)))
    elif form == "text":
        file.write_text("404: not found")
    else:
        torch.save(mcnn_state(), file)
        file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ConfigError, match=r"refused: it is damaged, or holds Python objects") as caught:
        convert(file, "mcnn")
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "keys 'state_dict', 'epoch'"),
        ({"state_dict": {"state_dict": {}}}, "keys 'state_dict'"),
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
        ({"a": 1.5}, "keys 'a'"),
        ({3: torch.zeros(1)}, "keys 3"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "keys 'a'"),
        ({"a": torch.eye(2).to_sparse()}, "keys 'a'"),
    ],
)
def test_other_contents_are_refused(content: Any, inside: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"not a plain state dict \(name -> tensor\) but {inside}"):
        convert(saved(tmp_path, content), "mcnn")


def test_no_file_and_no_role(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        convert(tmp_path / "absent.tar", "mcnn")
    with pytest.raises(ConfigError, match="--as 'vgg': choose one of target_vgg16, "):
        convert(tmp_path / "absent.tar", "vgg")


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_import(parser.add_subparsers())
    options = parser.parse_args([*map(str, words)])
    assert options.command == "import_bido"
    return run_import(options)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OAKUM_HOME", str(tmp_path / "home"))
    file = saved(tmp_path, {"state_dict": mcnn_state()})
    assert run("import", "bido", file, "--as", "mcnn", "--name", "bido_mcnn") == 0
    assert capsys.readouterr().out.startswith("bido_mcnn: mcnn, 1x32x32, 5 classes, 4,")
    tensors = read_tensors(open_weights(tmp_path / "home" / "weights", "bido_mcnn"))
    assert torch.equal(tensors["head.bias"], mcnn_state()["1.bias"])
    with pytest.raises(ConfigError, match="use lower-case letters"):
        run("import", "bido", file, "--as", "mcnn", "--name", "BiDO MCNN")
    with pytest.raises(SystemExit):
        run("import", "bido", file, "--as", "vgg", "--name", "bido")
    assert "invalid choice: 'vgg'" in capsys.readouterr().err
