"""Where gloo listens. On hosts whose names lead to 127.0.1.1, tests/cluster/test_lab.py trains with two workers."""

import os

import psutil
import pytest
import ray.util

from ray_jobs.workers.gloo import choose_interface


def test_gloo_listens_on_the_interface_of_rays_address_unless_the_user_has_named_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    addresses = psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]]
    assert ray.util.get_node_ip_address() in [address.address for address in addresses]
