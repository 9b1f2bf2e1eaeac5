"""What the machine offers: devices, their free memory, the types they compute in fast.

Two peers under one base; nothing here imports torch before it must, so that ``octavo plan`` stays quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.config import DeviceOptions
from octavo.errors import ConfigError
from octavo.ops.cuda import FLOAT8_CAPABILITY, LEAST_CAPABILITY
from octavo.ops.workspace import CUDA_LOGITS_ROWS, CUDA_RUNTIME_BYTES

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
"""Of this process (version 2), as a container sees it."""

DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where NVIDIA's driver is, on Linux itself or under Windows' (WSL 2): without, torch need not be asked."""

FAST_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16"})


_ASK_GPUS = (
    "import sys, torch; first, count = map(int, sys.argv[1:]); print(*(torch.cuda.mem_get_info(first + n)[0] for n in range(count)))"
)


class Device(ABC):
    """One place a model can run.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        default_share: the share of free memory planned with where no flag says.
        runtime_bytes: what the process takes beside the model: on a CPU its resident memory before it holds one (interpreter, torch, its
            thread pools), measured on Linux; on a GPU what libraries and recorded graphs take.
        logits_rows: most rows whose logits exist at once.
    """

    kind: str
    default_share: float
    runtime_bytes: int
    logits_rows = 64

    @property
    @abstractmethod
    def cores_free(self) -> bool:
        """Whether the process may use cores beside those that run the model; after ``prepare``."""

    @property
    @abstractmethod
    def torch_device(self) -> torch.device:
        """Where this process's tensors are."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory that may still be taken, in bytes."""

    @abstractmethod
    def free_for(self, first: int, count: int) -> int:
        """Memory that ranks may take, without taking any: of the host for all together, or on the fullest of the GPUs they have each.

        Args:
            first, count: which GPUs.
        """

    @abstractmethod
    def default_dtype(self, checkpoint: str) -> str:
        """The compute type for ``--dtype auto``, given the checkpoint's own."""

    @abstractmethod
    def prepare(self, threads: int | None) -> None:
        """Set process-wide state (threads) before the model is loaded."""

    @abstractmethod
    def allocate_pool(self, num_blocks: int, block_bytes: int) -> torch.Tensor:
        """The zeroed page pool: uint8 [num_blocks, block_bytes]."""


class CpuDevice(Device):
    kind = "cpu"
    default_share = 0.4
    runtime_bytes = 420 * 2**20

    @property
    def cores_free(self) -> bool:
        import torch

        return torch.get_num_threads() < usable_cores()

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def free_bytes(self) -> int:
        return available_ram()

    def free_for(self, first: int, count: int) -> int:
        return available_ram()

    def default_dtype(self, checkpoint: str) -> str:
        """float32 stays; a 16-bit checkpoint runs in bfloat16 where the processor multiplies it, else in float32."""
        from octavo.ops._cpu import cpu_features

        fast = not FAST_BF16_FEATURES.isdisjoint(cpu_features())
        return "bfloat16" if checkpoint != "float32" and fast else "float32"

    def prepare(self, threads: int | None) -> None:
        import torch

        torch.set_num_threads(threads or usable_cores())

    def allocate_pool(self, num_blocks: int, block_bytes: int) -> torch.Tensor:
        """Fresh pages of the system, large where it has them: zero, and no memory until first written, so start-up touches none."""
        import mmap

        import torch

        from octavo.ops.workspace import CPU_POOL_SPARE_BYTES

        size = num_blocks * block_bytes
        pages = mmap.mmap(-1, size + CPU_POOL_SPARE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a step reads 2 KiB here and there, each from a page of its own
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        return memory[:size].view(num_blocks, block_bytes)


class CudaDevice(Device):
    kind = "cuda"
    default_share = 0.9
    runtime_bytes = CUDA_RUNTIME_BYTES
    logits_rows = CUDA_LOGITS_ROWS

    @property
    def cores_free(self) -> bool:
        return True

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda")

    def free_bytes(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info()[0])

    def free_for(self, first: int, count: int) -> int:
        """Asked by a process that ends: who asks CUDA about a GPU holds some hundred megabytes on it from then on."""
        return min(map(int, subprocess.check_output([sys.executable, "-c", _ASK_GPUS, str(first), str(count)], timeout=120).split()))

    def default_dtype(self, checkpoint: str) -> str:
        return checkpoint

    def has_float8(self) -> bool:
        """Whether kernels can have float8 numbers: a GPU that is not there yet can."""
        import torch

        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY

    def prepare(self, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)

    def allocate_pool(self, num_blocks: int, block_bytes: int) -> torch.Tensor:
        import torch

        return torch.zeros((num_blocks, block_bytes), dtype=torch.uint8, device="cuda")


def select_device(options: DeviceOptions, number: int | None = 0, count: int = 1) -> Device:
    """The device that ``--device`` names; ``auto`` takes a GPU where one works.

    Args:
        number: which of the GPUs becomes the process's current one; None where it computes nothing itself.
        count: GPUs that all engines on this host need: one for each of their ranks.

    Raises:
        ConfigError: ``cuda`` was asked for and none works or it is too old, or there are fewer than needed.
    """
    if options.device == "cpu":
        return CpuDevice()
    if options.device == "auto" and not any(path.exists() for path in DRIVER_FILES):
        return CpuDevice()
    import torch

    if torch.cuda.is_available():
        # Who computes nothing leaves GPUs alone: each rank asks its own.
        found = LEAST_CAPABILITY if number is None else torch.cuda.get_device_capability(number)
        if found < LEAST_CAPABILITY:
            if options.device == "auto":
                return CpuDevice()
            name = torch.cuda.get_device_name(number)
            raise ConfigError(
                f"--device cuda: {name} has compute capability {found[0]}.{found[1]}, and the kernels need 8.0 (Ampere) or later; "
                "use --device cpu."
            )
        if torch.cuda.device_count() < count:
            raise ConfigError(
                f"{count} GPUs are needed on this host, one for each rank of each engine (tensor_parallel_size, "
                f"pipeline_parallel_size and data_parallel_size); torch sees {torch.cuda.device_count()}."
            )
        if number is not None and count > 1:
            torch.cuda.set_device(number)
        return CudaDevice()
    if options.device == "cuda":
        raise ConfigError("--device cuda: torch sees no usable GPU on this machine; use --device cpu.")
    return CpuDevice()


def usable_cores() -> int:
    """Cores this process may run on: those of its affinity mask, and no more than a container's limit of processor time allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return count if quota == "max" else min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


def available_ram() -> int:
    """RAM that can be taken without swapping, within the control group's limit where there is one.

    What the group used includes pages of files that it has read or fetched, a model's say: they give way.
    """
    free = _meminfo_available()
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used + _cached_files()))
    return free


def _cached_files() -> int:
    """Bytes of files' pages in the control group's account."""
    try:
        rows = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(rows.get(name, 0)) for name in ("inactive_file", "active_file"))


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def resident_bytes() -> int:
    """This process's resident memory, or -1 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return -1
