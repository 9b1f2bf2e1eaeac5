"""Hosts that Ray finds: an agent on each, in a placement group. Ray places and cleans up; what is said while tokens are made is ours."""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
from typing import Any

import msgspec

from octavo import env
from octavo.config import EngineOptions
from octavo.errors import ConfigError, OctavoError
from octavo.executor.hosts import Hosts
from octavo.log import get_logger
from octavo.models.config import ModelConfig

logger = get_logger(__name__)

_KNOCK_SECONDS = 10.0


class RayHosts(Hosts):
    """``nnodes`` hosts of a Ray cluster: the one that runs already, or else one on this machine that is started here and ends with it.

    All ranks run under agents, also where the engine's own host is among those chosen. The CPUs of a host's threads are reserved on it:
    those of ``threads``, or, where it is not given, as many as so many hosts of the cluster have.

    Args:
        options: the engine's.
        config: the model's shape.
        device: cpu or cuda; GPUs are reserved too, one for each rank.

    Attributes:
        options: with ``threads`` chosen.

    Raises:
        ConfigError: Ray is not installed.
        OctavoError: the cluster cannot be reached.
    """

    def __init__(self, options: EngineOptions, config: ModelConfig, device: str) -> None:
        try:
            import ray
            from ray.util.placement_group import placement_group
        except ImportError:
            raise ConfigError("distributed_executor_backend=ray needs Ray; install it with: pip install 'octavo[ray]'") from None
        self._ray: Any = ray
        self._began_ray = not ray.is_initialized()
        if self._began_ray:
            _knock(env.ray_address())
            try:
                ray.init(include_dashboard=False, logging_level=logging.WARNING)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                raise OctavoError(f"Cannot reach the Ray cluster: {error}") from None
        asked, nnodes = options.device, options.hosts.nnodes
        ranks = asked.tensor_parallel_size * asked.pipeline_parallel_size // nnodes
        self._cpus = asked.threads or max(ranks, _cpus_of_each(ray, nnodes))
        self._gpus = ranks if device == "cuda" else 0
        chosen = dataclasses.replace(options, device=dataclasses.replace(asked, device=device, threads=self._cpus))
        super().__init__(chosen, config, device, f"tcp://{self._ray.util.get_node_ip_address()}:*", first=0)
        bundle = {"CPU": self._cpus} | ({"GPU": self._gpus} if self._gpus else {})
        self._group: Any = placement_group([bundle] * nnodes, strategy="STRICT_SPREAD")
        self._agents: list[Any] = []
        self._running: list[Any] = []

    def missing(self) -> list[int]:
        if not self._agents and self._group.wait(0):
            self._start_agents()
        failed, _ = self._ray.wait(self._running, timeout=0) if self._running else ([], [])
        for one in failed:
            try:
                self._ray.get(one)
            except Exception as error:
                raise OctavoError(f"host {self._running.index(one)}: {getattr(error, 'cause', None) or error}") from None
        return super().missing()

    def awaited(self) -> str:
        if self._agents:
            return super().awaited()
        has = ", ".join(f"{cpus:g} on {name}" for name, cpus in _cpus(self._ray).items())
        needs = f"{self._cpus} CPUs" + (f" and {self._gpus} GPUs" if self._gpus else "")
        return f"Ray to find {len(self.wanted)} host(s) with {needs} free; it has these CPUs in all: {has}"

    def close(self) -> None:
        super().close()
        if not self._ray.is_initialized():
            return
        for agent in self._agents:
            self._ray.kill(agent)
        self._ray.util.remove_placement_group(self._group)
        if self._began_ray:
            self._ray.shutdown()

    def _start_agents(self) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        agent: Any = self._ray.remote(_Agent)
        for host in self.wanted:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=host)
            hosts = dataclasses.replace(self.options.hosts, node_rank=host)
            start = msgspec.json.encode(dataclasses.replace(self.options, hosts=hosts))
            made = agent.options(num_cpus=self._cpus, num_gpus=self._gpus, scheduling_strategy=strategy).remote()
            self._agents.append(made)
            self._running.append(made.run.remote(start, self.address))


class _Agent:
    """What Ray runs on a host."""

    def run(self, options: bytes, address: str) -> None:
        """Run the host's ranks until Ray ends this process.

        Args:
            options: the engine's, as JSON.
            address: the engine's, for hosts.

        Raises:
            OctavoError: the model cannot be found on this host, or the engine turns it away.
        """
        from octavo import log
        from octavo.executor.host_agent import HostAgent
        from octavo.models.hub import resolve

        start = msgspec.json.decode(options, type=EngineOptions)
        log.configure(f"host {start.hosts.node_rank}")
        files = resolve(start.model.model, start.model.revision, lambda what, done, total: None)
        HostAgent(start, files, address).run()


def _knock(address: str) -> None:
    """See whether anything listens at a cluster's HOST:PORT: Ray itself would try for minutes.

    Raises:
        OctavoError: nothing does.
    """
    if not (named := re.fullmatch(r"([\w.-]+):(\d+)", address)):
        return
    try:
        socket.create_connection((named[1], int(named[2])), timeout=_KNOCK_SECONDS).close()
    except OSError as error:
        raise OctavoError(f"Cannot reach the Ray cluster at {address} ($RAY_ADDRESS): {error.strerror or error}.") from None


def _cpus(ray: Any) -> dict[str, float]:
    """CPUs of the cluster's hosts, by address, most first."""
    found = {node["NodeManagerAddress"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _cpus_of_each(ray: Any, count: int) -> int:
    """What ``count`` hosts have at least; 0 where there are fewer."""
    each = list(_cpus(ray).values())
    return int(each[count - 1]) if len(each) >= count else 0
