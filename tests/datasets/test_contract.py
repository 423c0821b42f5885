"""What holds for every data set, third-party ones included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oakum import registry
from oakum.config import ConfigError, FrozenConfig, validate
from oakum.datasets import base

PLATFORM = Path(base.__file__).resolve().parents[2]
NAMES = sorted(registry.available("datasets"))


def test_all_six_are_found() -> None:
    assert {"digits", "lfw64", "location30", "mnist", "mnist5k", "orl_faces"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_given(name: str) -> None:
    source = registry.load("datasets", name)
    assert issubclass(source, base.DataSource)
    assert source.source is not None
    assert source.summary and "\n" not in source.summary
    assert source.license_note
    assert source.kind in {"image", "tabular"}
    config = validate(source.Config, {}, name)
    assert isinstance(config, FrozenConfig)
    assert source(config).config is config


@pytest.mark.parametrize("name", NAMES)
def test_image_size_is_for_images(name: str) -> None:
    source = registry.load("datasets", name)
    if source.kind == "image":
        assert validate(source.Config, {"image_size": 16}, name).image_size == 16
        for bad in (0, "16", 16.0, True, 4096):
            with pytest.raises(ConfigError):
                validate(source.Config, {"image_size": bad}, name)
    else:
        with pytest.raises(ConfigError, match="unknown key"):
            validate(source.Config, {"image_size": 16}, name)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_shown_without_consent(name: str) -> None:
    shown = {"mnist5k", "digits", "mnist", "cifar10", "synthetic_purchase", "synthetic_texas"}
    assert registry.load("datasets", name).public == (name in shown)


def test_planning_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from oakum.datasets import base, _canaries, _folds
home = Path(sys.argv[1])
base.list_data(home)
base.ensure_prepared("digits", home)
base.load_labels("digits", home)
print([name for name in ("torch", "pandas", "sklearn", "ray", "mlflow", "PIL") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    done = subprocess.run(command, env={"PYTHONPATH": str(PLATFORM)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"[]", "['PIL']"}
