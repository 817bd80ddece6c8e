"""The shipped cluster files: valid by their own schemas, authenticated by a token, pinned, without a secret."""

import copy
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import boto3
import jsonschema
import pytest
import services
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "tune" / "clusters"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAUNCHED = ["onprem.yaml", "aws.yaml"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

TEXT, COUNT, TEXTS = {"type": "string"}, {"type": "integer", "minimum": 0}, {"additionalProperties": {"type": "string"}}


def closed(required, **properties):
    """A JSON schema of an object that has these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGT]i?)?$"}
CONTAINER = closed(
    "name image resources",
    name=TEXT,
    image=TEXT,
    envFrom={"type": "array", "items": closed("secretRef", secretRef=closed("name", name=TEXT))},
    resources=closed(
        "requests limits",
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
    ),
    securityContext=closed(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=closed("drop", drop={"const": ["ALL"]}),
    ),
    volumeMounts={"type": "array", "items": closed("name mountPath", name=TEXT, mountPath=TEXT)},
)
POD = closed(
    "spec",
    spec=closed(
        "containers securityContext",
        containers={"type": "array", "items": CONTAINER, "minItems": 1, "maxItems": 1},
        securityContext=closed("runAsNonRoot", runAsNonRoot={"const": True}, runAsUser=COUNT, fsGroup=COUNT),
        volumes={"type": "array", "items": closed("name emptyDir", name=TEXT, emptyDir=closed(""))},
    ),
)
PARAMS = {"type": "object", **TEXTS}
RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            "rayVersion authOptions headGroupSpec workerGroupSpecs",
            rayVersion=TEXT,
            authOptions=closed("mode secretName", mode={"const": "token"}, secretName=TEXT),
            headGroupSpec=closed("rayStartParams template", rayStartParams=PARAMS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "minItems": 1,
                "items": closed(
                    "groupName replicas minReplicas maxReplicas rayStartParams template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=PARAMS,
                    template=POD,
                ),
            },
        ),
    ),
)
"""What tune/clusters/kuberay.yaml uses of KubeRay's and Kubernetes' schemas, written down from them."""


def load(name):
    return yaml.safe_load((CLUSTERS / name).read_text())


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A home of its own, from which Ray is told to launch a cluster."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name, user):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load(name))
    for kind in prepared["available_node_types"].values():
        kind.setdefault("resources", {})  # the provider fills them in
    validate_config(prepared)
    wrong = {**load(name), "setup_comands": []}
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", LAUNCHED)
def test_packages_are_installed_from_the_pins(name):
    config = load(name)
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    assert (
        "-c constraints.txt" in install and "'.[cluster]'" in install and not re.search(r" (-e|--editable)\b", install)
    )
    mounts = {remote: local for remote, local in config["file_mounts"].items() if remote.startswith("~/mmfa-study/")}
    assert all((ROOT / local).exists() for local in mounts.values())
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    needed = {package.partition(".")[0] for package in tools["packages"]}
    needed |= {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    assert set(mounts.values()) == needed
    assert not any(remote.rstrip("/") == "~/mmfa" for remote in config["file_mounts"]), "it would hide the package"


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_asks_for_the_token_and_shows_its_dashboard_to_nobody(name):
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in (CLUSTERS / name).read_text()


@pytest.mark.parametrize("name", LAUNCHED)
def test_setup_commands_write_the_environment_of_a_login(name, tmp_path):
    """Those of them that install nothing, run twice, as a second `ray up` does."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    commands = [c for c in load(name)["setup_commands"] if not re.search("pip|venv ~|apt-get", c)]
    assert len(commands) == 4
    shell = ["bash", "--noprofile", "--norc", "-ec"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):
        subprocess.run([*shell, "\n".join(commands)], env=environment, check=True)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    shown = ". ~/.bashrc; echo $PATH $RAY_AUTH_MODE $RAY_ADDRESS; wc -l < ~/.bashrc"
    ran = subprocess.run([*shell, shown], env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == [f"{tmp_path}/mmfa-venv/bin:{os.environ['PATH']}", "token", "auto", "1"]


SECRETS = (
    r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@|(?i:password|secret_access_key|auth_token)\s*[=:]\s*['\"]?\w"
)


@pytest.mark.parametrize("file", [*sorted(CLUSTERS.iterdir()), ROOT / "Dockerfile"], ids=lambda file: file.name)
def test_no_secret_and_no_machine_of_ours_is_written_down(file):
    assert re.findall(SECRETS, file.read_text()) == []
    assert not re.search(r"/(root|home/(?!ray\b)\w+|work)/", file.read_text())


@pytest.mark.parametrize("line", ["PGPASSWORD=x", "auth_token: 'ab12'", "postgresql://mmfa:pw@host/db"])
def test_a_secret_would_be_found(line):
    assert re.findall(SECRETS, line)


def test_aws_launches_what_the_file_says(user, monkeypatch):
    """Ray's own launcher against an AWS server: a head on demand, workers on spot, each with its profile."""
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    with services.s3(user / "log.txt") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        config = load("aws.yaml")
        region = config["provider"]["region"]
        iam = boto3.client("iam", region_name=region)
        for profile in ("mmfa-head", "mmfa-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        ready = _bootstrap_config(copy.deepcopy(config), no_config_cache=True)
        worker = ready["available_node_types"]["worker"]
        assert worker["resources"]["GPU"] == 1 and worker["min_workers"] < worker["max_workers"]
        provider = _get_node_provider(ready["provider"], ready["cluster_name"])
        for name, kind in (("head", "head"), ("worker", "worker")):
            tags = {"ray-node-type": kind, "ray-user-node-type": name, "ray-launch-config": "hash"}
            provider.create_node(dict(ready["available_node_types"][name]["node_config"]), tags, 1)
        ec2 = boto3.client("ec2", region_name=region)
        started = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
        disks = ec2.describe_volumes()["Volumes"]
        launched = {node["IamInstanceProfile"]["Arn"].rpartition("/")[2]: node for node in started}
        assert launched["mmfa-worker"]["InstanceLifecycle"] == "spot"
        assert "InstanceLifecycle" not in launched["mmfa-head"] and len(started) == 2
        for node in started:
            assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert [(disk["Size"], disk["Encrypted"]) for disk in disks] == [(150, True)] * 2
        provider.terminate_nodes(provider.non_terminated_nodes({}))
        assert provider.non_terminated_nodes({}) == []


def test_kuberay_is_a_ray_job():
    job = load("kuberay.yaml")
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    assert {container["image"] for container in containers} == {f"REGISTRY/mmfa-study:{PROJECT['version']}"}
    assert cluster["rayVersion"] == PINS["ray"]
    for container in containers:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
    assert containers[1]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    secrets = [{source["secretRef"]["name"] for source in container["envFrom"]} for container in containers]
    assert secrets == [{"mmfa-ledger", "mmfa-s3"}, {"mmfa-s3"}], "workers write to S3 and never to the ledger"
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["authOption"] = {}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(wrong, RAY_JOB)


def test_kuberay_runs_a_command_that_there_is(capsys):
    from tune import cli

    words = load("kuberay.yaml")["spec"]["entrypoint"].split()
    assert words[0] in PROJECT["scripts"]
    options = cli.parser().parse_args(words[1:])
    assert options.ledger.startswith("postgresql+psycopg://") and options.storage.startswith("s3://")
    assert cli.main([*words[1:], "--dry-run"]) == 0
    assert "lambdas" in capsys.readouterr().out


def instructions(text):
    """Return a Dockerfile's instructions, each on one line."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_the_image_is_installed_from_the_pins():
    steps = instructions((ROOT / "Dockerfile").read_text())
    (base,) = [rest for word, rest in steps if word == "FROM"]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert "-c constraints.txt -r requirements.txt" in installs[0] and "--no-deps ." in installs[1]
    assert [rest for word, rest in steps if word == "USER"] == ["1000"]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_the_image_lists_what_the_project_needs(tmp_path):
    """The step that writes requirements.txt, run."""
    (step,) = [rest for word, rest in instructions((ROOT / "Dockerfile").read_text()) if "requirements.txt &&" in rest]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    subprocess.run(["bash", "-ec", step.partition("&&")[0]], cwd=tmp_path, check=True)
    listed = (tmp_path / "requirements.txt").read_text().splitlines()
    assert listed == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]]


def test_slurm_script_makes_a_token_of_its_own_and_resumes(tmp_path):
    text = (CLUSTERS / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(CLUSTERS / "slurm.sh")], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, flags=re.MULTILINE))
    assert "requeue" in options and options["open-mode"] == "append" and options["signal"].startswith("B:USR1@")
    (make,) = re.findall(r"^\(umask 077.*\)$", text, flags=re.MULTILINE)
    run = tmp_path / "run"
    subprocess.run(["bash", "-ec", make], env={**os.environ, "run": str(run)}, check=True)
    assert re.fullmatch("[0-9a-f]{64}", (run / "token").read_text())
    assert [path.stat().st_mode & 0o777 for path in (run, run / "token")] == [0o700, 0o600]
    (head,) = re.findall(r"--head .*\\\n.*", text)
    assert "--dashboard-host=127.0.0.1" in head and "--port=" in head


def test_the_docs_name_every_file():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [file.name for file in CLUSTERS.iterdir() if f"tune/clusters/{file.name}" not in page] == []
    assert json.loads(re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)[0])["Version"] == "2012-10-17"
