"""Ray has no public validation of a cluster file; this is the one place that imports a private module of Ray."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text("utf-8"))


@pytest.mark.ray
def test_the_cluster_file_is_what_ray_accepts() -> None:
    validate_config(prepare_config(CLUSTER))


@pytest.mark.ray
def test_the_check_refuses_a_misspelt_key() -> None:
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(CLUSTER | {"max_worker": 3}))


@pytest.mark.ray
def test_no_node_installs_rays_default_nightly_and_the_head_runs_no_task() -> None:
    prepared = prepare_config(CLUSTER)
    commands = [command for key in prepared if key.endswith("_commands") for command in prepared[key]]
    assert any("pip install" in command for command in commands)
    assert not any(".whl" in command for command in commands)
    nodes = prepared["available_node_types"]
    assert nodes[prepared["head_node_type"]]["resources"]["CPU"] == 0
    assert {node["labels"]["role"] for node in nodes.values() if "labels" in node} == {"train", "data"}
