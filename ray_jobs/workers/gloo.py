"""Where gloo listens, by which training workers on CPUs exchange tensors: at the address by which Ray knows their node.

Left alone, gloo listens where the host's own name leads. That is 127.0.1.1 on Debian and Ubuntu, which no other host
reaches.
"""

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NodeNetwork(TorchConfig):
    """Process groups of torch on the network of Ray's nodes."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts on the workers."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # type: ignore[override] # as Ray's
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME to the network interface of Ray's node address, unless it is set."""
    here = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if here in (address.address for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
