"""The one reader of ``os.environ``: each variable Octavo honours is a function here, and there are few."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where downloaded models are kept: ``$OCTAVO_CACHE``, else ``$XDG_CACHE_HOME/octavo``, else ``~/.cache/octavo``."""
    if explicit := os.environ.get("OCTAVO_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "octavo"


def log_level() -> str:
    """``$OCTAVO_LOG_LEVEL`` (DEBUG, INFO, WARNING, ERROR); INFO by default."""
    return os.environ.get("OCTAVO_LOG_LEVEL", "INFO").upper()


def api_keys_text() -> str:
    """``$OCTAVO_API_KEY`` as it stands: the keys clients may send, separated by commas, where no flag gives any; empty where unset."""
    return os.environ.get("OCTAVO_API_KEY", "")


def api_keys() -> list[str]:
    """The keys of ``$OCTAVO_API_KEY``."""
    return [key for part in api_keys_text().split(",") if (key := part.strip())]


def api_key() -> str | None:
    """The first key of ``$OCTAVO_API_KEY``: what Octavo's own clients send."""
    return next(iter(api_keys()), None)


def otlp_protocol() -> str:
    """``$OTEL_EXPORTER_OTLP_TRACES_PROTOCOL``, else ``$OTEL_EXPORTER_OTLP_PROTOCOL``: how traces are sent; empty where neither says.

    OpenTelemetry's libraries read further variables of its specification themselves (service name, headers, sampling, certificates).
    """
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")


def cpu_kernels() -> str:
    """``$OCTAVO_CPU_KERNELS``: which CPU kernels to run instead of the best ones (``octavo.ops.select``); empty for the best."""
    return os.environ.get("OCTAVO_CPU_KERNELS", "")


def limit_openmp_spinning() -> None:
    """Tell OpenMP's threads to wait asleep sooner; to be called before torch is loaded, whose OpenMP reads this once.

    By default a thread spins for milliseconds at the end of every parallel loop. Where anybody else wants a core, a step of some
    hundred loops then crawls (docs/performance.md, "Busy neighbours"); on idle cores the bound costs 3 to 5 %. The user's own
    ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def for_child(**changes: str) -> dict[str, str]:
    """This process's environment with some variables changed, for a program it starts."""
    return os.environ | changes


def ray_address() -> str:
    """``$RAY_ADDRESS``: the Ray cluster to use; empty where Ray looks for one on this host, or starts one."""
    return os.environ.get("RAY_ADDRESS", "")


def torchrun_keeps_store() -> bool:
    """``$TORCHELASTIC_USE_AGENT_STORE``: whether torchrun's agent has a store on ``$MASTER_PORT`` for the processes it started."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def torchrun_hosts() -> dict[str, str]:
    """What torchrun says of the hosts, by the names of ``HostOptions``' fields; empty where it did not start this process.

    ``$GROUP_RANK`` counts hosts, ``$RANK`` the processes of all: they are the same where each host has one, and so it must be.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    names = {"node_rank": "GROUP_RANK", "nnodes": "GROUP_WORLD_SIZE", "master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
    return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


def torchrun_processes() -> str:
    """``$LOCAL_WORLD_SIZE``: processes that torchrun started on this host; empty where it started none."""
    return os.environ.get("LOCAL_WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
