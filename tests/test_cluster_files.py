"""The files in cluster/: valid by the tools that will read them, and right where those tools do not look."""

import copy
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import job_cli_group
from ray.runtime_env import RuntimeEnv
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent  # where pip puts programs
CLUSTER = ROOT / "cluster"
TEXTS = {str(file.relative_to(CLUSTER)): file.read_text() for file in CLUSTER.rglob("*") if file.is_file()}
PAGES = {name: text for name, text in TEXTS.items() if name.endswith(".md")}
LAUNCHER = ("aws.yaml", "gcp.yaml")
KUBERNETES = ("cluster.yaml", "job.yaml", "services.yaml")
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", ROOT.parent / "shared" / "schemas"))  # not ours to bring
RAY = re.search(r"rayproject/ray:([\d.]+)-py311", TEXTS["Dockerfile"])[1]

sys.path.insert(0, str(ROOT / "studies"))
from sibcl_ray.cli.commands import app  # noqa: E402

KNOWN_OPTIONS = {option for p in get_command(app).commands["sweep"].params for option in (*p.opts, *p.secondary_opts)}


def documents(name):
    return documents_of((CLUSTER / "kuberay" if name in KUBERNETES else CLUSTER) / name)


def documents_of(file):
    return [d for d in yaml.safe_load_all(file.read_text()) if d]


def walk(value, path=()):
    """Every (path, value) in a document."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, (*path, key))


# Rules: what is wrong with a document, one line each; nothing where it is right.


def unpinned(document):
    """Images without a version of their own, and of another Ray."""
    for path, image in walk(document):
        if path and path[-1] in ("image", "head_image", "worker_image") and isinstance(image, str):
            tag = image.rpartition(":")[2] if ":" in image.rpartition("/")[2] else ""
            if not re.match(r"v?\d+\.\d+", tag):
                yield f"image {image} is not pinned"
            if "rayproject/ray" in image and not tag.startswith(f"{RAY}-py311"):
                yield f"image {image} is not of Ray {RAY}, Python 3.11"
    for path, text in walk(document):
        if isinstance(text, str) and re.search(r"nightly|ray-wheels|\.dev0", text):
            yield f"a development build in {'.'.join(map(str, path))}"


def plain_secrets(document):
    """Passwords, keys and tokens written out."""
    sensitive = re.compile(r"(?i)password|secret_?(access_?)?key|access_?key|auth_?token|credentials$")
    for path, value in walk(document):
        name = path[-1] if path else ""
        if isinstance(value, dict) and isinstance(value.get("value"), str):
            name, value = value.get("name", ""), value["value"]
        if isinstance(value, str) and sensitive.search(str(name)) and value not in ("EDIT", "~/.ray/auth_token"):
            yield f"{name} in plain text"
        if isinstance(value, str) and re.search(r"://[^/\s:@]+:[^/\s@]+@", value):
            yield f"a password in the address of {'.'.join(map(str, path))}"


def launcher_faults(config):
    """What Ray's schema does not see in a launcher file."""
    groups = dict(config["available_node_types"])
    head = groups.pop(config["head_node_type"])
    starts = " ".join(config["head_start_ray_commands"])
    if head["resources"].get("CPU") != 0 or "--num-cpus=0" not in starts:
        yield "the head has CPUs for work"
    if is_spot(head):
        yield "the head is a spot machine"
    if "--dashboard-host=127.0.0.1" not in starts or "0.0.0.0" in json.dumps(config):
        yield "something listens to, or is open to, the world"
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        yield "idle nodes stay"
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        yield "no token is asked for"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "nodes lack the token"
    for name, group in groups.items():
        if group.get("min_workers") != 0 or group.get("max_workers", 0) < 1:
            yield f"{name} does not scale from 0 to a maximum"
        if is_spot(group) != ("spot" in name) or is_spot(group) != (group["labels"]["ray.io/market-type"] == "spot"):
            yield f"{name} is not what its name and label say about spot"
        if "GPU" in group["resources"] and "--gpus all" not in group["docker"]["worker_run_options"]:
            yield f"the container of {name} has no GPUs"
    if config["max_workers"] != sum(group.get("max_workers", 0) for group in groups.values()):
        yield "max_workers is not the sum of the groups'"
    kinds = {("spot" if is_spot(g) else "steady", "GPU" if "GPU" in g["resources"] else "CPU") for g in groups.values()}
    if kinds != {("spot", "GPU"), ("steady", "GPU"), ("steady", "CPU")}:
        yield f"the groups are only {kinds}"


def is_spot(group):
    node = group["node_config"]
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


def cluster_faults(spec):
    """What KubeRay's schema does not see in a cluster."""
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "the head has CPUs for work"
    if spec.get("rayVersion") != RAY:
        yield f"rayVersion is not {RAY}"
    if not (spec.get("enableInTreeAutoscaling") and spec.get("autoscalerOptions", {}).get("version") == "v2"):
        yield "autoscaler v2 is not on"
    if not 0 < spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) <= 1800:
        yield "idle nodes stay"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "no token is asked for"
    for group in (head, *groups):
        if group["template"]["spec"].get("restartPolicy") != "Never":
            yield "a pod that restarts is another node under the same name"
        yield from pod_faults(group["template"]["spec"])
    for group in groups:
        name, pod = group["groupName"], group["template"]["spec"]
        if group.get("minReplicas") != 0 or group.get("maxReplicas", 0) < 1:
            yield f"{name} does not scale from 0 to a maximum"
        tolerated = any(t.get("value") == "spot" for t in pod.get("tolerations", []))
        if len({"spot" in name, group["labels"]["ray.io/market-type"] == "spot", tolerated}) != 1:
            yield f"{name} is not what its name and label say about spot"
    if {"gpu-spot", "gpu", "cpu"} != {group["groupName"] for group in groups}:
        yield "a group is missing"


def pod_faults(pod):
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "a pod may run as root"
    for container in pod["containers"]:
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{container['name']} lacks requests or a limit of memory"
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} may gain privileges"


def service_faults(workload):
    pod = workload["spec"]["template"]["spec"]
    yield from pod_faults(pod)
    for container in pod["containers"]:
        if not {"readinessProbe", "livenessProbe"} <= set(container):
            yield f"{container['name']} is not watched"


def strict(schema):
    """The schema, refusing keys it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def kuberay_faults(document):
    kind = f"{document['kind'].lower()}s"
    found = sorted(SCHEMAS.glob(f"kuberay-*-{kind}-v1.json.gz"))
    if not found:
        pytest.skip(
            f"no schema of {kind} in {SCHEMAS}; set KUBERAY_SCHEMAS to a folder with the gzipped openAPIV3Schema as "
            f"kuberay-VERSION-{kind}-v1.json.gz, from: kubectl get crd {kind}.ray.io -o json"
        )
    schema = strict(json.loads(gzip.decompress(found[-1].read_bytes())))
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def core_faults(document):
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield error.message


def change(document, path, value):
    """A copy in which the value at a path is another one."""
    made = copy.deepcopy(document)
    *parents, last = path
    place = made
    for key in parents:
        place = place[key]
    place[last] = value
    return made


def commands(text):
    """The shell commands of a page: what is indented by four spaces, lines that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")))
    return [line for line in joined.splitlines() if line.strip()]


def unknown_options(command):
    """Options of the study, of the script that passes them on, and of `ray job submit`, that there are not."""
    for start, known in (("label_sweep.py", KNOWN_OPTIONS), ("cluster/slurm.sh", KNOWN_OPTIONS)):
        if start in command and not command.startswith("less "):
            rest = command.partition(start)[2]
            yield from (o for o in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest) if o not in known)
    if "ray job submit" in command:
        known = {o for p in job_cli_group.commands["submit"].params for o in p.opts}
        given = command.partition("ray job submit")[2].partition(" -- ")[0]
        yield from (o for o in re.findall(r"(?<!\S)--[a-z][a-z-]*", given) if o not in known)


def shellcheck(script, name, *options):
    done = subprocess.run(
        [TOOLS / "shellcheck", "-s", "bash", *options, "-"], input=script, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"


# The files as they are


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launcher_file_passes_ray_and_our_rules(name):
    [config] = documents(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    faults = [*launcher_faults(config), *unpinned(config), *unpinned(prepared), *plain_secrets(config)]
    assert not faults


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])
def test_a_file_of_kuberay_passes_its_schema_and_our_rules(name):
    [document] = documents(name)
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    assert not [*cluster_faults(spec), *unpinned(document), *plain_secrets(document)]
    assert not kuberay_faults(document)


def test_a_job_and_a_cluster_are_of_the_same_machines():
    [cluster], [job] = documents("cluster.yaml"), documents("job.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["ttlSecondsAfterFinished"] > 0
    assert job["spec"]["backoffLimit"] > 0
    assert not [*unknown_options(job["spec"]["entrypoint"])] and "--scale paper" in job["spec"]["entrypoint"]


def test_services_pass_the_schemas_of_kubernetes_and_our_rules():
    for document in documents("services.yaml"):
        assert not [*core_faults(document), *unpinned(document), *plain_secrets(document)]
        if document["kind"] in ("StatefulSet", "Deployment"):
            assert not [*service_faults(document)]


def test_names_that_kubernetes_files_use_are_there():
    everything = [d for name in KUBERNETES for d in documents(name)]
    services, configs = (
        {d["metadata"]["name"] for d in everything if d["kind"] == kind} for kind in ("Service", "ConfigMap")
    )
    secrets = {
        match[1]: set(re.findall(r"--from-literal=(\w+)=", match[2]))
        for command in commands(PAGES["kubernetes.md"])
        if (match := re.search(r"kubectl create secret generic (\S+)(.*)", command))
    }
    assert secrets and services and configs
    for _, value in walk(everything):
        if not isinstance(value, dict):
            continue
        if reference := value.get("secretKeyRef"):
            assert reference["key"] in secrets[reference["name"]]
        if reference := value.get("secretRef"):
            assert reference["name"] in secrets
        if "secretName" in value:
            assert "auth_token" in secrets[value["secretName"]]
        if isinstance(value.get("configMap"), dict):
            assert value["configMap"]["name"] in configs
        if value.get("name") == "PGHOST":
            assert value["value"] in services
        if value.get("name") == "MLFLOW_TRACKING_URI":
            assert re.match(r"http://(\w+):5000$", value["value"])[1] in services
    [mlflow] = [d for d in everything if d["kind"] == "Deployment"]
    assert "--allowed-hosts=mlflow,mlflow:5000," in json.dumps(mlflow)  # as the driver addresses it


def test_one_ray_everywhere_and_the_project_allows_it():
    named = re.compile(r"(?:rayproject/ray:|ray==|rayVersion: )(\d+\.\d+\.\d+)")
    assert {version for text in TEXTS.values() for version in named.findall(text)} == {RAY}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [ray] = [Requirement(d) for d in project["dependencies"] if Requirement(d).name == "ray"]
    assert ray.specifier.contains(RAY)
    fixed = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    versions = {canonicalize_name(f.name): next(iter(f.specifier)).version for f in fixed}
    assert versions["ray"] == RAY
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "magnet"}
    for wanted in map(Requirement, [*project["dependencies"], *chain(*extras.values())]):
        if wanted.name != "sibcl_ray":
            assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), wanted
    lists = [found for text in TEXTS.values() for found in re.findall(r"(?:package|\.)\[([\w,]+)\]", text)]
    assert lists and {extra for names in lists for extra in names.split(",")} <= set(project["optional-dependencies"])


def test_environments_of_jobs_are_ones_that_ray_takes():
    [environment], [job] = documents_of(CLUSTER / "job.yaml"), documents("job.yaml")
    for given in (environment, yaml.safe_load(job["spec"]["runtimeEnvYAML"])):
        assert not [*plain_secrets(given)]
        assert 3 < int(RuntimeEnv(**given)["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) <= 60
    with pytest.raises(TypeError, match="env_vars"):
        RuntimeEnv(env_vars={"RAY_JOB_STOP_WAIT_TIME_S": 30})


def test_the_image_is_built_from_what_is_there():
    subprocess.run([TOOLS / "hadolint", CLUSTER / "Dockerfile"], check=True)
    copied = [line.split()[1:] for line in TEXTS["Dockerfile"].splitlines() if line.startswith("COPY")]
    sources = [name for *names, _ in copied for name in names if not name.startswith("--")]
    assert sources and all((ROOT / name).exists() for name in sources)
    assert "latest" not in TEXTS["Dockerfile"]


def test_shell_is_clean():
    shellcheck(TEXTS["slurm.sh"], "slurm.sh")
    [embedded] = re.findall(r"<<'PYTHON' &\n(.*?)\nPYTHON\n", TEXTS["slurm.sh"], re.S)
    compile(embedded, "slurm.sh", "exec")
    for name in LAUNCHER:
        [config] = documents(name)
        for key, lines in config.items():
            if key.endswith("_commands"):
                # The launcher's machines set RAY_HEAD_IP; a tilde is for the shell of the node.
                shellcheck("\n".join(lines), f"{name}: {key}", "-e", "SC2154,SC2086")
    for name, text in PAGES.items():
        shellcheck("\n".join(commands(text)), name, "-e", "SC2154,SC1091")


def test_the_pages_speak_of_files_and_options_that_exist():
    begun = re.compile(r"^(ray|python3?|pip|aws|gcloud|kubectl|sbatch|\. \.venv) ", re.MULTILINE)
    assert not [name for name, text in PAGES.items() if begun.search(text)], "a command is not set off"
    found = [command for text in PAGES.values() for command in commands(text)]
    assert len(found) > 20
    for command in found:
        for path in re.findall(r"cluster/[\w./-]+", command):
            assert (ROOT / path).exists(), path
        assert not [*unknown_options(command)], command


def test_an_upload_has_the_code_and_nothing_large(tmp_path):
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    project, package = tmp_path / "project", tmp_path / "package.zip"
    for name in files:
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    left_out = (
        "runs/labels.parquet", ".venv/lib/torch.so", ".venv-gpu/lib/torch.so", ".git/objects/pack", "job.yaml",
        "sibcl_ray/__pycache__/run.pyc", ".mypy_cache/x", "tests/large.npy", "benchmarks/large.npy",
    )  # fmt: skip
    for name in left_out:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(bytes(1000))
    create_package(str(project), package, include_gitignore=True)
    names = set(zipfile.ZipFile(package).namelist())
    assert {"studies/label_sweep.py", "studies/my_study.py", "studies/my_problem.py"} <= names
    assert {name for name in files if name.startswith("sibcl_ray/") and not name.endswith(".png")} <= names
    assert not [n for n in names if n in left_out or n.startswith(("tests/", "benchmarks/", ".git/", "runs/"))]
    assert package.stat().st_size < 2_000_000


def test_the_stack_on_aws_makes_what_the_launcher_file_names(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    import boto3
    from moto import mock_aws

    [config] = documents("aws.yaml")
    region = config["provider"]["region"]
    with mock_aws():
        ec2, iam, stacks = (boto3.client(service, region_name=region) for service in ("ec2", "iam", "cloudformation"))
        given = {
            "Bucket": "results", "Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"], "SshFrom": "192.0.2.7/32",
            "DatabasePassword": "only for this test",
        }  # fmt: skip
        stacks.create_stack(
            StackName="sibcl",
            TemplateBody=TEXTS["aws-services.yaml"],
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        )
        outputs = stacks.describe_stacks(StackName="sibcl")["Stacks"][0]["Outputs"]
        assert [output["OutputKey"] for output in outputs] == ["DatabaseHost"]
        for group in config["available_node_types"].values():
            profile = group["node_config"]["IamInstanceProfile"]["Name"]
            assert iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        wanted = [config["provider"]["security_group"]["GroupName"]]
        [network] = ec2.describe_security_groups(GroupNames=wanted)["SecurityGroups"]
        open_to = [r["CidrIp"] for rule in network["IpPermissions"] for r in rule["IpRanges"]]
        assert open_to == ["192.0.2.7/32"]
        [inside] = [rule for rule in network["IpPermissions"] if rule["UserIdGroupPairs"]]
        assert inside["IpProtocol"] == "-1" and inside["UserIdGroupPairs"][0]["GroupId"] == network["GroupId"]
        assert boto3.client("s3", region_name=region).head_bucket(Bucket="results")


# Planted faults: a rule that finds nothing wrong anywhere is no rule.

NODES = "available_node_types"
CONTAINER = ("spec", "template", "spec", "containers", 0)  # of a workload
HEAD = ("headGroupSpec", "template", "spec", "containers", 0)


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("docker", "image"), "rayproject/ray:nightly-py311-gpu", "not pinned"),
        (("docker", "image"), "rayproject/ray:latest", "not pinned"),
        (("docker", "image"), "rayproject/ray", "not pinned"),
        (("docker", "image"), "rayproject/ray:2.9.0-py311", "not of Ray"),
        (("setup_commands",), ["pip install ray-3.0.0.dev0.whl"], "development build"),
        ((NODES, "head", "resources"), {"CPU": 4}, "head has CPUs"),
        ((NODES, "gpu", "min_workers"), 1, "does not scale from 0"),
        ((NODES, "gpu-spot", "node_config"), {}, "about spot"),
        ((NODES, "gpu-spot", "labels"), {"ray.io/market-type": "on-demand"}, "about spot"),
        ((NODES, "gpu", "docker"), {"worker_run_options": []}, "no GPUs"),
        (("max_workers",), 3, "not the sum"),
        (("idle_timeout_minutes",), 600, "idle nodes"),
        (("head_start_ray_commands",), ["ray start --head --num-cpus=0 --dashboard-host=0.0.0.0"], "the world"),
        (("docker", "run_options"), [], "no token"),
        (("file_mounts",), {}, "lack the token"),
        (("metadata", "password"), "hunter2", "plain text"),
        (("metadata", "database"), "postgresql://sibcl:hunter2@host/mlflow", "a password in the address"),
    ],
)
def test_a_fault_in_a_launcher_file_is_found(name, path, value, found):
    [config] = documents(name)
    made = change(config, path, value)
    assert any(found in fault for fault in [*launcher_faults(made), *unpinned(made), *plain_secrets(made)])


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_refuses_an_unknown_key(name):
    [config] = documents(name)
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config(change(config, ("idle_minutes",), 5)))


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("rayVersion",), "2.9.0", "rayVersion"),
        (("headGroupSpec", "rayStartParams"), {}, "head has CPUs"),
        (("autoscalerOptions", "version"), "v1", "autoscaler v2"),
        (("authOptions",), {}, "no token"),
        (("headGroupSpec", "template", "spec", "restartPolicy"), "Always", "restarts"),
        (("workerGroupSpecs", 0, "labels"), {"ray.io/market-type": "on-demand"}, "about spot"),
        (("workerGroupSpecs", 0, "template", "spec", "tolerations"), [], "about spot"),
        (("workerGroupSpecs", 1, "minReplicas"), 1, "does not scale from 0"),
        (("workerGroupSpecs", 1, "template", "spec", "securityContext"), {}, "as root"),
        ((*HEAD, "resources"), {}, "lacks requests"),
        ((*HEAD, "image"), "me/sibcl_ray", "not pinned"),
        ((*HEAD, "env"), [{"name": "PGPASSWORD", "value": "x"}], "plain"),
    ],
)
def test_a_fault_in_a_cluster_of_kuberay_is_found(path, value, found):
    [document] = documents("cluster.yaml")
    made = change(document, ("spec", *path), value)
    assert any(found in fault for fault in [*cluster_faults(made["spec"]), *unpinned(made), *plain_secrets(made)])


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("workerGroupSpecs", 0, "minReplica"), 0, "minReplica"),
        ((*HEAD, "imagePullPolice"), "Always", "imagePullPolice"),
        (("authOptions", "mode"), "on", "not one of"),
        (("autoscalerOptions", "idleTimeoutSeconds"), "600", "not of type"),
    ],
)
def test_the_schema_of_kuberay_refuses(path, value, found):
    [document] = documents("cluster.yaml")
    assert any(found in fault for fault in kuberay_faults(change(document, ("spec", *path), value)))


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("spec", "replica"), 2, "replica"),
        ((*CONTAINER, "livenessProb"), {}, "livenessProb"),
        ((*CONTAINER, "livenessProbe"), None, "not watched"),
        ((*CONTAINER, "image"), "ghcr.io/mlflow/mlflow:latest", "not pinned"),
        ((*CONTAINER, "env"), [{"name": "PGPASSWORD", "value": "x"}], "plain"),
        (("spec", "template", "spec", "securityContext"), {}, "as root"),
    ],
)
def test_a_fault_in_a_service_is_found(path, value, found):
    [document] = [d for d in documents("services.yaml") if d["kind"] == "Deployment"]
    made = change(document, path, value)
    if value is None:
        del made["spec"]["template"]["spec"]["containers"][0][path[-1]]
    faults = [*core_faults(made), *service_faults(made), *unpinned(made), *plain_secrets(made)]
    assert any(found in fault for fault in faults)


@pytest.mark.parametrize(
    ("command", "unknown"),
    [
        ("ray job submit --working-dir . -- python studies/label_sweep.py --scales paper", "--scales"),
        ("ray job submit --workdir . -- python studies/label_sweep.py --scale paper", "--workdir"),
        ("sbatch cluster/slurm.sh --scale paper --store /shared", "--store"),
    ],
)
def test_an_option_that_is_not_there_is_found(command, unknown):
    assert [*unknown_options(command)] == [unknown]


def test_a_fault_in_shell_is_found():
    with pytest.raises(AssertionError, match="SC2164"):
        shellcheck("cd /tmp", "planted")
