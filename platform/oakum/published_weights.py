"""Weights that the authors of BiDO published, put under the names that oakum's networks give them.

What the authors call their modules is not relied on. A file's tensors are taken in their order, which is the one in
which the modules were registered, and each must have exactly the shape, and where it is a usual one the last part of
the name (`weight`, `running_var`, ...), of the tensor at that place in oakum's network. Equal shapes could hide another
order, so the names must show none: no module is interrupted by another one, and the numbers of a module's parts rise.
Nothing is guessed beyond that: a file that differs in one tensor is refused, and so is one that holds anything but
tensors, which is never executed.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum import registry
from oakum.config import ConfigError
from oakum.weights import WeightsFile, write_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, int, int]
NamedTensors = list[tuple[str, "Tensor"]]
Build = Callable[[Shape, "Sequence[Tensor]"], "nn.Module"]

LICENSE_NOTE = (
    "Published by the authors of BiDO; their repository's terms apply. Networks that were trained on faces can reveal "
    "photographs of real people: research only, do not pass them on."
)
_COLOR_64, _COLOR_32, _GREY_32, _COLOR_112 = (3, 64, 64), (3, 32, 32), (1, 32, 32), (3, 112, 112)
_USUAL = {"weight", "bias", "running_mean", "running_var"}
_LEAST_EMBEDDING, _LARGEST_EMBEDDING = 2, 4096
_COUNTER = "num_batches_tracked"
_PARALLEL_PREFIX = "module."
# What torch's restricted reader raises on damaged files and on files with objects; it documents none of it.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    struct.error,
    pickle.UnpicklingError,
)
_HOW_TO_SAVE = "save it again where it can be loaded: torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class Role:
    """What a published file can be.

    Attributes:
        summary: one line for the command's help.
        architecture: oakum's network.
        sizes: (C, H, W) of the published ones, which are tried in turn.
        build: (size, the file's tensors) -> network; number of classes and latents are read off the tensors.
        orders: orders in which the authors may have registered the parts, which are tried in turn; each lists the
            beginnings of oakum's names, and leaves out what the file need not hold.
        has_pointwise: linear layers are 1x1 convolutions there.
    """

    summary: str
    architecture: str
    sizes: tuple[Shape, ...]
    build: Build
    orders: tuple[tuple[str, ...], ...] = (("",),)
    has_pointwise: bool = False


@dataclass(frozen=True)
class Converted:
    """Published weights under oakum's names.

    Attributes:
        tensors: what the network's `load_state_dict` takes; of `ir_se50` without its head where the file has none.
        size: (C, H, W) of its images.
        num_classes: K, or None where the file has no head with classes.
    """

    tensors: dict[str, Tensor]
    size: Shape
    num_classes: int | None


def import_bido(file: Path, role: str, name: str, folder: Path) -> WeightsFile:
    """Write a published file as weights `name` into `folder` (`weights_folder`).

    Raises:
        ConfigError: see `convert`, or a bad name.
    """
    found = convert(file, role)
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return write_weights(
        folder,
        name,
        found.tensors,
        origin=f"{file.name} of the authors of BiDO (SHA-256 {sha256})",
        architecture=ROLES[role].architecture,
        license_note=LICENSE_NOTE,
        role=role,
        input_shape=list(found.size),
        num_classes=found.num_classes,
    )


def import_torchvision(file: Path | None, name: str, folder: Path) -> WeightsFile:
    """Write the convolutions of torchvision's `vgg16_bn` as weights `name`: a start for `vgg16_bn1d`.

    Args:
        file: its state dict; None: the ImageNet weights, downloaded by torchvision.

    Raises:
        ConfigError: they cannot be downloaded, it is another file, or a bad name.
    """
    from oakum.models._torchvision_names import vgg16_bn_features

    state = _download_vgg16() if file is None else _read(file)
    return write_weights(
        folder,
        name,
        {key: value.contiguous() for key, value in vgg16_bn_features(state).items()},
        origin="torchvision vgg16_bn, IMAGENET1K_V1" if file is None else file.name,
        architecture="vgg16_bn1d without its head",
        license_note="Torchvision's weights; trained on ImageNet, whose terms allow research.",
    )


def _download_vgg16() -> dict[str, Tensor]:
    from torchvision.models import VGG16_BN_Weights

    weights = VGG16_BN_Weights.IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"torchvision cannot download vgg16_bn ({error}); get {weights.url} elsewhere and give the file: "
            "oakum import torchvision --file FILE --name NAME"
        ) from error
    return state


def convert(file: Path, role: str) -> Converted:
    """Return the weights of a published file under oakum's names, float32.

    Counters of batches that a file of an older PyTorch lacks are 0.

    Raises:
        ConfigError: no such role, no file, anything but tensors in it, or not exactly the tensors of the role's
            network; the message names the first that differs.
    """
    if role not in ROLES:
        raise ConfigError(f"--as {role!r}: choose one of {', '.join(ROLES)}")
    kind, state = ROLES[role], _read(file)
    given = [(name, value) for name, value in state.items() if value.is_floating_point()]
    counters = {name: value for name, value in state.items() if not value.is_floating_point()}
    if not given:
        raise ConfigError(f"{file} holds no weights")
    furthest, reason = -1, ""
    for size, network in _networks(kind, [value for _, value in given]):
        for order in kind.orders:
            own = _in_order(network, order)
            position, difference = _first_difference(own, given, kind)
            if not difference:
                _require_order(file, [name for name, _ in given])
                tensors = _renamed(file, own, given, counters, _in_order(network, order, counters=True))
                head = tensors.get("head.weight")
                return Converted(tensors, size, None if head is None else len(head))
            if position > furthest:
                furthest, reason = position, difference
    raise ConfigError(f"{file} is not the published {role} ({kind.architecture}): {reason}")


def _networks(kind: Role, given: Sequence[Tensor]) -> list[tuple[Shape, nn.Module]]:
    """Return the untrained networks that the file could belong to; their tensors have shapes but no values."""
    import torch

    with torch.device("meta"):
        return [(size, kind.build(size, given)) for size in kind.sizes]


def _in_order(network: nn.Module, order: tuple[str, ...], counters: bool = False) -> NamedTensors:
    """Return the floating tensors of a network's parts, or their integer ones, in the order of `order`."""
    state = network.state_dict()
    return [
        (name, value)
        for part in order
        for name, value in state.items()
        if name.startswith(part) and value.is_floating_point() != counters
    ]


def _first_difference(own: NamedTensors, given: NamedTensors, kind: Role) -> tuple[int, str]:
    """Return how many tensors agree, and what is wrong with the next; "" when all agree."""
    for position, ((name, ours), (theirs, value)) in enumerate(zip(own, given, strict=False)):
        needed, shape = tuple(ours.shape), tuple(value.shape)
        if shape != needed and not (kind.has_pointwise and ours.dim() == 2 and shape == (*needed, 1, 1)):
            return position, f"its tensor {theirs!r} has shape {shape} where {name!r} has {needed}"
        leaf, their_leaf = (each.rsplit(".", 1)[-1] for each in (name, theirs))
        if leaf in _USUAL and leaf != their_leaf:
            return position, f"its tensor {theirs!r} stands where {name!r} is"
    agreed = min(len(own), len(given))
    if len(given) < len(own):
        name, ours = own[agreed]
        return agreed, f"it ends after {len(given)} tensors; {name!r} of shape {tuple(ours.shape)} is missing"
    if len(given) > len(own):
        theirs, value = given[agreed]
        return agreed, f"it goes on with {theirs!r} of shape {tuple(value.shape)}, for which there is no place"
    return agreed, ""


def _require_order(file: Path, names: Sequence[str]) -> None:
    """Refuse names that cannot be in the order in which modules were registered.

    A state dict lists each module's tensors in one piece, and the parts of a sequence by their numbers.

    Raises:
        ConfigError: a module is interrupted by another one, or of its parts a lower number follows a higher one.
    """
    before: list[str] = []
    left: set[str] = set()
    last_part: dict[str, int] = {}
    for name in names:
        modules = _modules(name)
        left.update(set(before) - set(modules))
        for module in modules:
            if module in left:
                raise _disordered(file, f"{name!r} is apart from the other tensors of {module!r}")
            parent, _, part = module.rpartition(".")
            if part.isdecimal() and int(part) < last_part.get(parent, 0):
                higher = f"{parent}.{last_part[parent]}".removeprefix(".")
                raise _disordered(file, f"{name!r} comes after those of {higher!r}")
            if part.isdecimal():
                last_part[parent] = int(part)
        before = modules


def _modules(name: str) -> list[str]:
    """Return the modules that a tensor is in, the outermost first: `a` and `a.3` for `a.3.weight`."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _disordered(file: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{file}: its tensors are not in the order of their layers: {what}, so weights of equal shape may have changed "
        f"places; {_HOW_TO_SAVE}"
    )


def _renamed(
    file: Path, own: NamedTensors, given: NamedTensors, counters: dict[str, Tensor], own_counters: NamedTensors
) -> dict[str, Tensor]:
    """Return the given values under the names of `own`, with the counter of each normalization layer.

    Raises:
        ConfigError: an integer tensor belongs to no normalization layer.
    """
    import torch

    pairs = list(zip(own, given, strict=True))
    tensors = {name: value.detach().reshape(ours.shape).to(ours.dtype) for (name, ours), (_, value) in pairs}
    their_layer = {_layer(name): _layer(theirs) for (name, _), (theirs, _) in pairs}
    left = dict(counters)
    for name, _ in own_counters:
        value = left.pop(f"{their_layer[_layer(name)]}{_COUNTER}", torch.zeros(()))
        if value.numel() != 1:
            raise ConfigError(f"{file}: the counter of {name!r} has shape {tuple(value.shape)}, expected one number")
        tensors[name] = value.reshape(()).to(torch.int64)
    if left:
        theirs, value = next(iter(left.items()))
        raise ConfigError(
            f"{file} holds {theirs!r} ({value.dtype}), which is neither a weight nor a counter of batches"
        )
    return tensors


def _layer(name: str) -> str:
    """Return the name without its last part, ending in a dot where anything is left."""
    return name[: name.rfind(".") + 1]


def _read(file: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of torch, without the prefix of a data-parallel wrapper.

    Raises:
        ConfigError: no file, damaged, or anything but tensors by name, alone or as the one entry `state_dict`.
    """
    import torch

    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        what = "it asks for Python objects" if "GLOBAL" in str(error) else type(error).__name__
        raise ConfigError(
            f"{file}: refused: it is damaged, or holds Python objects beside tensors, and those could execute code "
            f"({what}); {_HOW_TO_SAVE}"
        ) from error
    if isinstance(found, dict) and [*found] == ["state_dict"]:
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(_is_weight(name, value) for name, value in found.items()):
        inside = f"keys {', '.join(map(repr, [*found][:5]))}" if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"{file}: not a plain state dict (name -> tensor) but {inside}; {_HOW_TO_SAVE}")
    if found and all(name.startswith(_PARALLEL_PREFIX) for name in found):
        return {name.removeprefix(_PARALLEL_PREFIX): value for name, value in found.items()}
    return found


def _is_weight(name: Any, value: Any) -> bool:
    import torch

    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _classes(given: Sequence[Tensor]) -> int:
    """Return the rows of the last matrix, which is the head's."""
    matrices = [value for value in given if value.dim() >= 2]
    return int(matrices[-1].shape[0]) if matrices else 1


def _classifier(model: str) -> Build:
    def build(size: Shape, given: Sequence[Tensor]) -> nn.Module:
        from oakum.models.base import InputShape

        cls = registry.load("models", model)
        network: nn.Module = cls(cls.Config(), InputShape(size), _classes(given))
        return network

    return build


def _embedding_resnet(model: str) -> Build:
    """Return how to build the published network for a size: depth 34 at 64x64, and 10 below."""

    def build(size: Shape, given: Sequence[Tensor]) -> nn.Module:
        from oakum.models.base import InputShape

        cls = registry.load("models", model)
        config = cls.Config(depth=34 if size == _COLOR_64 else 10, embedding=_embedding(given))
        network: nn.Module = cls(config, InputShape(size), _classes(given))
        return network

    return build


def _embedding(given: Sequence[Tensor]) -> int:
    """Return the rows of the first matrix, which makes the embedding, within what the networks accept."""
    rows = next((int(value.shape[0]) for value in given if value.dim() == 2), 0)
    return min(max(rows, _LEAST_EMBEDDING), _LARGEST_EMBEDDING)


def _bottleneck(build_classifier: Build) -> Build:
    def build(size: Shape, given: Sequence[Tensor]) -> nn.Module:
        from oakum.defenses.mid import BottleneckClassifier
        from oakum.models.base import Classifier

        classifier = build_classifier(size, given)
        assert isinstance(classifier, Classifier)
        return BottleneckClassifier(classifier)

    return build


def _part_of_prior(prior: str, part: str) -> Build:
    def build(size: Shape, given: Sequence[Tensor]) -> nn.Module:
        from oakum.models.base import InputShape

        cls = registry.load("priors", prior)
        latents = int(given[0].shape[1]) if part == "generator" and given[0].dim() == 2 else 100
        network: nn.Module = cls(cls.Config(latent_size=latents), InputShape(size), max(2, _classes(given))).build()[
            part
        ]
        return network

    return build


_IR_ORDERS = (("stem.", "groups.", "embed."), ("stem.", "embed.", "groups."))
_GAN_SIZES = (_COLOR_64, _GREY_32, _COLOR_32)
_VMI_SIZES = (_COLOR_64, _COLOR_32, _GREY_32)
_VMI_MID_ORDERS = tuple(
    ("classifier.stem.", "classifier.stages.", *(f"classifier.{name}." for name in order), "statistics.", "head.")
    for order in (("feature_norm", "embed"), ("embed", "feature_norm"))
)
ROLES: dict[str, Role] = {
    "target_vgg16": Role(
        "target of the face experiments, defended or not",
        "vgg16_bn1d",
        (_COLOR_64, _COLOR_32),
        _classifier("vgg16_bn1d"),
    ),
    "target_vgg16_vib": Role(
        "target of the face experiments, defended by MID",
        "mid on vgg16_bn1d",
        (_COLOR_64, _COLOR_32),
        _bottleneck(_classifier("vgg16_bn1d")),
        orders=(("classifier.stages.", "statistics.", "head."),),
    ),
    "resnet_cls": Role(
        "target of the VMI experiments: depth 34 at 64x64 or 10 at 32x32",
        "resnet_cls",
        _VMI_SIZES,
        _embedding_resnet("resnet_cls"),
    ),
    "resnet_cls_h": Role(
        "the same with hidden layers, as BiDO defends it",
        "resnet_cls_h",
        _VMI_SIZES,
        _embedding_resnet("resnet_cls_h"),
    ),
    "resnet_vib": Role(
        "the same, defended by MID",
        "mid on resnet_cls",
        _VMI_SIZES,
        _bottleneck(_embedding_resnet("resnet_cls")),
        orders=_VMI_MID_ORDERS,
    ),
    "mcnn": Role("target of the MNIST experiments", "mcnn", (_GREY_32,), _classifier("mcnn")),
    "mcnn_vib": Role(
        "target of the MNIST experiments, defended by MID",
        "mid on mcnn",
        (_GREY_32,),
        _bottleneck(_classifier("mcnn")),
        orders=(("classifier.", "statistics.", "head."),),
    ),
    "scnn": Role("evaluation network of the MNIST experiments", "scnn", (_GREY_32,), _classifier("scnn")),
    "vgg19_evaluator": Role(
        "evaluation network of the CIFAR-10 experiments",
        "vgg19_evaluator",
        (_COLOR_32,),
        _classifier("vgg19_evaluator"),
    ),
    "facenet112": Role(
        "evaluation network of the face experiments",
        "facenet112",
        (_COLOR_112,),
        _classifier("facenet112"),
        orders=tuple((*order, "head.") for order in _IR_ORDERS),
    ),
    "ir_se50": Role(
        "evaluation network of the VMI experiments, or the face network that it starts from",
        "ir_se50",
        (_COLOR_112,),
        _classifier("ir_se50"),
        orders=(*((*order, "judge.", "head.") for order in _IR_ORDERS), *_IR_ORDERS),
        has_pointwise=True,
    ),
    "gan_generator": Role(
        "generator of GMI and KED-MI", "wgan_gp generator", _GAN_SIZES, _part_of_prior("wgan_gp", "generator")
    ),
    "gmi_critic": Role("critic of GMI", "wgan_gp critic", _GAN_SIZES, _part_of_prior("wgan_gp", "critic")),
    "kedmi_discriminator": Role(
        "discriminator of KED-MI",
        "inversion_gan discriminator",
        _GAN_SIZES,
        _part_of_prior("inversion_gan", "discriminator"),
    ),
}
