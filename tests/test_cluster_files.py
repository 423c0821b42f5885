"""The cluster's files fit the pinned Ray, and a job carries the code and nothing large."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.exceptions import ValidationError
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).parent.parent


def read(text: str) -> dict[str, Any]:
    """Validate a cluster file as `ray up` does, without asking any cloud, and return it with defaults filled."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


CLUSTER = (ROOT / "cluster.yaml").read_text()


def test_the_cluster_file_fits_the_pinned_ray() -> None:
    config = read(CLUSTER)
    node_types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert node_types["head"]["resources"]["GPU"] == 0
    assert node_types["gpu"]["resources"]["GPU"] == 1
    assert (node_types["gpu"]["min_workers"], node_types["gpu"]["max_workers"]) == (0, config["max_workers"])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes:", "idle_timeout_minute:"),
        ("max_workers: 4\nupscaling", "max_workers: four\nupscaling"),
        ("head_node_type: head", "head_node_type: haed"),
    ],
)
def test_the_check_would_notice(right: str, wrong: str) -> None:
    assert CLUSTER.count(right) == 1
    with pytest.raises((ValidationError, ValueError)):
        read(CLUSTER.replace(right, wrong))


def test_the_token_reaches_every_node_and_every_start() -> None:
    config = read(CLUSTER)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command and "oakum.env" in command for command in config["setup_commands"])
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith("source ~/oakum.env && ")
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


def test_mounted_files_exist() -> None:
    local = [source for source in read(CLUSTER)["file_mounts"].values() if not source.startswith("~")]
    assert local == ["requirements.lock"]
    assert (ROOT / "requirements.lock").exists()


def test_cluster_files_in_the_docs_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(cluster_name:.*?)```", (ROOT / "docs" / "jobs.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    assert read(blocks[0])["provider"]["type"] == "local"


RUNTIME_ENV: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
TRAVELS = ["platform/oakum/cli.py", "platform/oakum/datasets/digits.py", "jobs/run.py", "jobs/experiments/x.yaml"]
STAYS = [
    "runs/objects/a/model.safetensors",
    "data/mnist/samples.parquet",
    "mlruns/0/meta.yaml",
    "mlflow.db",
    ".venv/bin/python",
    ".git/config",
    ".mypy_cache/x",
    ".ruff_cache/x",
    ".pytest_cache/x",
    ".hypothesis/x",
    "platform/oakum/__pycache__/cli.pyc",
    "platform/oakum.egg-info/PKG-INFO",
    "tests/test_x.py",
    "docs/x.png",
]


def test_the_runtime_environment_is_one() -> None:
    assert RuntimeEnv(**RUNTIME_ENV)["env_vars"]["PYTHONPATH"] == "platform"


def test_a_job_carries_the_code_and_nothing_large(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in [*TRAVELS, *STAYS]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=False, excludes=RUNTIME_ENV["excludes"])
    with zipfile.ZipFile(package) as archive:
        packed = [name for name in archive.namelist() if not name.endswith("/")]
    assert sorted(packed) == sorted(TRAVELS)
