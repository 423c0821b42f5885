"""Files of others run no code here, and names of any kind stay names: YAML, checkpoints, weights, paths, labels."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from oakum.audit_inputs import read_points
from oakum.config import ConfigError, apply_overrides, read_yaml, require_plain, validate
from oakum.pipeline.experiment import ExperimentFile, resolve_experiment
from oakum.published_weights import import_bido, import_torchvision
from oakum.records import sha256_hex
from oakum.search.records import SearchHeader, SearchLog
from oakum.search.space import load_space
from oakum.session_home import Home
from oakum.store import Store
from oakum.tracking_runs import metric_name
from oakum.training.checkpoint import CheckpointError, load_module, load_parts, save_parts
from oakum.weights import open_weights, read_tensors, write_weights

PLATFORM = Path(__file__).parents[1] / "platform" / "oakum"
KEY = sha256_hex(b"a stage")
NAMES = [
    "",
    " ",
    ".",
    "..",
    "../outside",
    "a/../../../outside",
    "/outside",
    "~/outside",
    "%2e%2e%2foutside",
    "..\\outside",
    "C:\\outside",
    "CON",
    "dots..",
    "trailing ",
    "nul\0nul",
    "two\nlines",
    "\x1b[31mred",
    "\u202etxt.exe",
    "zero\u200bwidth",
    "\ud800",
    "x" * 10_000,
    "../" * 3_000,
    "\N{HOT BEVERAGE}" * 100,
]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What appears when code was executed."""
    return tmp_path / "executed"


def written(folder: Path, text: str) -> Path:
    file = folder / "file.yaml"
    file.write_text(text)
    return file


def refusal(read: Callable[[], Any]) -> str:
    """Return the message of a refusal, which a terminal can show."""
    with pytest.raises(ConfigError) as caught:
        read()
    message = str(caught.value)
    assert len(message) < 2_000 and all(line.isprintable() for line in message.splitlines())
    return message


def network() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:antigravity"])
@pytest.mark.parametrize("form", ["!!python/{}", "!<tag:yaml.org,2002:python/{}>"])
def test_yaml_cannot_ask_for_an_object(tag: str, form: str, tmp_path: Path, marker: Path) -> None:
    value = f"{form.format(tag)} [{marker}]" if "object" in tag else f"{form.format(tag)} ''"
    refusal(lambda: read_yaml(written(tmp_path, f"name: {value}\n")))
    refusal(lambda: read_yaml(written(tmp_path, f"{value}: name\n")))
    refusal(lambda: apply_overrides({}, [f"name={value}"]))
    refusal(lambda: load_space(written(tmp_path, f"defense: relaxloss\ngrid: {value}\n")))
    assert not marker.exists()
    if tag == "object/apply:os.mkdir":
        yaml.unsafe_load(value)
        assert marker.exists(), "the file was harmless, and this test shows nothing"


def layers(first: str, later: str) -> str:
    """Seven lines, each of which repeats the one before it eight times: two million values."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {later.format(', '.join([f'*a{i - 1}'] * 8))}" for i in range(1, 7)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (layers("[x, x, x, x, x, x, x, x]", "[{}]"), "more than 100,000 values"),
        (layers("{k: x, l: x, m: x, n: x}", "{{<<: [{}]}}"), "more than 100,000 values"),
        (layers("{k: x, l: x, m: x, n: x}", "{{p: {{q: [{}]}}}}"), "more than 100,000 values"),
        ("a: &a [*a]", "what it is a part of"),
        ("a: &a {b: [{c: *a}]}", "what it is a part of"),
        ("a: &a {<<: *a}", "what it is a part of"),
        ("a: " + "[" * 600 + "]" * 600, "nested too deeply"),
        ("a: " + "{a: " * 600 + "}" * 600, "nested too deeply"),
    ],
    ids=["sequences", "merges", "mappings", "itself", "in itself", "merged with itself", "deep list", "deep mapping"],
)
def test_yaml_bombs_are_refused_before_they_are_written_out(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(lambda: read_yaml(written(tmp_path, text)))


def test_honest_aliases_and_merges_are_read(tmp_path: Path) -> None:
    text = "base: &base {alpha: 1, beta: [1, 2]}\none: {<<: *base, alpha: 2}\ntwo: [*base, *base]\n"
    base = {"alpha": 1, "beta": [1, 2]}
    assert read_yaml(written(tmp_path, text)) == {"base": base, "one": {**base, "alpha": 2}, "two": [base, base]}


@pytest.mark.parametrize(
    "value",
    [
        *("9" * 5_000, "0x" + "f" * 50_000, "-0x1" + "0" * 20, "2026-13-41", "2026-02-30 25:00:00", r'"\ud800"'),
        *("!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!binary a", "!!omap [x]"),
    ],
    ids=lambda value: value[:20],
)
def test_values_that_yaml_cannot_hold_are_refused(value: str, tmp_path: Path) -> None:
    refusal(lambda: read_yaml(written(tmp_path, f"a: {value}\n")))
    refusal(lambda: apply_overrides({}, [f"a={value}"]))


@pytest.mark.parametrize("value", [".nan", "-.inf", "!!binary aGVsbG8=", "!!set {x, y}"])
def test_values_without_json_are_refused_before_a_request_is_hashed(value: str, tmp_path: Path) -> None:
    data = read_yaml(written(tmp_path, f"a: [{{b: {value}}}]\n"))
    assert "tiny.yaml: a.0.b: " in refusal(lambda: require_plain(data, "tiny.yaml"))


@pytest.mark.parametrize("key", [r'"\e[31mred"', r'"a\u200bb"', r'"a\u202eb"', r'"a\nb"', "x" * 201, "2026-01-01"])
def test_keys_become_labels_and_are_visible_and_short(key: str, tmp_path: Path) -> None:
    refusal(lambda: read_yaml(written(tmp_path, f"settings: {{{key}: none}}\n")))


def test_a_setting_is_changed_by_a_path_of_ordinary_parts() -> None:
    for part in ("\x1b[31m", "a\u200bb", "x" * 10_000):
        refusal(lambda part=part: apply_overrides({}, [f"recipe.{part}=1"]))  # type: ignore[misc]
    refusal(lambda: apply_overrides({}, [".".join("a" * 10_000) + "=1"]))
    refusal(lambda: apply_overrides({"seeds": [1]}, ["seeds." + "9" * 5_000 + "=1"]))
    refusal(lambda: apply_overrides({}, ["x" * 10_000]))


def disguised(path: Path, form: str, trap: Trap) -> Path:
    """Write what executes code when it is unpickled under the name of something harmless."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif form == "torch":
        torch.save({"weight": trap}, path)
    elif form == "old torch":
        torch.save({"weight": trap}, path, _use_new_zipfile_serialization=False)
    else:
        with path.open("wb") as stream:
            np.savez(stream, x=np.array([trap], dtype=object), y=np.zeros(1, int))
    return path


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "npz"])
def test_a_pickle_under_a_harmless_name_is_refused_and_not_executed(form: str, tmp_path: Path, marker: Path) -> None:
    trap = Trap(marker)
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load_module(network(), disguised(tmp_path / "model.safetensors", form, trap))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("state.safetensors", "state.json"):
        save_parts(checkpoint, {"model": network()}, {})
        disguised(checkpoint / name, form, trap)
        with pytest.raises(CheckpointError):
            load_parts(checkpoint, {"model": network()})
    weights = tmp_path / "weights"
    written_file = write_weights(
        weights, "mine", {"a": torch.zeros(1)}, origin="here", architecture="mlp", license_note="none"
    )
    disguised(written_file.path, form, trap)
    facts = {**written_file.facts, "sha256": hashlib.sha256(written_file.path.read_bytes()).hexdigest()}
    (weights / "mine.json").write_text(json.dumps(facts))
    assert "no safetensors file" in refusal(lambda: read_tensors(open_weights(weights, "mine")))
    disguised(weights / "mine.json", form, trap)
    refusal(lambda: open_weights(weights, "mine"))
    published = disguised(tmp_path / "published.pth", form, trap)
    assert "refused" in refusal(lambda: import_bido(published, "mcnn", "mine", weights))
    assert "refused" in refusal(lambda: import_torchvision(published, "mine", weights))
    refusal(lambda: read_points(disguised(tmp_path / "x.npz", form, trap), "--members", 2))
    assert not marker.exists()
    pickle.loads(pickle.dumps(trap))
    assert marker.exists(), "the file was harmless, and this test shows nothing"


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"parts": 1, "record": {}},
        {"parts": {"model": 1}, "record": {}},
        {"parts": {"model": {"tensor": "nothing"}}, "record": {}},
        {"parts": {"model": {"items": [[["a"], {"value": 1}]]}}, "record": {}},
        {"parts": {"model": {"items": [["weight", {"value": 1}], ["bias", {"value": 1}]]}}, "record": {}},
        {"parts": {"model": {"value": None}}},
    ],
    ids=str,
)
def test_the_record_of_a_checkpoint_is_data(document: Any, tmp_path: Path) -> None:
    save_parts(tmp_path, {"model": network()}, {})
    (tmp_path / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        load_parts(tmp_path, {"model": network()})
    (tmp_path / "state.json").write_text('{"parts": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="damaged"):
        load_parts(tmp_path, {"model": network()})


@pytest.mark.parametrize(
    "change",
    [{"bytes": "many"}, {"bytes": None}, {"origin": "\x1b[31m"}, {"architecture": 1}, {"sha256": None}],
    ids=str,
)
def test_forged_facts_of_weights_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    file = write_weights(
        tmp_path, "mine", {"a": torch.zeros(1)}, origin="a\x1b[31mb", architecture="mlp", license_note="none"
    )
    assert file.facts["origin"].isprintable()
    (tmp_path / "mine.json").write_text(json.dumps({**file.facts, **change}))
    assert "damaged" in refusal(lambda: open_weights(tmp_path, "mine"))


# What may run what the bytes that it reads ask for, and what does so without the setting named with it.
_DANGEROUS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "torch.jit.load", "torch.hub.load", "eval", "exec", "compile", "__import__", "os.system",
    "shelve.open", "marshal.loads", "runpy.run_path", "mlflow.pytorch.load_model", "mlflow.pyfunc.load_model",
}  # fmt: skip
_NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
# The one command that a shell runs is made by `tracking_destination.ui_command`.
_SHELL = PLATFORM / "cli.py"


def test_no_module_calls_what_executes_data() -> None:
    wrong = [
        f"{file.relative_to(PLATFORM)}:{node.lineno} {ast.unparse(node.func)}"
        for file in sorted(PLATFORM.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and is_dangerous(node, may_use_shell=file == _SHELL)
    ]
    assert not wrong


def is_dangerous(call: ast.Call, *, may_use_shell: bool) -> bool:
    called = ast.unparse(call.func)
    settings = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    name, safe = _NEEDED.get(called, ("", None))
    return called in _DANGEROUS or settings.get(name) is not safe or bool(settings.get("shell") and not may_use_shell)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def is_one_part(path: Path, parent: Path) -> bool:
    """Whether a path is a direct child of a folder, also for the operating system."""
    return Path(os.path.normpath(path)).parent == parent and len(path.name.encode()) <= 255


def header(name: str) -> SearchHeader:
    return SearchHeader(name, KEY, "none", {}, {}, {}, (), (), (0,))


def test_every_name_of_an_experiment_has_a_report_of_its_own(tmp_path: Path, tiny: dict[str, Any]) -> None:
    home = Home(tmp_path / "home", str(tmp_path / "home" / "store"))
    places = [home.report(name) for name in NAMES]
    assert len(set(places)) == len(NAMES)
    for place in places:
        assert place.name == "report.html" and is_one_part(place.parent, home.folder / "reports")
        place.parent.mkdir(parents=True)
    assert tree(tmp_path) - tree(tmp_path / "home") and {path.name for path in tmp_path.iterdir()} == {"home"}
    assert home.report("mnist5k_bido-2.1") == home.folder / "reports" / "mnist5k_bido-2.1" / "report.html"
    for name in NAMES:
        if name not in {"CON", "dots.."}:
            refusal(lambda name=name: validate(ExperimentFile, {**tiny, "name": name}, "file.yaml"))  # type: ignore[misc]


def test_names_of_attacks_are_refused_or_plain(tiny: dict[str, Any]) -> None:
    for name in NAMES:
        tiny["attacks"]["inversion"][0]["as"] = name
        if name not in {"CON", "x" * 10_000}:
            assert "as" in refusal(lambda: resolve_experiment(tiny, "file.yaml"))


def can_be_a_file(path: Path) -> bool:
    try:
        path.write_bytes(b"x")
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.parametrize("surface", ["search", "document", "kind", "key", "payload", "weights"])
def test_names_never_lead_out_of_their_folder(surface: str, tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    store = Store.open(home / "store")
    payload = tmp_path / "a" / "payload"
    documents: dict[str, Any] = {"key_document": {}, "label": "", "summary": {}, "provenance": {}}

    def use(name: str) -> None:
        if surface == "search":
            SearchLog.open(store, header(name))
        elif surface == "document":
            store.put_document(f"pins/{name}", {})
        elif surface == "kind":
            store.publish(name, KEY, payload, **documents)
        elif surface == "key":
            store.publish("train", name, payload, **documents)
        elif surface == "weights":
            tensors = {"a": torch.zeros(1)}
            write_weights(home / "weights", name, tensors, origin="", architecture="", license_note="")
        else:
            assert store.publish("train", sha256_hex(name.encode(errors="replace")), payload, **documents).files

    accepted = []
    for name in NAMES:
        payload.mkdir(parents=True, exist_ok=True)
        if surface == "payload":
            for old in payload.iterdir():
                old.unlink()
            if "/" in name or not can_be_a_file(payload / name):
                continue
        try:
            use(name)
        except ConfigError as error:
            assert len(str(error)) < 2_000 and str(error).isprintable(), name[:60]
        else:
            accepted.append(name)
    for path in tmp_path.rglob("*"):
        assert path.is_relative_to(home) or path.is_relative_to(payload) or path in home.parents, path
    odd, harmless = {"CON", "~/outside", "%2e%2e%2foutside"}, {"dots.."}
    allowed = {"weights": set(), "key": set(), "kind": harmless}
    assert set(accepted) <= allowed.get(surface, odd | harmless)
    assert accepted or surface in {"weights", "key"}


@pytest.mark.parametrize(
    "command",
    [
        *("report", "why", "store show", "weights verify", "weights prepare", "data verify", "data prepare"),
        "import torchvision --file file.pth --name",
    ],
)
def test_commands_refuse_names_with_one_line(
    command: str, oakum: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, tmp_path / "file.pth")
    home = Home(tmp_path / "home", str(tmp_path / "home" / "store"))
    for name in NAMES:
        if command.startswith("data") and len(name) > 255:
            continue  # see test_a_long_name_of_a_data_set
        answer = oakum(*command.split(), name, home=home)
        assert answer.code == 2, (name[:60], answer.err[:200])
        is_readable = all(line.isprintable() for line in answer.err.splitlines())
        assert is_readable and len(answer.err) < len(name) + 1_000, (name[:60], answer.err[:200])
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "file.pth"}


def test_a_long_name_of_a_data_set(oakum: Callable[..., Any], tmp_path: Path) -> None:
    home = Home(tmp_path / "home", str(tmp_path / "home" / "store"))
    answer = oakum("data", "verify", "x" * 10_000, home=home)
    assert answer.code == 2 and len(answer.err) < 3_000


def test_names_of_metrics_fit_mlflow_and_stay_apart() -> None:
    names = [*NAMES, "x" * 10_001, "x" * 251, f"inversion/{'x' * 400}/top1", f"inversion/{'x' * 400}/top5"]
    long = {metric_name(name) for name in names if len(name) > 250}
    assert len(long) == sum(len(name) > 250 for name in names)
    for name in map(metric_name, names):
        assert 0 < len(name) <= 250 and name.isascii() and name.isprintable()
        assert not {"..", ".", ""} & set(name.split("/"))
    assert metric_name("inversion/gmi/top1") == "inversion/gmi/top1"
