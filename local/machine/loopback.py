"""What the programs of the local cloud need from this machine: free ports, and connections that avoid an HTTP proxy."""

from __future__ import annotations

import socket
from collections.abc import Mapping

HOSTS = ("127.0.0.1", "localhost", "::1")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that exempt loopback addresses from a proxy, in addition to the hosts that are exempt already."""
    listed = f"{environment.get('no_proxy', '')},{environment.get('NO_PROXY', '')}".split(",")
    hosts = dict.fromkeys([*(host.strip() for host in listed if host.strip()), *HOSTS])
    value = "*" if "*" in hosts else ",".join(hosts)
    return {"no_proxy": value, "NO_PROXY": value, "no_grpc_proxy": ",".join(HOSTS)}  # gRPC does not know "*"


def is_free(port: int) -> bool:
    """Return whether a server can listen on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the servers do: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
