"""What a benchmark asks of a device. The harness knows no other difference between CPU and GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

CACHE_BYTES = 128 << 20  # more than any last-level cache of a CPU we meet
CUDA_CACHE_BYTES = 512 << 20  # and of a GPU; long enough to read that a launch hides behind it


class Device(Protocol):
    name: str
    kind: str
    memory_method: str

    def stamp(self) -> Any: ...
    def elapsed_ns(self, start: Any, end: Any) -> float: ...
    def synchronise(self) -> None: ...
    def flush(self) -> None: ...
    def free_bytes(self) -> int: ...
    def release(self) -> None: ...
    def peak_bytes(self, work: Callable[[], Any]) -> tuple[Any, int | None]: ...


def device_of(tensor: Tensor) -> Device:
    return Cuda(tensor.device) if tensor.device.type == "cuda" else Cpu()


def slug(device: Device) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")


def reads(buffer: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to read every byte of `buffer` once; which is fastest differs between machines."""
    flat = buffer.view(-1).view(torch.uint8)
    flat = flat[: len(flat) // 512 * 512] if len(flat) >= 512 else flat
    if len(flat) < 512:
        return {"amax of int8": lambda: flat.view(torch.int8).amax()}
    rows = flat.view(torch.int64).view(64, -1)
    halves, words = flat.view(torch.int16), flat.view(torch.int32)
    out = {
        "sum of int64, 64 rows": lambda: rows.sum(1),  # integers: no denormals, no NaN
        "amin of int32": lambda: words.amin(),
        "amax of int16": lambda: halves.amax(),
    }
    if buffer.dtype == torch.float32:
        floats = words.view(torch.float32).view(64, -1)
        out["sum of float32, 64 rows"] = lambda: floats.sum(1)
    return out


class Cpu:
    """Wall clock; peak memory from the kernel's resident high-water mark."""

    kind = "cpu"
    memory_method = (
        "resident high-water mark (VmHWM after a reset through /proc/self/clear_refs, freed heap "
        "pages returned first): sees every page touched, by torch or by anyone"
    )

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.name = f"{_cpu_model()}, {self.threads} threads"
        self._cache = torch.ones(CACHE_BYTES // 8, dtype=torch.int64)
        try:
            self._malloc_trim = ctypes.CDLL(None).malloc_trim
            self._reset_high_water()
            self.can_measure = True
        except (OSError, AttributeError):
            self.can_measure = False
            self.memory_method = "not measured: this system has no resettable high-water mark"

    def stamp(self) -> int:
        return time.perf_counter_ns()

    def elapsed_ns(self, start: int, end: int) -> float:
        return end - start

    def synchronise(self) -> None:
        pass

    def flush(self) -> None:
        self._cache.sum()  # reading evicts; writing would leave dirty lines for the next to pay

    def free_bytes(self) -> int:
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        return int(available[1]) << 10 if available else 1 << 62

    def release(self) -> None:
        pass

    def peak_bytes(self, work: Callable[[], Any]) -> tuple[Any, int | None]:
        if not self.can_measure:
            return work(), None
        self._malloc_trim(0)  # or a temporary that reuses freed heap pages would not be seen
        self._reset_high_water()
        before = _status_bytes("VmRSS")
        result = work()
        return result, max(0, _status_bytes("VmHWM") - before)

    def _reset_high_water(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


class Cuda:
    """Events on the current stream; peak memory from torch's allocator."""

    kind = "cuda"
    memory_method = "torch.cuda.max_memory_allocated above what was allocated before"

    def __init__(self, device: torch.device) -> None:
        self.name = torch.cuda.get_device_name(device)
        self._cache = torch.ones(CUDA_CACHE_BYTES // 8, dtype=torch.int64, device=device)

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ns(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) * 1e6

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def flush(self) -> None:
        # Not waited for: the stream is busy while the timed work is being launched.
        self._cache.sum()

    def free_bytes(self) -> int:
        held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + held  # torch keeps what was freed, for the next

    def release(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self, work: Callable[[], Any]) -> tuple[Any, int | None]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before


def gpu_state() -> str:
    """Driver, clocks and temperature as nvidia-smi tells them; "" where there is none."""
    fields = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def huge_pages() -> dict[str, str]:
    """Fresh CPU buffers cost up to 5 times less with huge pages: no time without this."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", path.read_text()) if path.exists() else None
    return {
        "transparent_hugepage": chosen[1] if chosen else "unknown",
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "unset"),
    }


class OtherLoad:
    """The share of all CPU time that went to other processes, or was stolen by other machines.

    Above a few percent on a CPU the times say as much about the scheduler as about the kernels.
    """

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float | None:
        if self._start is None:
            return None
        total, busy, own = (
            end - start for start, end in zip(self._start, self._now(), strict=True)
        )
        return min(1.0, max(0.0, busy - own) / max(total, 1e-9))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        path = Path("/proc/stat")
        if not path.exists():
            return None
        ticks = [int(word) for word in path.read_text().split("\n", 1)[0].split()[1:9]]
        total, idle = sum(ticks), ticks[3] + ticks[4]  # idle and waiting for a disk
        own = sum(os.times()[:4])  # children too: compilers
        return total / os.sysconf("SC_CLK_TCK"), (total - idle) / os.sysconf("SC_CLK_TCK"), own


def _status_bytes(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":", 1)[1].split(None, 1)[0]) << 10


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1].strip() if found else platform.machine()
