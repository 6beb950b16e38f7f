"""A Redis cluster for tests: three masters on loopback, each with a third of the slots, and replicas on request."""

import socket
import time
from collections.abc import Callable
from typing import Any, Self

from redis import Redis
from redis.crc import key_slot

from tests.harness import RedisServer, free_port

MASTERS = 3
SLOTS = 16_384
_READY_S = 20.0
_BUS_OFFSET = 10_000


def _free_port() -> int:
    """A port of which the cluster bus's port, 10,000 higher, is free as well."""
    while True:
        port = free_port()
        if port + _BUS_OFFSET > 65_535:
            port -= 2 * _BUS_OFFSET
        try:
            for number in (port, port + _BUS_OFFSET):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something that other processes bring about."""
    until = time.monotonic() + _READY_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.02)


class ClusterNode(RedisServer):
    """One server of a cluster."""

    def __init__(self, binary: str | None, *options: str) -> None:
        super().__init__(
            binary,
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000"),
            *("--repl-diskless-sync-delay", "0", *options),
        )
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> Redis:
        """This server alone, as plain Redis."""
        return Redis(port=self.port)

    def ask(self, *args: Any) -> Any:
        """One command on a connection of its own."""
        with self.client as client:
            return client.execute_command(*args)

    @property
    def id(self) -> str:
        """Its name within the cluster."""
        return str(self.ask("CLUSTER", "MYID").decode())


class Cluster:
    """Three masters. ``nodes`` grows with ``add``."""

    def __init__(self, binary: str | None = None, *options: str) -> None:
        self._binary = binary
        self._options = options
        self.nodes = [ClusterNode(binary, *options) for _ in range(MASTERS)]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> Self:
        """Start the servers, join them, and wait until all agree."""
        for epoch, node in enumerate(self.nodes, start=1):
            node.start()
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for number, node in enumerate(self.nodes):
            slots = range(number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS)
            node.ask("CLUSTER", "ADDSLOTS", *slots)
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_until_whole()
        return self

    def wait_until_whole(self) -> None:
        """Wait until every server knows every other one and sees all slots served."""

        def is_whole() -> bool:
            infos = [bytes(node.ask("CLUSTER", "INFO")).decode() for node in self.nodes]
            known = f"cluster_known_nodes:{len(self.nodes)}"
            return all("cluster_state:ok" in info and known in info for info in infos)

        wait_until(is_whole, "the cluster is not whole")

    def add(self, *, replica_of: ClusterNode | None = None) -> ClusterNode:
        """One more server: empty, or the replica of a master, in step with it."""
        node = ClusterNode(self._binary, *self._options)
        node.start()
        self.nodes.append(node)
        node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_until_whole()
        if replica_of is not None:
            node.ask("CLUSTER", "REPLICATE", replica_of.id)
            wait_until(
                lambda: node.client.info("replication").get("master_link_status") == "up",
                "the replica is not in step",
            )
        return node

    def master_of(self, key: str) -> ClusterNode:
        """The server that has a key, by the cluster's own word."""
        slot = key_slot(key.encode())
        living = next(node for node in self.nodes if node.process is not None and node.process.poll() is None)
        for start, end, (_, port, *_), *_ in living.ask("CLUSTER", "SLOTS"):
            if start <= slot <= end:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def begin_move(self, key: str, target: ClusterNode) -> ClusterNode:
        """Open a key's slot for its way to another server, and move nothing yet; returns where it is."""
        source, slot = self.master_of(key), key_slot(key.encode())
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def end_move(self, key: str, source: ClusterNode, target: ClusterNode) -> None:
        """Move the slot's keys, and give it away."""
        slot = key_slot(key.encode())
        for name in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            source.ask("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def stop(self) -> None:
        """Stop every server and throw the data away."""
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
