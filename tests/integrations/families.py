"""Tiny models of the families that the tests of the transformers hook go through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

V = 97  # a prime: no vector ends with the row
SHARED = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
MOE: dict[str, Any] = {
    "num_local_experts": 4,
    "output_router_logits": True,
    "experts_implementation": "eager",  # torch's grouped product knows no float64
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},  # divides
    "hyperclovax": {"logits_scaling": 4.0},  # multiplies
    "falcon_h1": FALCON_H1 | {"lm_head_multiplier": 0.3},
    "mixtral": MOE,  # its loss has a part that is not the head's
    "phi": {},  # a bias
    "gpt2": {},
}


def model_of(family: str = "llama", *, seed: int = 0, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **SHARED | FAMILIES[family] | options)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as they come, all tokens are about as likely
            parameter.normal_(0, 0.2 if parameter.dim() > 1 else 1.0)
    return model.eval()


def draw_ids(rows: int = 3, length: int = 11, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, V, (rows, length), generator=draw)


def from_logits(model: Any, ids: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """log-probs and entropy of the next tokens, from the model's logits."""
    logits = model(ids).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = (logits / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return {"log_probs": log_p.gather(-1, ids[:, 1:, None])[..., 0], "entropy": entropy}


def with_gradients(model: Any, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs, and under random upstream gradients that of the head and that of the body.

    The body's is one vector: of its parts some nearly cancel, and there rounding is all there is.
    """
    draw = torch.Generator().manual_seed(1)
    noise = [torch.randn(x.shape, generator=draw).to(x) for x in outputs.values()]
    model.zero_grad()
    torch.autograd.backward([*outputs.values()], noise)
    head = model.get_output_embeddings().weight
    body = [p.grad.flatten() for p in model.parameters() if p.grad is not None and p is not head]
    grads = {"grad of head": head.grad.clone(), "grad of body": torch.cat(body)}
    return {k: x.detach() for k, x in outputs.items()} | grads
