"""The transformers hook on models spread over two processes by FSDP2 and DDP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch import distributed as dist

pytestmark = pytest.mark.frameworks

WORLD = 2


def _model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=97, tie_word_embeddings=False, **sizes, **heads)
    return Qwen2ForCausalLM(config)


def _sharded(own: bool, reshard: bool) -> Callable[[Any, Any], Any]:
    """FSDP2; `own`: the head is a unit of its own; `reshard`: units are, after a forward."""

    def wrap(model: Any, mesh: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        for unit in (*model.model.layers, *([model.lm_head] if own else []), model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
        return model

    return wrap


def _replicated(find_unused: bool) -> Callable[[Any, Any], Any]:
    def wrap(model: Any, _: Any) -> Any:
        ddp = torch.nn.parallel.DistributedDataParallel
        return ddp(model, find_unused_parameters=find_unused)

    return wrap


WRAPPERS = {
    "head with the root, sharded again": _sharded(False, True),
    "head with the root": _sharded(False, False),
    "head a unit, sharded again": _sharded(True, True),
    "head a unit": _sharded(True, False),
    "DDP": _replicated(False),
    "DDP, unused parameters looked for": _replicated(True),
}


def _rank(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from logpi.integrations.transformers import log_probs, use_logpi

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    batches = torch.randint(3, 97, (WORLD, 2, 9), generator=torch.Generator().manual_seed(1))

    whole = _model()
    for ids in batches:  # the mean over ranks, each with tokens of its own
        (whole(input_ids=ids, labels=ids).loss / WORLD).backward()
    wanted = {name: p.grad for name, p in whole.named_parameters()}

    def hooked(model: Any, ids: Tensor) -> Tensor:
        with use_logpi(model):
            return model(input_ids=ids, labels=ids).loss

    def scored(model: Any, ids: Tensor) -> Tensor:
        return -log_probs(model, ids).log_probs.mean()

    for where, wrap in WRAPPERS.items():
        for loss in (hooked, scored):
            inner = _model()
            wrapped = wrap(inner, mesh)  # DDP's reducer lives no longer than it
            loss(wrapped, batches[rank]).backward()
            for name, p in inner.named_parameters():
                grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                torch.testing.assert_close(
                    grad,
                    wanted[name],
                    rtol=1e-4,
                    atol=1e-6,
                    msg=lambda text, at=f"{name}, {where}, {loss.__name__}": f"{at}: {text}",
                )
    dist.destroy_process_group()


def test_gradients_are_the_mean_over_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head gathered without care has one rank's gradient; a body not awaited is gone: a crash."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")
    mp.spawn(_rank, (str(tmp_path),), nprocs=WORLD)
