"""`oakum audit`: numbers against a naive twin, files that are refused and never executed, and what is said."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from oakum import cli
from oakum.attacks.access import Access
from oakum.attacks.membership.base import MembershipAttack
from oakum.attacks.membership.loss import Loss
from oakum.audit import AttackResult, Audit
from oakum.audit_checks import compare_samples
from oakum.audit_examined import Examined
from oakum.audit_inputs import AuditRequest, ModelFiles, load_weights, read_points
from oakum.audit_text import conclusions, describe
from oakum.config import ConfigError
from oakum.models._normalization import batch_to_group_norm
from oakum.models.base import Classifier, InputShape
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.records import MetricValue

CLASSES, FEATURES = 3, 12
MODEL = ["--model", "mlp", "--model-option", "hidden=[32]", "--num-classes", CLASSES]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Give the command `oakum audit` in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def command(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = cli.main(["audit", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    yield command
    signal.signal(signal.SIGTERM, before)


def network(seed: int = 0, **settings: Any) -> MLP:
    torch.manual_seed(seed)
    return MLP(MLP.Config(**{"hidden": (32,), **settings}), InputShape((FEATURES,)), CLASSES)


def samples(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return rows and labels that a third of them shows; equal numbers of every class."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(count) % CLASSES)
    x = rng.random((count, FEATURES))
    shown = rng.random(count) < 1 / 3
    x[shown] *= np.arange(FEATURES) % CLASSES == y[shown, None]
    return x.astype(np.float32), y


def trained(module: Classifier, x: NDArray[np.float32], y: NDArray[np.int64], steps: int = 150) -> Classifier:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a shadow model that have learned their members by heart, and their files."""
    place = tmp_path_factory.mktemp("audit")
    for prefix, seed in (("", 1), ("shadow_", 2)):
        members, others = samples(60, seed), samples(90, seed + 10)
        np.savez(place / f"{prefix}members.npz", x=members[0], y=members[1])
        np.savez(place / f"{prefix}nonmembers.npz", x=others[0], y=others[1])
        save_file(trained(network(seed), *members).state_dict(), place / f"{prefix}weights.safetensors")
    return place


def target(folder: Path, **changes: object) -> list[object]:
    files = {name: folder / f"{name}.npz" for name in ("members", "nonmembers")}
    files = {"weights": folder / "weights.safetensors", **files, **changes}
    return [*MODEL, *(part for name, path in files.items() for part in (f"--{name}", path))]


def shadow(folder: Path) -> list[object]:
    files = shadow_files(folder)
    return [part for name, path in vars(files).items() for part in (f"--shadow-{name}", path)]


def target_files(folder: Path) -> ModelFiles:
    return ModelFiles(folder / "weights.safetensors", folder / "members.npz", folder / "nonmembers.npz")


def shadow_files(folder: Path) -> ModelFiles:
    names = ("shadow_weights.safetensors", "shadow_members.npz", "shadow_nonmembers.npz")
    return ModelFiles(*(folder / name for name in names))


def request(folder: Path, **changes: Any) -> AuditRequest:
    return AuditRequest("mlp", CLASSES, target_files(folder), model_options=("hidden=[32]",), **changes)


def load(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(path) as archive:
        return archive["x"], archive["y"]


def naive_scores(weights: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return log p_y of each sample by a forward pass of matrices in float64."""
    layers = {name: value.astype(np.float64) for name, value in load_file(weights).items()}
    hidden = np.tanh(x @ layers["layers.0.0.weight"].T + layers["layers.0.0.bias"])
    logits = hidden @ layers["head.weight"].T + layers["head.bias"]
    totals = [math.log(sum(math.exp(value) for value in row)) for row in logits]
    return np.array([row[label] - total for row, label, total in zip(logits, y, totals, strict=True)])


def naive_threshold(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    return float(max([*inside, *outside], key=lambda value: np.mean(inside >= value) + np.mean(outside < value)))


def test_auc_and_accuracies_equal_a_naive_twin(audit: Command, folder: Path) -> None:
    answer = audit(*target(folder), "--attacks", "loss", "--json")
    assert answer.code == 0 and answer.err == "oakum: attack loss\n"
    found = json.loads(answer.out)
    weights = folder / "weights.safetensors"
    inside, outside = (naive_scores(weights, *load(folder / f"{name}.npz")) for name in ("members", "nonmembers"))
    wins = np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside])
    auc = found["attacks"]["loss"]["metrics"]["auc"]
    assert auc["value"] == pytest.approx(wins, abs=1e-3) and auc["low"] <= auc["value"] <= auc["high"]
    assert auc["value"] > 0.6
    assert "balanced_accuracy" not in found["attacks"]["loss"]["metrics"]
    assert (found["members"], found["nonmembers"], found["attacks"]["loss"]["access"]) == (60, 90, "scores")
    for name in ("members", "nonmembers"):
        x, y = load(folder / f"{name}.npz")
        module = network()
        load_weights(module, folder / "weights.safetensors", "--weights")
        right = float((module(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
        assert found["utility"][f"{name.removesuffix('s')}_accuracy"]["value"] == pytest.approx(right)
    gap = found["utility"]["member_accuracy"]["value"] - found["utility"]["nonmember_accuracy"]["value"]
    assert found["utility"]["accuracy_gap"]["value"] == pytest.approx(gap) and gap > 0


def test_a_shadow_model_gives_thresholds_and_never_the_target(audit: Command, folder: Path) -> None:
    answer = audit(*target(folder), *shadow(folder), "--attacks", "loss", "--json")
    metrics = json.loads(answer.out)["attacks"]["loss"]["metrics"]
    scores, is_member, y = [], [], []
    for prefix, files in (("shadow-", shadow_files(folder)), ("", target_files(folder))):
        examined = Examined.read(request(folder), files, prefix)
        scores.append(naive_scores(files.weights, examined.points.x.numpy(), examined.points.y.numpy()))
        is_member.append(examined.is_member)
        y.append(examined.points.y.numpy())
    own, bits = scores[0], is_member[0]
    by_class = [naive_threshold(own[bits & (y[0] == k)], own[~bits & (y[0] == k)]) for k in range(CLASSES)]
    for name, threshold in (
        ("balanced_accuracy", naive_threshold(own[bits], own[~bits])),
        ("balanced_accuracy_per_class", np.array(by_class)[y[1]]),
    ):
        called = scores[1] >= threshold
        expected = (np.mean(called[is_member[1]]) + np.mean(~called[~is_member[1]])) / 2
        assert metrics[name]["value"] == pytest.approx(expected, abs=0.01)
    without = json.loads(audit(*target(folder), "--attacks", "loss", "--json").out)
    assert without["attacks"]["loss"]["metrics"]["auc"] == metrics["auc"]


def test_the_text_holds_the_numbers_and_what_they_mean(audit: Command, folder: Path) -> None:
    answer = audit(*target(folder), *shadow(folder), "--attacks", "entropy", "loss", "loss")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "mlp, 3 classes, 515 parameters; 60 members and 90 non-members of shape 12"
    assert lines[1].startswith("accuracy: 100.0 % on members, ")
    assert " ".join(lines[3].split()) == "attack access AUC [95 % interval] balanced acc. by class"
    assert [line.split()[0] for line in lines[4:6]] == ["entropy", "loss"]
    assert "Unresolved: TPR@10% needs 100 non-members, has 90" in lines
    assert "The model leaks membership: loss scores a random member above a random non-member in " in answer.out
    assert "the largest value" in answer.out and max(map(len, lines[:6])) <= 120
    assert answer.out.isascii()


def test_swapped_files_turn_the_signal(audit: Command, folder: Path) -> None:
    first, second = folder / "members.npz", folder / "nonmembers.npz"
    files = (target(folder, members=first, nonmembers=second), target(folder, members=second, nonmembers=first))
    found = [json.loads(audit(*each, "--attacks", "loss", "--json").out) for each in files]
    aucs = [each["attacks"]["loss"]["metrics"]["auc"]["value"] for each in found]
    assert sum(aucs) == pytest.approx(1.0)
    assert found[1]["attacks"]["loss"]["flags"] == ["inverted signal"]
    assert "scores them below" in found[1]["conclusions"][0]


def test_a_seed_repeats_everything(audit: Command, folder: Path) -> None:
    options = [*target(folder), *shadow(folder), "--attacks", "loss", "nn", "--json", "--seed"]
    first, second, other = (audit(*options, seed).out for seed in (0, 0, 1))
    assert first == second
    aucs, others = (json.loads(each)["attacks"]["loss"]["metrics"]["auc"] for each in (first, other))
    assert aucs["value"] == others["value"] and aucs != others


def test_every_attack_runs_with_a_shadow_model_and_those_without_need_of_one_without(
    audit: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oakum import registry

    names = set(registry.available("attacks.membership"))
    fitted = {name for name in names if registry.load("attacks.membership", name).needs_shadow}
    found = json.loads(audit(*target(folder), *shadow(folder), "--json", "--gradient-points", 25).out)
    assert found["attacks"].keys() == names and found["uses_shadow"]
    assert all("balanced_accuracy" in attack["metrics"] for attack in found["attacks"].values())
    monkeypatch.setattr(Loss, "needs_shadow", True)
    found = json.loads(audit(*target(folder), "--json", "--gradient-points", 25).out)
    assert found["attacks"].keys() == names - fitted - {"loss"} and not found["uses_shadow"]
    answer = audit(*target(folder), "--attacks", "loss")
    assert answer.code == 2 and "--attacks loss: it is fitted on a shadow model; give --shadow-weights" in answer.err


def test_it_writes_what_it_prints_and_no_path_of_the_machine(audit: Command, folder: Path, tmp_path: Path) -> None:
    answer = audit(*target(folder), "--attacks", "loss", "--json", "--output", tmp_path / "a" / "b")
    written = (tmp_path / "a" / "b" / "audit.json").read_text()
    assert json.loads(written) == json.loads(answer.out)
    assert str(folder) not in written
    assert json.loads(written)["files"]["--members"]["name"] == "members.npz"
    (tmp_path / "file").touch()
    answer = audit(*target(folder), "--attacks", "loss", "--output", tmp_path / "file" / "b")
    assert answer.code == 2 and answer.out == "" and "cannot write there" in answer.err


def save_points(path: Path, x: object, y: object) -> Path:
    np.savez(path, x=x, y=y)
    return path


def test_bytes_and_floats_of_images_are_the_same_images(audit: Command, tmp_path: Path) -> None:
    module = MLP(MLP.Config(hidden=(4,)), InputShape((1, 2, 3)), CLASSES)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    options = [
        "--model",
        "mlp",
        "--model-option",
        "hidden=[4]",
        "--num-classes",
        CLASSES,
        "--attacks",
        "loss",
        "--json",
    ]
    found = []
    for kind in (np.uint8, np.float32, np.float64):
        rng = np.random.default_rng(0)
        paths = []
        for name in ("members", "nonmembers"):
            x = rng.integers(0, 256, size=(30, 1, 2, 3)).astype(np.uint8)
            x = x if kind == np.uint8 else (x.astype(np.float32) / np.float32(255)).astype(kind)
            paths += [f"--{name}", save_points(tmp_path / f"{name}.npz", x, np.arange(30, dtype=np.uint8) % CLASSES)]
        answer = audit(*options, "--weights", tmp_path / "weights.safetensors", *paths)
        found.append(json.loads(answer.out)["attacks"])
    assert found[0] == found[1] == found[2]


def test_rows_may_be_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((20, FEATURES)) < 0.5
    points = read_points(save_points(tmp_path / "a.npz", bits, np.zeros(20, int)), "--members", CLASSES)
    assert points.x.dtype == torch.float32 and np.array_equal(points.x.numpy(), bits) and len(points) == 20


def test_model_options_reach_the_model(audit: Command, folder: Path, tmp_path: Path) -> None:
    x, y = load(folder / "members.npz")
    module = network(7, mean=(0.25,), std=(0.5,), activation="relu")
    trained(module, x, y)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    options = ["--model-option", "activation=relu", "--attacks", "loss", "--json"]
    normalization = ["--model-option", "mean=[0.25]", "--model-option", "std=[0.5]"]
    plain = json.loads(audit(*target(folder, weights=tmp_path / "w.pt"), *options).out)
    right = json.loads(audit(*target(folder, weights=tmp_path / "w.pt"), *options, *normalization).out)
    logits = module(torch.from_numpy(x)).argmax(1).numpy()
    assert right["utility"]["member_accuracy"]["value"] == pytest.approx(float((logits == y).mean()))
    expected = {"mean": [0.25], "std": [0.5], "initial_weights": None, "hidden": [32], "activation": "relu"}
    assert right["model"]["options"] == expected
    assert plain["attacks"] != right["attacks"]


def test_group_normalization(audit: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES)
    assert batch_to_group_norm(module) > 0
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    options: list[object] = ["--model", "small_cnn", "--model-option", "width=2", "--num-classes", CLASSES]
    options += ["--weights", tmp_path / "weights.safetensors", "--attacks", "loss"]
    rng = np.random.default_rng(0)
    for name in ("members", "nonmembers"):
        options += [
            f"--{name}",
            save_points(tmp_path / f"{name}.npz", rng.random((25, 1, 8, 8)), np.arange(25) % CLASSES),
        ]
    assert audit(*options, "--norm", "group").code == 0
    answer = audit(*options)
    assert answer.code == 2 and "missing" in answer.err and "--norm" in answer.err


@pytest.mark.parametrize("form", ["zip", "legacy", "half", "parallel"])
def test_forms_of_state_dicts(audit: Command, folder: Path, tmp_path: Path, form: str) -> None:
    module = network()
    load_weights(module, folder / "weights.safetensors", "--weights")
    state = (nn.DataParallel(module) if form == "parallel" else module).state_dict()
    if form == "half":
        state = {name: value.half() for name, value in state.items()}
    torch.save(state, tmp_path / "weights.pt", _use_new_zipfile_serialization=form != "legacy")
    expected = json.loads(audit(*target(folder), "--attacks", "loss", "--json").out)
    found = json.loads(audit(*target(folder, weights=tmp_path / "weights.pt"), "--attacks", "loss", "--json").out)
    assert found["utility"] == expected["utility"]
    if form == "half":
        assert found["attacks"]["loss"]["metrics"]["auc"]["value"] == pytest.approx(
            expected["attacks"]["loss"]["metrics"]["auc"]["value"], abs=0.01
        )
    else:
        assert found["attacks"] == expected["attacks"]
    assert [bool("data-parallel" in warning) for warning in found["warnings"]] == ([True] if form == "parallel" else [])


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("option", ["weights", "members", "nonmembers"])
@pytest.mark.parametrize("name", ["evil.pt", "legacy.pt", "bare.pkl", "evil.safetensors", "evil.npz", "evil.npy"])
def test_what_would_execute_code_is_refused_and_does_not_execute(
    audit: Command, folder: Path, tmp_path: Path, option: str, name: str
) -> None:
    evil, marker = Evil(tmp_path / "executed"), tmp_path / "executed"
    path = tmp_path / name
    if name.endswith(".npz"):
        np.savez(path, x=np.array([evil], dtype=object), y=np.zeros(1, int))
    elif name.endswith(".npy"):
        np.save(path, np.array([evil], dtype=object), allow_pickle=True)
    elif name == "bare.pkl":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({"layers.0.0.weight": evil}, path, _use_new_zipfile_serialization=name != "legacy.pt")
    answer = audit(*target(folder, **{option: path}), "--attacks", "loss")
    assert answer.code == 2 and answer.out == "" and not marker.exists()
    assert f"oakum: --{option} {path}: " in answer.err and len(answer.err.splitlines()) == 1
    assert "weights_only=False" not in answer.err and "allow_pickle" not in answer.err
    assert "torch.save(model.state_dict(), FILE)" in answer.err if option == "weights" else "numpy.savez" in answer.err
    with pytest.raises(FileExistsError):
        marker.mkdir()
        pickle.loads(pickle.dumps(evil))


def test_whole_modules_and_scripts_are_refused(audit: Command, folder: Path, tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    for name in ("module.pt", "script.pt"):
        answer = audit(*target(folder, weights=tmp_path / name), "--attacks", "loss")
        assert answer.code == 2 and "refused" in answer.err and "torch.save(model.state_dict(), FILE)" in answer.err


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"state_dict": network().state_dict(), "epoch": 3},
            "not a plain state dict (name -> tensor) but keys 'state_dict'",
        ),
        ([torch.zeros(3)], "not a plain state dict (name -> tensor) but list"),
        ({0: torch.zeros(3)}, "but keys 0"),
        ({"head.bias": torch.zeros(3).to_sparse()}, "but keys 'head.bias'"),
        ({"head.bias": torch.zeros(3, device="meta")}, "but keys 'head.bias'"),
        ({}, "missing 'head.bias' (and 3 more)"),
        ({**network().state_dict(), "extra": torch.zeros(1)}, "unexpected 'extra'"),
        ({**network().state_dict(), "head.bias": torch.zeros(4)}, "'head.bias' has shape (4,), the model needs (3,)"),
        ({**network().state_dict(), "head.bias": torch.tensor([0.0, math.nan, 0.0])}, "'head.bias' is not finite"),
        ({**network().state_dict(), "head.bias": torch.tensor([3e38] * 3) * 1e30}, "'head.bias' is not finite"),
    ],
)
def test_state_dicts_that_do_not_fit(audit: Command, folder: Path, tmp_path: Path, state: object, said: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    answer = audit(*target(folder, weights=tmp_path / "w.pt"), "--attacks", "loss")
    assert answer.code == 2 and answer.out == "" and said in answer.err, answer.err


def test_a_model_that_answers_nan_is_refused(audit: Command, folder: Path, tmp_path: Path) -> None:
    state = network().state_dict()
    state["head.weight"] = torch.full_like(state["head.weight"], 3e38)
    torch.save(state, tmp_path / "w.pt")
    answer = audit(*target(folder, weights=tmp_path / "w.pt"), "--attacks", "loss")
    assert answer.code == 2 and "the model answers NaN to " in answer.err


X, Y = samples(6, 3)
IMAGES = np.random.default_rng(0).random((6, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X, Y + 1, "labels run from 1 to 3, but --num-classes 3 allows 0 to 2"),
        (X, Y - 1, "labels run from -1 to 1"),
        (X, Y.astype(float), "y must hold one whole number for each sample, not float64 of shape (6,)"),
        (X, np.eye(3)[Y], "not float64 of shape (6, 3)"),
        (X, Y[:5], "x has 6 samples and y 5 labels"),
        (X[:0], Y[:0], "x has 0 samples and y 0 labels; equal numbers are needed, at least 1"),
        (X[0], Y, "x must be images (N, C, H, W) or rows (N, F), not of shape (12,)"),
        (IMAGES[0], Y[:3], "not of shape (3, 4, 5)"),
        (IMAGES.transpose(0, 2, 3, 1), Y, "put the channels second: `x.transpose(0, 3, 1, 2)`"),
        (X + 1, Y, "x must lie in [0, 1]; undo the normalization"),
        (X - 0.5, Y, "x must lie in [0, 1]"),
        (np.where(X > 0.7, np.nan, X), Y, "x must lie in [0, 1]"),
        ((255 * X).astype(np.uint8), Y, "x is uint8; rows must be bool or floating"),
        (X.astype(complex), Y, "x is complex128; rows must be bool or floating"),
        ((255 * IMAGES).astype(np.int32), Y, "x is int32; images must be uint8 or floating"),
        ((IMAGES > 0.5).astype(np.uint8), Y, "uint8 images hold 0 to 255, these only 0 and 1"),
    ],
)
def test_points_that_are_refused(tmp_path: Path, x: object, y: object, said: str) -> None:
    path = save_points(tmp_path / "points.npz", x, y)
    with pytest.raises(ConfigError) as error:
        read_points(path, "--members", CLASSES)
    assert str(error.value).startswith(f"--members {path}: ") and said in str(error.value)


def test_archives_that_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "no_y.npz", x=X, labels=Y)
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "text.npz").write_text("x, y\n1, 2\n")
    (tmp_path / "empty.npz").touch()
    for name, said in (
        ("no_y.npz", "there is no 'y' inside (found: x, labels)"),
        ("array.npy", "a single array, not an .npz archive"),
        ("text.npz", "refused: no .npz archive of plain arrays, or damaged"),
        ("empty.npz", "refused: no .npz archive of plain arrays, or damaged"),
        ("absent.npz", "there is no such file"),
        (".", "there is no such file"),
    ):
        with pytest.raises(ConfigError) as error:
            read_points(tmp_path / name, "--members", CLASSES)
        assert said in str(error.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "legacy.pt", "members.npz"])
def test_damaged_files_are_refused_and_never_crash(folder: Path, tmp_path: Path, name: str) -> None:
    module = network()
    load_weights(module, folder / "weights.safetensors", "--weights")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    torch.save(module.state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / name if name.endswith(".pt") else folder / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        damaged = bytearray(whole)
        if rng.random() < 0.5:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            damaged[rng.integers(min(400, len(whole)))] = rng.integers(256)
        path = tmp_path / f"damaged.{name.split('.')[1]}"
        path.write_bytes(damaged)
        try:
            if name == "members.npz":
                read_points(path, "--members", CLASSES)
            else:
                load_weights(network(), path, "--weights")
        except ConfigError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "mpl"], "unknown model 'mpl'; did you mean 'mlp'?"),
        (["--attacks", "los"], "unknown membership attack 'los'; did you mean 'loss'?"),
        (["--model-option", "hiden=[3]"], "--model-option of mlp: hiden: unknown key; did you mean 'hidden'?"),
        (["--model-option", "activation"], "--model-option 'activation': write key=value"),
        (["--model-option", "activation=["], "'[' is not valid YAML"),
        (["--model-option", "hidden=[8]"], "--model-option hidden is given twice"),
        (["--model-option", "mean=[0.1, 0.2]"], "need 1 or 1 numbers, got 2"),
        (["--num-classes", "4"], "has shape (3, 32), the model needs (4, 32)"),
        (["--num-classes", "2"], "labels run from 0 to 2, but --num-classes 2 allows 0 to 1"),
        (["--num-classes", "0"], "write a whole number of at least 1"),
        (["--gradient-points", "-3"], "write a whole number of at least 1"),
        (["--model", "small_cnn", "--model-option", "width=2"], "hidden: unknown key"),
        (["--weights", "absent.pt"], "--weights absent.pt: there is no such file"),
        (["--nonmembers", "absent.npz"], "--nonmembers absent.npz: there is no such file"),
        (["--shadow-weights", "w.pt"], "needs all of --shadow-weights, --shadow-members and --shadow-nonmembers"),
    ],
)
def test_wrong_commands_end_with_2_and_say_why(audit: Command, folder: Path, arguments: list[str], said: str) -> None:
    answer = audit(*target(folder), *arguments)
    assert answer.code == 2 and answer.out == "" and said in answer.err and "Traceback" not in answer.err, answer.err


def test_a_sample_that_is_both_is_refused(audit: Command, folder: Path, tmp_path: Path) -> None:
    x, y = load(folder / "nonmembers.npz")
    x[5] = load(folder / "members.npz")[0][17]
    x[7] = load(folder / "members.npz")[0][40]
    mixed = save_points(tmp_path / "mixed.npz", x, y)
    answer = audit(*target(folder, nonmembers=mixed))
    said = "2 samples are in both files, such as number 17 of --members and number 5 of --nonmembers"
    assert answer.code == 2 and said in answer.err


def test_samples_of_two_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"samples of different shapes: \(3,\) and \(4,\)"):
        compare_samples(torch.rand(2, 3), torch.rand(2, 4), "--members", "--nonmembers")


def test_repeated_samples_shadow_overlap_and_class_shares_are_said(
    audit: Command, folder: Path, tmp_path: Path
) -> None:
    x, y = load(folder / "members.npz")
    x, y = np.concatenate([x, x[:4]]), np.concatenate([y, y[:4]])
    repeated = save_points(tmp_path / "repeated.npz", x, y)
    own, labels = load(folder / "nonmembers.npz")
    skewed = save_points(tmp_path / "skewed.npz", own[labels == 0], labels[labels == 0])
    options = [*target(folder, members=repeated, nonmembers=skewed), *shadow(folder)]
    position = options.index("--shadow-members") + 1
    options[position] = folder / "members.npz"
    said = " ".join(json.loads(audit(*options, "--attacks", "loss", "--json").out)["warnings"])
    assert "--members: 4 of 64 samples repeat another one" in said
    assert "the shares of the classes differ between members and non-members (chi-square, p = " in said
    assert "60 samples of the shadow model's files are among the target's" in said
    assert json.loads(audit(*target(folder), *shadow(folder), "--attacks", "loss", "--json").out)["warnings"] == []


def test_a_model_that_fails_on_its_members_is_suspected(audit: Command, folder: Path, tmp_path: Path) -> None:
    x, y = load(folder / "members.npz")
    permuted = save_points(tmp_path / "permuted.npz", x, (y + 1) % CLASSES)
    answer = audit(*target(folder, members=permuted), "--attacks", "loss")
    assert answer.code == 0
    assert (
        "Warning: the accuracy on members is 0.0 %, not clearly above chance (33.3 %): the order of the cl"
        in answer.out
    )


@pytest.mark.parametrize(("inside", "outside"), [(1, 1), (3, 2), (60, 5)])
def test_few_points_are_unresolved_and_no_crash(
    audit: Command, folder: Path, tmp_path: Path, inside: int, outside: int
) -> None:
    files = {}
    for name, count in (("members", inside), ("nonmembers", outside)):
        x, y = load(folder / f"{name}.npz")
        files[name] = save_points(tmp_path / f"{name}.npz", x[:count], y[:count])
    answer = audit(*target(folder, **files), *shadow(folder), "--attacks", "loss", "--json")
    metrics = json.loads(answer.out)["attacks"]["loss"]["metrics"]
    assert metrics["tpr_at_fpr_0.1"]["value"] is None and "low" not in metrics["auc"]
    text = audit(*target(folder, **files), *shadow(folder), "--attacks", "loss").out
    assert "too few points for intervals: nothing can be concluded" in text
    assert "Unresolved: no interval: needs 20 members and 20 non-members" in text


class OnGradients(MembershipAttack):
    access = Access.WEIGHTS
    needs_gradients = True


def test_attacks_get_points_in_an_order_that_tells_nothing(folder: Path) -> None:
    examined = Examined.read(request(folder), request(folder).target)
    assert examined.points.rows.tolist() == list(range(150))
    members = load(folder / "members.npz")[0]
    inside = [any(np.array_equal(x, member) for member in members) for x in examined.points.x.numpy()]
    assert inside == examined.is_member.tolist() and sum(inside) == 60
    places = np.flatnonzero(examined.is_member)
    # Of 150 places 60 are the members': their mean is 74.5 with a standard deviation of 4.3.
    assert abs(places.mean() - 74.5) < 4 * 4.3
    assert np.diff(examined.is_member.astype(int)).any()


def test_attacks_on_gradients_are_asked_about_the_first_points_of_each_file(folder: Path) -> None:
    from oakum.attacks.membership._gradients import gradient_statistics

    chosen = request(folder, gradient_points=4)
    examined = Examined.read(chosen, chosen.target)
    attack = OnGradients(MembershipAttack.Config())
    points, is_member = examined.asked_by(attack)
    expected = [tuple(row) for name in ("members", "nonmembers") for row in load(folder / f"{name}.npz")[0][:4]]
    assert sorted(map(tuple, points.x.numpy())) == sorted(expected)
    assert [tuple(row) in expected[:4] for row in points.x.numpy()] == is_member.tolist()
    found = examined.target(attack).gradient_statistics(points)
    direct = gradient_statistics(examined.module, points.x, points.y)
    assert found.keys() == direct.keys()
    assert all(found[name].tolist() == direct[name].tolist() for name in found)
    everyone, _ = examined.asked_by(Loss(Loss.Config()))
    assert len(everyone) == 150
    assert len(Examined.read(request(folder), chosen.target).asked_by(attack)[0]) == 150


def result(name: str, auc: MetricValue, **changes: Any) -> AttackResult:
    return replace(AttackResult(name, "scores", 40, 40, {"auc": auc}, ()), **changes)


def an_audit(*attacks: AttackResult, **changes: Any) -> Audit:
    utility = {name: MetricValue(0.5) for name in ("member_accuracy", "nonmember_accuracy", "accuracy_gap")}
    model = {"name": "mlp", "num_classes": 3, "parameters": 10, "input_shape": [2]}
    whole = Audit(model, {}, 40, 40, utility, attacks, (), False, 0)
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"a": (0.6, 0.51, 0.7)},
            "The model leaks membership: a scores a random member above a random non-member in 60.0 % of",
        ),
        ({"a": (0.6, 0.51, 0.7), "b": (0.9, 0.8, 1.0)}, "leaks membership: b scores"),
        ({"a": (0.6, 0.51, 0.7), "b": (0.65, 0.4, 0.9)}, "leaks membership: a scores"),
        ({"a": (0.55, 0.49, 0.61)}, "None of 1 attacks tells members from non-members"),
        ({"a": (0.5, 0.5, 0.5), "b": (0.45, 0.3, 0.6)}, "None of 2 attacks tells members from non-members"),
        ({"a": (0.0, 0.0, 0.0)}, "but a scores them below"),
        ({"a": (0.55, 0.4, 0.6), "b": (0.3, 0.2, 0.4)}, "but b scores them below"),
        ({"a": (0.9, None, None)}, "too few points"),
        ({"a": (0.9, None, None), "b": (0.5, 0.4, 0.6)}, "None of 1 attacks"),
    ],
)
def test_what_is_concluded(values: dict[str, tuple[float, float | None, float | None]], said: str) -> None:
    found = an_audit(*(result(name, MetricValue(*value)) for name, value in values.items()))
    assert said in conclusions(found)[0]
    assert ("the largest value" in conclusions(found)[0]) == ("leaks" in said and len(values) > 1)


def test_the_text_says_who_was_asked_about_fewer_points_and_what_is_suspicious() -> None:
    few = result("b", MetricValue(0.5, 0.4, 0.6), members=10, nonmembers=1200, flags=("constant scores",))
    text = describe(an_audit(result("a", MetricValue(0.5, 0.4, 0.6)), few, warnings=("look here",)))
    lines = text.splitlines()
    assert lines[3].endswith("points") and lines[4].endswith("40 + 40") and lines[5].endswith("10 + 1,200")
    assert "Warning: look here" in lines and "Flag: b: constant scores" in lines
