"""The documents' commands and code, and how tests run them: as they stand, with flags appended that make them small."""

import re
import shlex
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = [
    *(ROOT / name for name in ("README.md", "glsd/README.md", "ray_jobs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

SMALL: Final = "--base small.yaml"  # small_data with a small network, whose shapes are found sooner
PLAN: Final = f"{SMALL} --grid data.images_per_class=4,8 optim.batch_size=8 data.unit_size=8"
WITHOUT_RAY: Final = {
    "glsd config small_data": "",
    "glsd preview photo.jpg --out preview.png --preset small_data": "",
    "glsd pretrain small_data --data photos --out runs/photos --dry_run": "",
    "glsd cache": "",
    "glsd cache --clear representations": "",
    "glsd sweep matching_by_regime --base imagenet_subset --data train --test val --seeds 0 1 --out sweeps/regimes "
    "--dry_run": PLAN,
    "glsd sweep mine.yaml --base small_data --data train --test val --samples 4 --out sweeps/mine --dry_run": SMALL,
    "glsd sweep learning_rate --base small_data --data train --test val --grid optim.base_lr=1e-4,5e-4 --out "
    "sweeps/rates --dry_run": SMALL,
    "glsd sweep learning_rate --base small_data --data train --test val --grid 'augment.local_sizes=[96],[96,64]' "
    "'augment.num_local_crops=[8],[4,4]' 'together=[augment.local_sizes,augment.num_local_crops]' --out sweeps/crops "
    "--dry_run": SMALL,
}
"""Commands that run in seconds, with what a test appends."""

TINY: Final = (
    "--optim.epochs 1 --optim.warmup_epochs 0 --optim.batch_size 16 --data.unit_size 16 --model.hidden_dim 64 "
    "--model.bottleneck_dim 16 --model.num_prototypes 64 --augment.global_size 64 --augment.local_sizes 32 "
    "--augment.num_local_crops 2 --objective.teacher_temperature_warmup_epochs 0 --checkpoint_every_epochs 1 "
    "--evaluation.resize 64 --evaluation.crop 64 --evaluation.k 5"
)
SMALL_NETWORK: Final = "--model.backbone test_convnext --model.drop_path 0"
ON_RAY: Final = {
    "glsd pretrain small_data --data photos --out runs/photos": f"{TINY} {SMALL_NETWORK}",
    "glsd report runs/photos": "",
    "glsd evaluate runs/photos --data labelled/train --test labelled/val --probes knn linear correspondence collapse "
    "--out runs/photos/labelled": "--pairs 8 --ks 5 --linear.epochs 1 --linear.batch_size 16",
    "glsd report runs/photos/labelled": "",
    "glsd embed runs/photos --data photos --out features.parquet": "",
    "glsd export runs/photos --out exported --to timm": "",
    "glsd pack photos shards --shard_mib 256": "",
    "glsd convert dino_deitsmall16_pretrain.pth backbones/dino --backbone vit_small_patch16_224": "",
    "glsd pretrain small_data --data photos --out runs/further --init_from backbones/dino --model.backbone "
    "vit_small_patch16_224": TINY,
}
"""Commands that need Ray, in an order in which each finds what the ones before wrote, with what a test appends."""

ANOTHER_TRAINING: Final = "one more training; its settings are parsed, and a training with others is run"
CLOUD: Final = "needs an object store; tests/glsd/storage and tests/ray_jobs run jobs on small servers of their own"
AWS: Final = "needs an account at AWS; tests/test_cluster_files.py checks the files"
LAB: Final = "needs several machines; tests/cluster/test_lab.py makes some, as root, and runs it with their addresses"
KUBERNETES: Final = "needs a Kubernetes cluster; tests/test_cluster_files.py checks the file"
PROMETHEUS: Final = "needs a running job; tests/ray_jobs/watching starts a Prometheus with these rules"
NOT_RUN: Final = {
    "pip install .": "tests/test_packaging.py installs the packages without their dependencies",
    "make demo": "downloads photographs and takes minutes",
    "make test": "runs these tests",
    "glsd pretrain small_data --data photos --out runs/wide --optim.epochs 400 --objective.setting vanilla": (
        ANOTHER_TRAINING
    ),
    "glsd pretrain demo --data photos --out runs/global --augment.local_sizes --augment.num_local_crops": (
        ANOTHER_TRAINING
    ),
    "glsd pretrain small_data --data shards --out runs/shards": ANOTHER_TRAINING,
    "glsd pretrain small_data --data photos --out runs/photos --workers 4": "needs four GPUs",
    "glsd sweep matching_by_regime --base imagenet_subset --data train --test val --seeds 0 1 --out sweeps/regimes": (
        "trains 30 times; tests/ray_jobs/sweeps runs smaller sweeps, and its --dry_run is run"
    ),
    "glsd report sweeps/regimes": "needs that sweep; tests/glsd/reporting reports another",
    "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...": "needs keys of a real store",
    "glsd pretrain small_data --data 's3://bucket/photos?endpoint_override=HOST:9000&scheme=http' --out runs/photos": (
        CLOUD
    ),
    "RAY_ADDRESS=HOST:6379 glsd pretrain small_data --data s3://bucket/photos --out s3://bucket/runs/photos "
    "--workers 8": "needs a cluster of several machines and an object store",
    "ray job submit --working-dir . -- glsd pretrain small_data --data /data/photos --out /data/runs/photos": (
        "needs a cluster with a dashboard"
    ),
    "docker build --tag registry.example.com/glsd:0.1.0 .": "needs Docker; .ci/run builds the image where it can",
    "docker push registry.example.com/glsd:0.1.0": "needs a registry",
    "aws cloudformation deploy --template-file docs/aws.yaml --capabilities CAPABILITY_NAMED_IAM --region us-west-2 "
    "--parameter-overrides Bucket=BUCKET SshFrom=ADDRESS/32 --stack-name glsd": AWS,
    "pip install boto3": "for `ray up`",
    "ray get-auth-token --generate": "writes into the user's home",
    "ray up cluster.yaml": AWS,
    "ray dashboard cluster.yaml": AWS,
    "export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://localhost:8265": AWS,
    "ray job submit -- glsd pretrain small_data --data s3://bucket/photos --out s3://bucket/runs/photos --workers 2 "
    "--gpu True": AWS,
    "ray down cluster.yaml": AWS,
    "ray up docs/lab.yaml": LAB,
    "ray dashboard docs/lab.yaml": LAB,
    "ray job submit --working-dir . -- glsd pretrain small_data --data s3://bucket/photos --out "
    "s3://bucket/runs/photos --workers 2 --data_on data": LAB,
    "ray down docs/lab.yaml": LAB,
    "sbatch docs/slurm.sbatch": "needs SLURM; tests/cluster/test_slurm.py starts one, as root, and runs it",
    "helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm "
    "--version 1.7.0": KUBERNETES,
    'kubectl create secret generic glsd-token --from-literal=auth_token="$(openssl rand -hex 32)"': KUBERNETES,
    "kubectl apply -f kubernetes/rayjob.yaml": KUBERNETES,
    "kubectl logs --follow job/glsd": KUBERNETES,
    "kubectl delete -f kubernetes/rayjob.yaml": KUBERNETES,
    "apt-get install prometheus": "needs root; .ci/run installs it where it can",
    "systemctl stop prometheus": PROMETHEUS,
    "RULES=$(python -c 'import ray_jobs; print(ray_jobs.__path__[0])')/watching/alerts.yml": PROMETHEUS,
    "(cat /tmp/ray/session_latest/metrics/prometheus/prometheus.yml; "
    "echo \"rule_files: ['$RULES']\") > prometheus.yml": PROMETHEUS,
    "prometheus --config.file=prometheus.yml --web.listen-address=127.0.0.1:9090": PROMETHEUS,
}
"""Commands that no test runs, and why."""


def blocks(language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return [
        block for path in DOCUMENTS for block in re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.S)
    ]


def commands() -> list[str]:
    """Every command of the documents once, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return sorted({line for line in lines if line})


def arguments(command: str, appended: str = "") -> list[str]:
    """What `main` is given of a `glsd` command, whatever stands before `glsd`."""
    return shlex.split(command.partition("glsd ")[2]) + shlex.split(appended)
