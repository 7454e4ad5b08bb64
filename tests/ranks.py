"""Runs a function on several processes that speak gloo, as ranks on several GPUs speak NCCL."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def run(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """`function(rank, *args)` on every rank, within a process group; what each returned."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, str(folder), args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        if process.is_alive():
            process.kill()
    failures = [path.read_text() for path in sorted(folder.glob("failure*"))]
    assert not failures, "\n".join(failures)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(world_size)]


def _rank(
    function: Callable[..., Any], rank: int, world_size: int, folder: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        store = distributed.FileStore(f"{folder}/store", world_size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        torch.save(function(rank, *args), f"{folder}/result{rank}")
        distributed.barrier()
        distributed.destroy_process_group()
    except Exception:  # the parent raises it
        Path(f"{folder}/failure{rank}").write_text(f"rank {rank}\n{traceback.format_exc()}")
        raise
