"""The cluster files fit the pinned Ray and each other, and a job carries the code and nothing large."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from oakum.cli_parser import build_parser
from oakum.pipeline.admission import ClusterCapacity, admit, find_misfit
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.stage import Resources, Stage
from oakum.session import RunOptions, read_request

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "jobs.md").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
AWS, LOCAL, KUBERAY = ((ROOT / name).read_text() for name in ("cluster.yaml", "cluster.local.yaml", "kuberay.yaml"))
both_launched = pytest.mark.parametrize("text", [AWS, LOCAL], ids=["aws", "local"])


def read(text: str) -> dict[str, Any]:
    """Validate a cluster file as `ray up` does, without asking any cloud, and return it with defaults filled."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def read_job(text: str) -> dict[str, Any]:
    """Validate a RayJob against the fields that KubeRay documents, and return it."""
    job: dict[str, Any] = yaml.safe_load(text)
    schema = yaml.safe_load((ROOT / "tests" / "rayjob_schema.yaml").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(job)
    return job


def environment_of(text: str, home: Path) -> dict[str, str]:
    """Return the variables that a host's `~/oakum.env` sets, as the setup commands write it in the folder `home`."""
    writing = [command for command in read(text)["setup_commands"] if command.startswith("echo 'export ")]
    script = "\n".join([*writing, "source ~/oakum.env", "env -0"])
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    shell = subprocess.run(["bash", "-ec", script], env=bare, capture_output=True, text=True, check=True)
    variables = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    return {name: value for name, value in variables.items() if name not in {"HOME", "PWD", "OLDPWD", "SHLVL", "_"}}


def pods() -> list[dict[str, Any]]:
    """Return the specifications of the head's pod and of the workers', in this order."""
    cluster = read_job(KUBERAY)["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def job_environment() -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pods()[0]["containers"][0]["env"]}


def test_the_cluster_file_fits_the_pinned_ray() -> None:
    config = read(AWS)
    node_types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert node_types["head"]["resources"]["GPU"] == 0
    assert node_types["gpu"]["resources"]["GPU"] == 1
    assert (node_types["gpu"]["min_workers"], node_types["gpu"]["max_workers"]) == (0, config["max_workers"])


def test_hosts_of_ones_own_all_join_as_long_as_the_cluster_is_up() -> None:
    config = read(LOCAL)
    (host,) = config["available_node_types"].values()
    workers = len(config["provider"]["worker_ips"])
    assert (host["min_workers"], host["max_workers"], config["max_workers"]) == (workers, workers, workers)
    assert config["provider"]["head_ip"] not in config["provider"]["worker_ips"]


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (AWS, "idle_timeout_minutes:", "idle_timeout_minute:"),
        (AWS, "max_workers: 4\nupscaling", "max_workers: four\nupscaling"),
        (AWS, "head_node_type: head", "head_node_type: haed"),
        (LOCAL, "file_mounts:", "file_mount:"),
        (LOCAL, "head_ip:", "head_ips:"),
        (LOCAL, "worker_ips: [10.0.0.2, 10.0.0.3]", "worker_ips: 10.0.0.2"),
        (LOCAL, "ssh_user: ubuntu", "ssh_user: [ubuntu]"),
    ],
)
def test_the_check_would_notice(text: str, right: str, wrong: str) -> None:
    assert text.count(right) == 1
    with pytest.raises((ValidationError, ValueError, click.ClickException)):
        read(text.replace(right, wrong))


@both_launched
def test_the_token_reaches_every_node_and_every_start(text: str, tmp_path: Path) -> None:
    config = read(text)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert environment_of(text, tmp_path)["RAY_AUTH_MODE"] == "token"
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith("source ~/oakum.env && ")
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


@both_launched
def test_packages_come_from_the_checkouts_lock(text: str) -> None:
    config = read(text)
    local = [source for source in config["file_mounts"].values() if not source.startswith("~")]
    assert local == ["requirements.lock"]
    assert (ROOT / "requirements.lock").exists()
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    assert install.endswith(" -r ~/requirements.lock")


@both_launched
def test_commands_are_ones_that_bash_can_read(text: str) -> None:
    config = read(text)
    kinds = ["initialization", "setup", "head_setup", "head_start_ray", "worker_start_ray"]
    for command in [command for kind in kinds for command in config[f"{kind}_commands"]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_host_without_the_shared_folder_ends_its_setup(tmp_path: Path) -> None:
    text = LOCAL.replace("/mnt/oakum/", f"{tmp_path}/mounted/")
    assert text != LOCAL
    environment_of(text, tmp_path)
    (check,) = [command for command in read(text)["setup_commands"] if "test -w" in command]
    bash = ["bash", "-c", check]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(bash, env=home, check=False).returncode != 0
    (tmp_path / "mounted").mkdir()
    assert subprocess.run(bash, env=home, check=False).returncode == 0


def test_all_cluster_files_speak_of_the_same_variables(tmp_path: Path) -> None:
    places, limits = {"OAKUM_STORE", "MLFLOW_TRACKING_URI"}, {"OAKUM_MAX_CPUS", "OAKUM_MAX_GPUS"}
    on_aws = environment_of(AWS, tmp_path)
    assert {"RAY_AUTH_MODE", "OAKUM_HOME", "PATH"} | limits <= on_aws.keys()
    # What hosts of one's own have is there from the start; there is nothing that an autoscaler could reach.
    assert environment_of(LOCAL, tmp_path).keys() == on_aws.keys() - limits | places
    # An image has its own path.
    assert job_environment().keys() == on_aws.keys() - {"PATH"} | places


def test_variables_are_ones_that_something_reads() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "platform" / "oakum").rglob("*.py"))
    for name in job_environment():
        assert f'"{name}"' in code, name


@pytest.mark.parametrize(
    ("text", "setting"), [(AWS, "{}="), (LOCAL, "{}="), (KUBERAY, "name: {}")], ids=["aws", "local", "kuberay"]
)
def test_store_tracking_and_token_are_set_in_one_place(text: str, setting: str) -> None:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for name in ("RAY_AUTH_MODE", "OAKUM_HOME"):
        assert code.count(setting.format(name)) == 1, name
    for name in ("OAKUM_STORE", "MLFLOW_TRACKING_URI", "OAKUM_MAX_CPUS", "OAKUM_MAX_GPUS"):
        assert code.count(setting.format(name)) <= 1, name
    assert "RAY_AUTH_TOKEN" not in code, "the token itself belongs into no file of the repository"


def reach_of_aws(folder: Path) -> tuple[dict[str, str], list[tuple[float, float, int]]]:
    """Return the environment, and CPUs, GPUs and number of the head and of the workers."""
    types = read(AWS)["available_node_types"]
    counts = {"head": 1, "gpu": types["gpu"]["max_workers"]}
    nodes = [(types[name]["resources"]["CPU"], types[name]["resources"]["GPU"], counts[name]) for name in counts]
    return environment_of(AWS, folder), nodes


def reach_of_kuberay(folder: Path) -> tuple[dict[str, str], list[tuple[float, float, int]]]:
    """Return the same of the RayJob."""
    cluster = read_job(KUBERAY)["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    head = (float(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]), 0.0, 1)
    return job_environment(), [head, (float(limits["cpu"]), float(limits["nvidia.com/gpu"]), group["maxReplicas"])]


@pytest.mark.parametrize("reach", [reach_of_aws, reach_of_kuberay])
def test_workers_that_are_away_while_idle_are_asked_for_all_together(reach: Any, tmp_path: Path) -> None:
    environment, nodes = reach(tmp_path)
    cpus, gpus = float(environment["OAKUM_MAX_CPUS"]), float(environment["OAKUM_MAX_GPUS"])
    assert cpus == sum(count * cpus for cpus, _, count in nodes)
    assert gpus == sum(count * gpus for _, gpus, count in nodes)
    # What the executor takes for there when only the head is: see `OnRay.capacity`.
    capacity = ClusterCapacity(cpus, gpus, largest_node_cpus=cpus, largest_node_gpus=gpus, nodes=1)
    wanted = Resources(gpus=1)
    assert find_misfit(wanted, capacity) is None
    ready = [Stage("train", {"number": number}, {}, {}, "", resources=wanted) for number in range(20)]
    assert len(admit(ready, [], capacity)) > gpus


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"),
        ("minReplicas: 0", "minReplica: 0"),
        ("maxReplicas: 4", "maxReplicas: four"),
        ('num-cpus: "2"', "num-cpus: 2"),
        ("mode: token", "mode: tokens"),
        ("runtimeEnvYAML: |", "runtimeEnv: |"),
        ("entrypoint:", "entryPoint:"),
        ("submissionMode: K8sJobMode", "submissionMode: K8SJobMode"),
        ("enableInTreeAutoscaling: true", 'enableInTreeAutoscaling: "true"'),
        ('{name: OAKUM_MAX_GPUS, value: "4"}', "{name: OAKUM_MAX_GPUS, value: 4}"),
    ],
)
def test_the_check_of_the_job_would_notice(right: str, wrong: str) -> None:
    assert KUBERAY.count(right) == 1
    with pytest.raises(ValidationError):
        read_job(KUBERAY.replace(right, wrong))


def test_the_job_asks_for_workers_with_the_token() -> None:
    cluster = read_job(KUBERAY)["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    secret = cluster["authOptions"]["secretName"]
    assert cluster["authOptions"]["mode"] == "token"
    assert f"kubectl create secret generic {secret} --from-file=auth_token=" in DOCS
    assert job_environment()["RAY_AUTH_MODE"] == "token"


def test_the_job_keeps_the_rules_that_kuberay_states_beside_its_schema() -> None:
    spec = read_job(KUBERAY)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True, "a time to live needs it"
    for pod in pods():
        assert pod["restartPolicy"] == "Never", "the autoscaler of this Ray takes no other"
    ray = spec["rayClusterSpec"]["rayVersion"]
    assert tuple(map(int, ray.split("."))) >= (2, 52, 0), "older ones have no token"


def test_the_image_has_the_pinned_ray_and_a_python_that_oakum_takes() -> None:
    (pin,) = [each.specifier for each in map(Requirement, PROJECT["dependencies"]) if each.name == "ray"]
    (base,) = re.findall(r"^FROM rayproject/(\S+)$", DOCS, re.MULTILINE)
    images = {base, *(pod["containers"][0]["image"] for pod in pods())}
    assert len(images) == 2
    ((ray, minor),) = {found for image in images for found in re.findall(r"ray:?(\d+\.\d+\.\d+)-py3(\d+)", image)}
    assert str(pin) == f"=={ray}"
    assert read_job(KUBERAY)["spec"]["rayClusterSpec"]["rayVersion"] == ray
    assert f"ray=={ray}" in (ROOT / "requirements.lock").read_text().splitlines()
    assert f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])
    assert f"python3.{minor} -m venv" in LOCAL


def test_pods_get_what_they_ask_for_and_see_one_folder() -> None:
    head, worker = (pod["containers"][0] for pod in pods())
    for pod, container in zip(pods(), (head, worker), strict=True):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["volumes"] == pods()[0]["volumes"]
        ((mount,), (volume,)) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        assert job_environment()["OAKUM_HOME"].startswith(mount["mountPath"] + "/")
    assert head["env"] == worker["env"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_runs_an_experiment_that_fits_its_workers() -> None:
    python, script, *arguments = shlex.split(read_job(KUBERAY)["spec"]["entrypoint"])
    assert (python, script) == ("python", "jobs/run.py")
    asked = build_parser().parse_args(["run", *arguments])
    data = read_request(RunOptions(ROOT / asked.file, overrides=asked.overrides))
    execution = resolve_experiment(data, asked.file.name).file.execution
    limits = pods()[1]["containers"][0]["resources"]["limits"]
    assert 0 < execution.gpus <= float(limits["nvidia.com/gpu"])
    assert execution.threads <= float(limits["cpu"])


RUNTIME_ENV: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
TRAVELS = ["platform/oakum/cli.py", "platform/oakum/datasets/digits.py", "jobs/run.py", "jobs/experiments/x.yaml"]
STAYS = [
    "runs/objects/a/model.safetensors",
    "data/mnist/samples.parquet",
    "store/objects/a/model.safetensors",
    "shared/data/mnist5k/samples.npz",
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


def test_a_job_on_kubernetes_has_the_same_runtime_environment() -> None:
    on_kubernetes = yaml.safe_load(read_job(KUBERAY)["spec"]["runtimeEnvYAML"])
    folder = on_kubernetes.pop("working_dir")
    assert on_kubernetes == RUNTIME_ENV
    for name in ("platform", "jobs"):
        assert f"COPY {name} {folder}/{name}" in DOCS.splitlines()


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
