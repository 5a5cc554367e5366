"""The files that start a cluster: the image, `ray up` on AWS and Google Cloud, and a Ray job on Kubernetes.

No cloud is reached. Ray's own checks, moto in the place of AWS, botocore's model of RunInstances and Google's
description of the Compute Engine say what they would refuse. Ray has no public check of a cluster file: this is the one
place that imports private modules of Ray.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.scripts.scripts import start as ray_start

from ray_jobs.cli.main import parse
from ray_jobs.cluster.growing import asked_for
from ray_jobs.cluster.resources import DATA, TRAIN, NoRoom, worker_room
from tests.documents import ROOT, commands

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")


def yaml_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text("utf-8"))
    return content


AWS: Final = yaml_file("cluster.yaml")
CLUSTERS: Final = {"aws": AWS, "gcp": yaml_file("docs/cluster-gcp.yaml")}
RAYJOB: Final = yaml_file("kubernetes/rayjob.yaml")
OBJECT_STORE: Final = 0.3
"""The share of a node's memory that Ray gives the object store."""

every_cluster = pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)


def bytes_of(text: str) -> float:
    """What `6g`, `16Gi` or `512Mi` says.

    >>> bytes_of("2g") == bytes_of("2Gi") == bytes_of("2048Mi")
    True
    """
    amount, unit = re.fullmatch(r"(\d+)([gGM])i?", text).groups()  # type: ignore[union-attr]
    return int(amount) * 2.0 ** (20 if unit == "M" else 30)


# The image


def pins() -> dict[str, str]:
    """The versions that the image fixes, by package."""
    (command,) = re.findall(r"pip install .*", DOCKERFILE)
    return dict(re.findall(r"([a-z]+)(?:\[[\w,]+\])?==([\d.]+)", command))


def images() -> list[str]:
    groups = [RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"], *RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    return [cluster["docker"]["image"] for cluster in CLUSTERS.values()] + [each["image"] for each in containers]


def test_all_nodes_have_one_image_that_is_named_after_this_version():
    assert len(images()) == 5
    assert len(set(images())) == 1
    assert images()[0].endswith(f"/glsd:{PROJECT['version']}")


def test_the_image_keeps_the_ray_that_it_is_made_from():
    (base,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py311-cpu AS ray$", DOCKERFILE, re.M)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)[1:] == ["ray", "ray"]
    assert pins()["ray"] == base == RAYJOB["spec"]["rayClusterSpec"]["rayVersion"]


def test_the_image_fixes_versions_that_the_project_allows():
    allowed = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}
    assert pins().keys() == {"ray", "torch", "torchvision"}
    assert [name for name, version in pins().items() if not allowed[name].specifier.contains(version)] == []
    (extras,) = re.findall(r"ray\[([\w,]+)\]", DOCKERFILE)
    assert set(extras.split(",")) == allowed["ray"].extras


def test_the_lint_of_dockerfiles_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; its wheel is for Linux on x86_64")
    printed = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (printed.returncode, printed.stdout) == (0, "")


@pytest.mark.slow  # the build backend comes from the package index
def test_the_wheel_of_the_image_has_all_modules_and_presets(tmp_path):
    for line in re.findall(r"^COPY (?!--)(.*)", DOCKERFILE, re.M):
        *sources, target = line.split()
        place = tmp_path / target.removeprefix("/tmp/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(exist_ok=True)
                shutil.copy(ROOT / source, place)
    (command,) = re.findall(r"pip wheel .*", DOCKERFILE)
    arguments = shlex.split(command.replace("/tmp/source", "/tmp/glsd").replace("/tmp/", f"{tmp_path}/"))
    subprocess.run([sys.executable, "-m", *arguments, "--quiet"], check=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    packed = {path.relative_to(tmp_path / "unpacked") for path in (tmp_path / "unpacked").rglob("*") if path.is_file()}
    here = {
        path.relative_to(ROOT)
        for package in ("glsd", "ray_jobs")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".css")
    }
    assert here <= packed


# ray up


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def run_options(cluster: dict[str, Any], name: str) -> list[str]:
    """How Docker starts the container on a node of this type."""
    docker = cluster["docker"]
    of_type = cluster["available_node_types"][name].get("docker", {}).get("worker_run_options", [])
    head = docker["head_run_options"] if name == cluster["head_node_type"] else of_type
    parts = [part for option in [*docker["run_options"], *head] for part in shlex.split(option)]
    return [piece for part in parts for piece in (part.split("=", 1) if part.startswith("--") else [part])]


def option(options: list[str], flag: str) -> list[str]:
    """The values of a flag."""
    return [value for name, value in pairwise(options) if name == flag]


@every_cluster
def test_ray_accepts_the_cluster_file(cluster):
    validate_config(prepare_config(cluster))


def test_rays_check_refuses_a_misspelt_key():
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(AWS | {"max_worker": 3}))


@every_cluster
def test_nodes_start_only_when_asked_for_and_all_of_them_can(cluster):
    nodes = workers(cluster)
    assert {node["min_workers"] for node in nodes.values()} == {0}
    assert cluster["max_workers"] == sum(node["max_workers"] for node in nodes.values())
    assert min(node["max_workers"] for node in nodes.values()) >= 2
    assert cluster["idle_timeout_minutes"] <= 15


def launched(cluster: dict[str, Any], **demands: Any) -> dict[str, int]:
    """How many nodes of each type Ray's autoscaler starts for demands, where only the head is up."""
    config = AutoscalingConfig(prepare_config(cluster), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        **demands,
    )
    return {each.instance_type: each.count for each in ResourceDemandScheduler().schedule(request).to_launch}


@every_cluster
def test_the_documented_job_has_a_node_started_for_each_of_its_workers(cluster):
    (command,) = [line for line in commands() if line.startswith("ray job submit -- glsd") and "--gpu True" in line]
    settings = parse(shlex.split(command)[5:]).job
    bundles, _ = asked_for(settings, NoRoom("", 0, {"CPU": 1, "GPU": settings.gpus_per_worker}, {}))
    demand = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle) for bundle in bundles])
    assert launched(cluster, resource_requests=demand) == {"train": settings.workers}


@every_cluster
@pytest.mark.parametrize(("labels", "resources"), [(TRAIN, {"CPU": 1, "GPU": 1}), (DATA, {"CPU": 1})])
def test_work_for_nodes_with_a_label_starts_such_a_node(cluster, labels, resources):
    selector = [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in labels.items()]
    demand = [ResourceRequestUtil.make(resources, label_selectors=[selector])]
    assert launched(cluster, resource_requests=ResourceRequestUtil.group_by_count(demand)) == {labels["role"]: 1}


@every_cluster
def test_the_head_works_for_no_job_and_workers_have_the_labels_that_the_code_asks_for(cluster):
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}
    spot = {"ray.io/market-type": "spot"}
    assert {name: node["labels"] for name, node in workers(cluster).items()} == {
        "train": TRAIN | spot,
        "data": DATA | spot,
    }
    most = workers(cluster)["train"]
    assert worker_room([most["resources"]] * most["max_workers"], {"CPU": 1, "GPU": 1}) == most["max_workers"]
    assert "GPU" not in workers(cluster)["data"]["resources"]


@every_cluster
def test_a_node_installs_nothing_and_starts_ray_once(cluster):
    prepared = prepare_config(cluster)
    given = {key: prepared[key] for key in prepared if key.endswith("_commands")}
    assert not re.search(r"pip install|\.whl", str(given))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert str(given[key]).count("ray start") == 1
        (arguments,) = [shlex.split(command)[2:] for command in given[key] if command.startswith("ray start")]
        assert ray_start.make_context("ray start", arguments).params["head"] == key.startswith("head")
    assert not re.search(r"--num-cpus|--resources|--labels", str(given))  # Ray sets them from the node's type


@every_cluster
def test_ray_asks_for_a_token_that_every_node_gets_and_no_port_is_opened_for_the_dashboard(cluster):
    for name in cluster["available_node_types"]:
        assert "RAY_AUTH_MODE=token" in option(run_options(cluster, name), "--env")
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host" not in str(cluster["head_start_ray_commands"])
    assert "IpPermissions" not in cluster["provider"].get("security_group", {})


@every_cluster
def test_the_cache_is_on_a_disk_of_the_node_that_is_there_before_the_container(cluster):
    for name in cluster["available_node_types"]:
        options = run_options(cluster, name)
        (volume,) = option(options, "--volume")
        on_node, inside = volume.split(":")
        assert [value for value in option(options, "--env") if value.startswith(f"GLSD_CACHE={inside}/")]
        assert on_node in cluster["initialization_commands"][-1]
        assert str(Path(on_node).parent) in str(cluster["initialization_commands"][0])


@every_cluster
def test_containers_may_open_many_files_and_only_those_of_gpu_nodes_get_gpus(cluster):
    for name, node in cluster["available_node_types"].items():
        options = run_options(cluster, name)
        assert option(options, "--ulimit") == ["nofile=65536:65536"]
        assert ("all" in option(options, "--gpus")) == ("GPU" in node["resources"])


# AWS


@pytest.fixture(scope="module")
def account() -> Iterator[None]:
    """An account with the stack of docs/aws.yaml."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    with moto.mock_aws():
        boto3.client("cloudformation", region_name=AWS["provider"]["region"]).create_stack(
            StackName="glsd",
            TemplateBody=(ROOT / "docs" / "aws.yaml").read_text("utf-8"),
            Parameters=[
                {"ParameterKey": "Bucket", "ParameterValue": "photos"},
                {"ParameterKey": "SshFrom", "ParameterValue": "192.0.2.7/32"},
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield


def instances() -> dict[str, dict[str, Any]]:
    """What AWS says of the instance of each type of node."""
    import boto3

    client = boto3.client("ec2", region_name=AWS["provider"]["region"])
    nodes = {name: node["node_config"]["InstanceType"] for name, node in AWS["available_node_types"].items()}
    found = client.describe_instance_types(InstanceTypes=list(nodes.values()))["InstanceTypes"]
    types = {each["InstanceType"]: each for each in found}
    return {name: types[kind] for name, kind in nodes.items()}


def test_nodes_offer_the_cpus_and_gpus_of_their_instances_and_workers_have_a_disk_of_their_own(account):
    for name, instance in instances().items():
        offered = AWS["available_node_types"][name]["resources"]
        gpus = sum(gpu["Count"] for gpu in instance.get("GpuInfo", {}).get("Gpus", []))
        if name != "head":
            assert offered == {"CPU": instance["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})
            assert instance["InstanceStorageInfo"]["NvmeSupport"] == "required"


def test_shared_memory_holds_the_object_store_and_the_head_has_memory_for_its_processes(account):
    for name, instance in instances().items():
        memory = instance["MemoryInfo"]["SizeInMiB"] * 2**20
        (shared,) = option(run_options(AWS, name), "--shm-size")
        assert OBJECT_STORE * memory <= bytes_of(shared) < 0.5 * memory
        assert memory >= 16 * 2**30


def refused(node_config: dict[str, Any]) -> str:
    """What AWS would say of the request for this node, without asking it."""
    loaders, validate = pytest.importorskip("botocore.loaders"), pytest.importorskip("botocore.validate")
    model = pytest.importorskip("botocore.model").ServiceModel(loaders.Loader().load_service_model("ec2", "service-2"))
    request = {**node_config, "MinCount": 1, "MaxCount": 1}
    request.pop("SubnetIds", None)  # Ray chooses one of them
    report: str = validate.ParamValidator().validate(request, model.operation_model("RunInstances").input_shape)
    return report.generate_report()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", AWS["available_node_types"])
def test_aws_knows_all_that_a_node_is_asked_for_with(name):
    assert refused(AWS["available_node_types"][name]["node_config"]) == ""


def test_the_check_of_requests_refuses_rubbish():
    assert "InstanceTipe" in refused({"InstanceTipe": "m5a.xlarge"})
    assert "MarketType" in refused({"InstanceMarketOptions": {"MarketType": 1}})


def test_only_workers_are_on_spot():
    spot = {name: "InstanceMarketOptions" in node["node_config"] for name, node in AWS["available_node_types"].items()}
    assert spot == {"head": False, "train": True, "data": True}


def test_ray_up_finds_the_profiles_and_the_closed_group_that_the_stack_makes(account, tmp_path, monkeypatch):
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes its key there
    nodes = bootstrap_aws(prepare_config(AWS))["available_node_types"]
    ec2 = boto3.client("ec2", region_name=AWS["provider"]["region"])
    (group,) = ec2.describe_security_groups(GroupNames=["glsd"])["SecurityGroups"]
    rules = {
        (rule.get("FromPort"), *(each["CidrIp"] for each in rule["IpRanges"])): rule["UserIdGroupPairs"]
        for rule in group["IpPermissions"]
    }
    assert rules.keys() == {(22, "192.0.2.7/32"), (None,)}
    assert [each["GroupId"] for each in rules[(None,)]] == [group["GroupId"]]
    iam = boto3.client("iam")
    for name, node in nodes.items():
        config = node["node_config"]
        assert config["SecurityGroupIds"] == [group["GroupId"]]
        profile = iam.get_instance_profile(InstanceProfileName=config["IamInstanceProfile"]["Name"])["InstanceProfile"]
        assert [role["RoleName"] for role in profile["Roles"]] == ["glsd-head" if name == "head" else "glsd-worker"]
        assert refused(config) == ""


def test_all_nodes_may_use_the_bucket_and_the_head_may_give_workers_their_role(account):
    import boto3

    iam = boto3.client("iam")
    for role in ("glsd-head", "glsd-worker"):
        attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        documents = [
            iam.get_policy_version(PolicyArn=each["PolicyArn"], VersionId="v1")["PolicyVersion"]["Document"]
            for each in attached
            if ":aws:policy/" not in each["PolicyArn"]
        ]
        assert "arn:aws:s3:::photos/*" in json.dumps(documents)
    document = iam.get_role_policy(RoleName="glsd-head", PolicyName="autoscaler")["PolicyDocument"]
    statements = yaml.safe_load(str(document))["Statement"]  # moto gives it as Python prints it
    allowed = {str(each["Action"]): each["Resource"] for each in statements}
    assert allowed["iam:PassRole"] == iam.get_role(RoleName="glsd-worker")["Role"]["Arn"]
    parameter = AWS["available_node_types"]["train"]["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert re.fullmatch(allowed["ssm:GetParameters"].replace("*", ".*"), f"arn:aws:ssm:us-west-2::parameter{parameter}")


def test_the_lint_of_cloudformation_has_nothing_to_say():
    cfnlint = pytest.importorskip("cfnlint.api")
    template = (ROOT / "docs" / "aws.yaml").read_text("utf-8")
    assert "&" not in template  # CloudFormation reads no aliases of YAML
    assert [match for match in cfnlint.lint_all(template) if match.rule.severity != "informational"] == []


# Google Cloud


@pytest.fixture(scope="module")
def compute() -> Draft202012Validator:
    """Google's description of an instance, as a JSON schema that allows no other fields."""
    pytest.importorskip("googleapiclient")
    described = resources.files("googleapiclient") / "discovery_cache" / "documents" / "compute.v1.json"

    def schema(node: Any) -> Any:
        if isinstance(node, list):
            return [schema(each) for each in node]
        if not isinstance(node, dict):
            return node
        made = {key: schema(value) for key, value in node.items()}
        if isinstance(made.get("$ref"), str):
            made["$ref"] = f"#/$defs/{made['$ref']}"
        if made.get("type") == "object" and "properties" in made:
            made["additionalProperties"] = False
        if made.get("format") == "int64":
            made["type"] = ["string", "integer"]  # JSON has no integers of 64 bits
        return {key: value for key, value in made.items() if key not in ("id", "format", "required")}

    return Draft202012Validator(
        {"$ref": "#/$defs/Instance", "$defs": schema(json.loads(described.read_text("utf-8"))["schemas"])}
    )


def test_google_knows_all_that_a_node_is_asked_for_with(compute):
    for node in CLUSTERS["gcp"]["available_node_types"].values():
        compute.validate(node["node_config"])


def test_the_description_of_instances_refuses_rubbish(compute):
    with pytest.raises(ValidationError, match="machineTipe"):
        compute.validate({"machineTipe": "e2-standard-4"})
    with pytest.raises(ValidationError, match="preemptible"):
        compute.validate({"scheduling": [{"preemptible": True}]})


def test_workers_at_google_are_on_spot_with_an_account_and_a_disk_of_their_own():
    for node in workers(CLUSTERS["gcp"]).values():
        config = node["node_config"]
        assert config["scheduling"]["provisioningModel"] == "SPOT"
        assert config["serviceAccounts"][0]["email"].startswith("glsd-worker@")
        assert [disk["interface"] for disk in config["disks"] if disk["type"] == "SCRATCH"] == ["NVME"]


# Kubernetes


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT: Final = {"type": "string"}
COUNT: Final = {"type": "integer", "minimum": 0}
TEXTS: Final = {"type": "object", "additionalProperties": TEXT}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


POD: Final = closed(
    ("spec",),
    spec=closed(
        ("containers",),
        nodeSelector=TEXTS,
        serviceAccountName=TEXT,
        tolerations=many(closed(("key",), key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect=TEXT)),
        containers=many(
            closed(
                ("name", "image", "resources"),
                name=TEXT,
                image=TEXT,
                env=many(closed(("name", "value"), name=TEXT, value=TEXT)),
                envFrom=many(closed(secretRef=closed(("name",), name=TEXT, optional={"type": "boolean"}))),
                resources=closed(("requests", "limits"), requests=TEXTS, limits=TEXTS),
                volumeMounts=many(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
            )
        ),
        volumes=many(
            closed(("name", "emptyDir"), name=TEXT, emptyDir=closed(medium={"const": "Memory"}, sizeLimit=TEXT))
        ),
    ),
)
KUBERAY: Final = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(("name",), name=TEXT, namespace=TEXT, labels=TEXTS),
    spec=closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        rayClusterSpec=closed(
            ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
            headGroupSpec=closed(("template",), rayStartParams=TEXTS, labels=TEXTS, template=POD),
            workerGroupSpecs=many(
                closed(
                    ("groupName", "minReplicas", "maxReplicas", "template"),
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    labels=TEXTS,
                    rayStartParams=TEXTS,
                    template=POD,
                )
            ),
        ),
    ),
)
"""The fields of KubeRay's RayJob (ray.io_rayjobs.yaml of its version 1.7) that glsd uses or may come to use."""
CLUSTER: Final = RAYJOB["spec"]["rayClusterSpec"]
GROUPS: Final = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_kuberay_knows_all_fields_of_the_job():
    Draft202012Validator(KUBERAY).validate(RAYJOB)


def test_the_schema_of_jobs_refuses_rubbish():
    broken = json.loads(json.dumps(RAYJOB))
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["label"] = {"role": "train"}
    with pytest.raises(ValidationError, match="label"):
        Draft202012Validator(KUBERAY).validate(broken)


def test_groups_have_the_labels_that_the_code_asks_for_and_the_head_does_no_work():
    assert {name: group["labels"] for name, group in GROUPS.items()} == {"train": TRAIN, "data": DATA}
    assert CLUSTER["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_the_command_of_the_job_is_understood_and_its_workers_have_room():
    command = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert command[0] == "glsd"
    parse(command[1:])
    number = int(command[command.index("--workers") + 1])
    limits = container(GROUPS["train"])["resources"]["limits"]
    nodes = [{"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}] * GROUPS["train"]["replicas"]
    assert worker_room(nodes, {"CPU": 1, "GPU": 1}) >= number
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in GROUPS.values())


def test_only_pods_that_train_ask_for_a_gpu():
    gpus = {name: container(group)["resources"]["limits"].get("nvidia.com/gpu") for name, group in GROUPS.items()}
    assert gpus == {"train": "1", "data": None}


@pytest.mark.parametrize("group", [CLUSTER["headGroupSpec"], *GROUPS.values()], ids=["head", *GROUPS])
def test_shared_memory_of_a_pod_holds_the_object_store(group):
    volumes = {volume["name"]: volume["emptyDir"] for volume in group["template"]["spec"]["volumes"]}
    places = {mount["mountPath"]: mount["name"] for mount in container(group)["volumeMounts"]}
    shared = volumes[places["/dev/shm"]]
    assert shared["medium"] == "Memory"
    memory = bytes_of(container(group)["resources"]["limits"]["memory"])
    assert OBJECT_STORE * memory <= bytes_of(shared["sizeLimit"]) < 0.5 * memory


def test_the_cache_of_a_pod_is_on_a_volume():
    for group in GROUPS.values():
        (cache,) = [each["value"] for each in container(group)["env"] if each["name"] == "GLSD_CACHE"]
        assert str(Path(cache).parent) in [mount["mountPath"] for mount in container(group)["volumeMounts"]]


def test_a_token_is_asked_for_and_nothing_stays_when_the_run_has_ended():
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "glsd-token"}
    assert RAYJOB["spec"]["shutdownAfterJobFinishes"] is True
    assert RAYJOB["spec"]["ttlSecondsAfterFinished"] <= 3600
