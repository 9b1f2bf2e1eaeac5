"""Every option of the engine and the server, as small frozen dataclasses that are resolved once.

The command line (``cli/flags.py``) and ``LLM(**options)`` are both derived from these fields: a field's name with dashes is
its flag, its ``metadata`` holds the help text and the choices. Nothing else in Octavo declares an option.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import ConfigError

KV_BLOCK_SIZES = (8, 16, 32, 64, 128)
ATTENTION_BACKENDS = ("triton", "fa3", "flashinfer")


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[Any, ...] | None = None,
    flags: tuple[str, ...] = (),
    kind: type | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: the default value; a list makes a flag that takes several values.
        text: the help line.
        choices: the allowed values, where they are few.
        flags: further spellings, such as ``-tp``.
        kind: the value's type where the default does not tell (a default of None).
        secret: whether the value must never be shown, in messages about it included.
    """
    metadata = {"help": text, "choices": choices, "flags": flags, "kind": kind or type(default), "secret": secret}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is read."""

    model: str | None = option(None, "directory, GGUF file or Hugging Face repository id; the embedded default when omitted", kind=str)
    tokenizer: str | None = option(None, "directory, file or repository id of the tokenizer; the model's own when omitted", kind=str)
    revision: str | None = option(None, "branch, tag or commit of the repository", kind=str)
    dtype: str = option("auto", "compute type of weights and activations", choices=("auto", "float32", "bfloat16", "float16"))
    quantization: str = option(
        "auto",
        "weights in products: auto (a quantised file's stay as stored), none (the compute type), int8, int4 (vocabulary int8), fp8 (GPU)",
        choices=("auto", "none", "int8", "int4", "fp8"),
    )
    activation_bits: int | None = option(
        None,
        "what rows keep before quantised weights on a CPU: 8 (fastest for one stream of 4-bit weights) or 16 (needs AMX: fastest for "
        "many and for prompts, and more exact); 16 where there is AMX when omitted",
        choices=(8, 16),
        kind=int,
    )
    load_format: str = option("auto", "how weights are stored; dummy makes random ones", choices=("auto", "safetensors", "gguf", "dummy"))
    max_model_len: int | None = option(None, "longest context in tokens; the model's own limit when omitted", kind=int)
    generation_config: str = option("auto", "where sampling defaults come from: auto (the model's), vllm (none), or a directory")
    seed: int | None = option(None, "seed for requests that bring none; drawn for each request when omitted", kind=int)
    chat_template: str | None = option(None, "file with a Jinja chat template that replaces the model's own", kind=str)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """The pool of KV pages."""

    kv_cache_memory_bytes: int | None = option(None, "size of an engine's KV pool in bytes (K, M, G suffixes allowed)", kind=int)
    gpu_memory_utilization: float | None = option(
        None, "share of the free memory to plan with, where no size is given (0.9 on a GPU, 0.4 of RAM on a CPU)", kind=float
    )
    kv_cache_dtype: str = option(
        "auto", "type of cached keys and values", choices=("auto", "float32", "bfloat16", "float16", "int8", "fp8")
    )
    block_size: int = option(16, "token slots in a block", choices=KV_BLOCK_SIZES)
    enable_prefix_caching: bool = option(True, "share blocks between requests with a common prefix")


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Budgets of one step and the order of the queue."""

    max_num_seqs: int = option(256, "most sequences in one step")
    max_num_batched_tokens: int = option(2048, "most tokens in one step")
    scheduling_policy: str = option("fcfs", "order of the waiting queue", choices=("fcfs", "priority"))
    max_num_queued_reqs: int = option(2048, "most requests waiting for a place; more are answered 429")
    async_scheduling: bool = option(True, "plan the next step while a GPU computes one")


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Where the model runs."""

    device: str = option("auto", "device of the model", choices=("auto", "cpu", "cuda"))
    threads: int | None = option(None, "CPU threads of the model, all ranks and engines together; the usable cores when omitted", kind=int)
    tensor_parallel_size: int = option(1, "ranks that share each layer, a process each (on a CPU)", flags=("-tp",))
    pipeline_parallel_size: int = option(1, "stages that share the layers out, tensor_parallel_size ranks each (on a CPU)", flags=("-pp",))
    data_parallel_size: int = option(1, "engines side by side in one server, each with the whole model", flags=("-dp",))
    enforce_eager: bool = option(False, "never capture decoding steps as CUDA graphs (a CPU has none)")
    attention_backend: str = option(
        "triton", "who attends on a GPU: Octavo's kernels (triton), or a library that is installed there", choices=ATTENTION_BACKENDS
    )


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Which hosts share the model. torchrun's variables stand for the flags where it started the process."""

    nnodes: int = option(1, "hosts that share the ranks out, as many for each")
    node_rank: int = option(0, "which of them this is; 0 has the server, the others have ranks alone")
    master_addr: str = option("127.0.0.1", "address of host 0, by which the others reach it")
    master_port: int = option(29500, "port on host 0 that the others come to")
    distributed_executor_backend: str = option(
        "mp", "how ranks get to hosts: mp (octavo serve is started on each), or ray (a Ray cluster's hosts)", choices=("mp", "ray")
    )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """All that the engine process needs; it crosses the process border as JSON."""

    model: ModelOptions = field(default_factory=ModelOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    hosts: HostOptions = field(default_factory=HostOptions)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The HTTP server. None of it reaches the engine."""

    served_model_name: list[str] = option([], "names clients may use; the first is echoed and labels metrics")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0 picks a free one")
    uds: str | None = option(None, "unix socket to listen on instead of host and port", kind=str)
    api_key: list[str] = option([], "keys of which clients must send one ($OCTAVO_API_KEY where no key is given)", secret=True)
    api_key_file: str | None = option(
        None, "file with further keys, one a line; unlike --api-key it shows in no list of processes", kind=str
    )
    ssl_keyfile: str | None = option(None, "private key for HTTPS", kind=str)
    ssl_certfile: str | None = option(None, "certificate for HTTPS", kind=str)
    root_path: str = option("", "path prefix behind a proxy")
    allowed_origins: list[str] = option([], "origins allowed by CORS; none by default")
    max_logprobs: int = option(20, "most logprobs a request may ask for; -1 is no limit")
    max_body_bytes: int = option(32 * 2**20, "largest request body in bytes; larger ones are answered 413")
    shutdown_timeout: float = option(30.0, "seconds that running requests get to finish after SIGTERM")
    enable_log_requests: bool = option(False, "log each request's figures when it ends")
    disable_log_stats: bool = option(False, "do not log the load every ten seconds")
    otlp_traces_endpoint: str | None = option(None, "URL of an OpenTelemetry collector that is sent a span a request", kind=str)


ENGINE_GROUPS: dict[str, type] = {
    "model": ModelOptions,
    "cache": CacheOptions,
    "scheduler": SchedulerOptions,
    "device": DeviceOptions,
    "hosts": HostOptions,
}


def engine_options(**options: Any) -> EngineOptions:
    """Sort flat options into their groups and check them.

    Args:
        options: any field of the engine's groups by name.

    Raises:
        TypeError: an option no group has, naming the nearest one that exists.
        ConfigError: a value that cannot be honoured.
    """
    homes = {f.name: group for group, kind in ENGINE_GROUPS.items() for f in dataclasses.fields(kind)}
    sorted_options: dict[str, dict[str, Any]] = {group: {} for group in ENGINE_GROUPS}
    for name, value in options.items():
        if name not in homes:
            import difflib

            near = difflib.get_close_matches(name, homes, 1)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        sorted_options[homes[name]][name] = value
    resolved = EngineOptions(**{group: kind(**sorted_options[group]) for group, kind in ENGINE_GROUPS.items()})
    check(resolved)
    return resolved


def check(options: EngineOptions) -> None:
    """Refuse values that cannot be honoured, before anything is loaded.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    model, cache, scheduler, device, hosts = options.model, options.cache, options.scheduler, options.device, options.hosts
    for group in (model, cache, scheduler, device, hosts):
        for f in dataclasses.fields(group):
            choices, value = f.metadata["choices"], getattr(group, f.name)
            omitted = value is None and f.default is None
            if choices and value not in choices and not omitted:
                raise ConfigError(f"{f.name} must be one of {', '.join(map(str, choices))}; got {value!r}.")
    for name, value in (
        ("max_model_len", model.max_model_len),
        ("kv_cache_memory_bytes", cache.kv_cache_memory_bytes),
        ("max_num_seqs", scheduler.max_num_seqs),
        ("max_num_batched_tokens", scheduler.max_num_batched_tokens),
        ("max_num_queued_reqs", scheduler.max_num_queued_reqs),
        ("threads", device.threads),
        ("tensor_parallel_size", device.tensor_parallel_size),
        ("pipeline_parallel_size", device.pipeline_parallel_size),
        ("data_parallel_size", device.data_parallel_size),
        ("nnodes", hosts.nnodes),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1; got {value}.")
    if cache.gpu_memory_utilization is not None and not 0.0 < cache.gpu_memory_utilization <= 1.0:
        raise ConfigError(f"gpu_memory_utilization must be in (0, 1]; got {cache.gpu_memory_utilization}.")
    _check_hosts(device, hosts)


def _check_hosts(device: DeviceOptions, hosts: HostOptions) -> None:
    ranks = device.tensor_parallel_size * device.pipeline_parallel_size
    if not 0 <= hosts.node_rank < hosts.nnodes:
        raise ConfigError(f"node_rank must be at least 0 and less than nnodes={hosts.nnodes}; got {hosts.node_rank}.")
    if not 0 < hosts.master_port < 2**16:
        raise ConfigError(f"master_port must be a port, 1 to 65535; got {hosts.master_port}.")
    if ranks % hosts.nnodes:
        raise ConfigError(
            f"nnodes={hosts.nnodes} hosts cannot share {ranks} ranks evenly (tensor_parallel_size={device.tensor_parallel_size} times "
            f"pipeline_parallel_size={device.pipeline_parallel_size})."
        )
    by_ray = hosts.distributed_executor_backend == "ray"
    if device.data_parallel_size > 1 and (by_ray or hosts.nnodes > 1):
        other = "distributed_executor_backend=ray" if by_ray else "nnodes"
        raise ConfigError(f"data_parallel_size and {other} do not go together: start several servers, behind a load balancer.")
    if by_ray and hosts.node_rank:
        raise ConfigError(f"node_rank={hosts.node_rank} and distributed_executor_backend=ray do not go together: Ray starts the hosts.")
