"""load_action_head, on a model built as OpenVLA-OFT builds its own: a language model with a padded
head, statistics and bins. The formulas beside ours are those of its predict_action, in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logpi import action_log_probs
from logpi.integrations.openvla import load_action_head
from logpi.testing import assert_all_within_budget

np = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:(transformers|accelerate)\b.*"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning:(transformers|accelerate)\b.*"),
]

ROWS, PADDING, DIM, CHUNK = 32064, 64, 7, 8
LIBERO, ALOHA = "libero_spatial_no_noops", "aloha_fold"


def statistics() -> dict[str, Any]:
    random = np.random.default_rng(0)
    q01, q99 = -random.random(DIM), random.random(DIM)
    action = {
        "q01": q01.tolist(),
        "q99": q99.tolist(),
        "min": (q01 - 0.5).tolist(),
        "max": (q99 + 0.25).tolist(),
        "mask": [True] * (DIM - 1) + [False],
    }
    return {LIBERO: {"action": action, "num_trajectories": 432}}


class OpenVLAForActionPrediction(nn.Module):
    """The attributes that load_action_head reads, made as its namesake makes them."""

    def __init__(self, norm_stats: Any = None, rows: int = ROWS, **llama: Any) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 32000}
        text_config = LlamaConfig(vocab_size=rows, **sizes, **heads, **llama)
        self.config = SimpleNamespace(
            text_config=text_config, pad_to_multiple_of=PADDING, n_action_bins=256
        )
        torch.manual_seed(0)
        self.language_model = LlamaForCausalLM(text_config)
        self.norm_stats = norm_stats
        bins = np.linspace(-1, 1, self.config.n_action_bins)
        self.bin_centers = (bins[:-1] + bins[1:]) / 2.0
        self.vocab_size = text_config.vocab_size - self.config.pad_to_multiple_of

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers")


@pytest.fixture
def model() -> OpenVLAForActionPrediction:
    return OpenVLAForActionPrediction(statistics())


def forward(model: Any) -> tuple[Tensor, Tensor]:
    """Hidden states [2, CHUNK * DIM, D] after the last norm, and the logits made of them."""
    inputs = torch.randn(2, CHUNK * DIM, 16, generator=torch.Generator().manual_seed(1)) * 3
    output = model.language_model(inputs_embeds=inputs, output_hidden_states=True)
    return output.hidden_states[-1], output.logits


def to_actions(model: Any, token_ids: Tensor, low: str, high: str, epsilon: float) -> Any:
    """Of tokens [B, CHUNK * DIM], as predict_action has it."""
    stats = model.norm_stats[LIBERO]["action"]
    at = np.clip(model.vocab_size - token_ids.numpy() - 1, 0, len(model.bin_centers) - 1)
    a = model.bin_centers[at].reshape(-1, CHUNK, DIM)
    lo, hi = np.array(stats[low]), np.array(stats[high])
    return np.where(stats["mask"], 0.5 * (a + 1) * (hi - lo + epsilon) + lo, a)


def test_logits_to_tokens_to_actions(model: OpenVLAForActionPrediction) -> None:
    hidden, logits = forward(model)
    weight, bias, codec = load_action_head(model)
    assert weight is model.language_model.lm_head.weight
    assert bias is None
    assert codec.support == slice(31744, 32000)
    assert codec.action_dim == DIM

    # column j of the slice is token j + (vocab_size - 256)
    tokens = logits[..., -256 - PADDING : -PADDING].argmax(-1) + (model.vocab_size - 256)
    ours = (hidden @ weight[codec.support].T).argmax(-1) + codec.support.start
    assert torch.equal(ours, tokens)
    actions = codec.unnormalize(codec.decode(tokens, dtype=torch.float64)).view(-1, CHUNK, DIM)
    np.testing.assert_allclose(
        actions.numpy(), to_actions(model, tokens, "q01", "q99", 1e-8), rtol=1e-14, atol=1e-14
    )
    assert len(tokens.unique()) > 20  # not one bin alone


@pytest.mark.parametrize("token", [0, 2, 31743, 31744, 31745, 31872, 31999, 32000, 32063])
def test_every_token_means_the_same(model: OpenVLAForActionPrediction, token: int) -> None:
    """Aliases at the top, ids that are no actions at the ends."""
    tokens = torch.full((1, CHUNK * DIM), token)
    for normalization, low, high in (("quantile", "q01", "q99"), ("minmax", "min", "max")):
        for epsilon in (1e-8, 0.0):
            options = {"normalization": normalization, "epsilon": epsilon}
            codec = load_action_head(model, unnorm_key=LIBERO, **options).codec
            ours = codec.unnormalize(codec.decode(tokens, dtype=torch.float64))
            theirs = to_actions(model, tokens, low, high, epsilon)
            np.testing.assert_allclose(ours.view(-1, CHUNK, DIM).numpy(), theirs, rtol=1e-14)


def test_log_probs_are_those_of_the_sliced_logits(model: OpenVLAForActionPrediction) -> None:
    temperature = 1.6
    lm_head = model.language_model.lm_head.weight
    tokens = torch.randint(31744, 32000, (2, CHUNK * DIM))

    def sliced(dtype: torch.dtype) -> dict[str, Tensor]:
        """Every logit, the last 256 of the vocabulary of them, the softmax; and a gradient."""
        head = lm_head.detach().to(dtype).requires_grad_()
        scaled = (hidden.to(dtype) @ head.T)[..., -256 - PADDING : -PADDING] / temperature
        log_p = scaled.log_softmax(-1)
        chosen = log_p.gather(-1, (tokens - (model.vocab_size - 256))[..., None]).squeeze(-1)
        entropy = scaled.logsumexp(-1) - (scaled.softmax(-1) * scaled).sum(-1)
        (chosen.sum() + entropy.sum()).backward()
        return {"log_probs": chosen.detach(), "entropy": entropy.detach(), "weight": head.grad}

    hidden = forward(model)[0].detach()
    weight, bias, codec = load_action_head(model)
    options = {"codec": codec, "temperature": temperature, "return_entropy": True}
    out = action_log_probs(hidden, weight, tokens, bias=bias, **options)
    (out.log_probs.sum() + out.entropy.sum()).backward()
    ours = {"log_probs": out.log_probs, "entropy": out.entropy, "weight": lm_head.grad}
    assert_all_within_budget(ours, sliced(torch.float32), sliced(torch.float64))


# ---- what does not fit --------------------------------------------------------------------------


def test_which_statistics(model: OpenVLAForActionPrediction, tmp_path: Path) -> None:
    model.norm_stats[ALOHA] = {"action": {"min": [0.0], "max": [2.0]}}
    both = f"unnorm_key: expected one of '{LIBERO}', '{ALOHA}', got "
    with pytest.raises(ValueError, match=both + "None"):
        load_action_head(model)
    with pytest.raises(ValueError, match=both + "'libero_spatial'"):
        load_action_head(model, unnorm_key="libero_spatial")
    with pytest.raises(ValueError, match=r"'min', 'max'.*got 'q01'"):
        load_action_head(model, unnorm_key=ALOHA)
    codec = load_action_head(model, unnorm_key=ALOHA, normalization="minmax").codec
    assert (codec.low, codec.high, codec.mask) == ((0.0,), (2.0,), (True,))

    file = tmp_path / "dataset_statistics.json"
    file.write_text(json.dumps(statistics()))
    model.norm_stats = None
    for given in (statistics(), file, tmp_path):
        assert load_action_head(model, statistics=given).codec.action_dim == DIM
    with pytest.raises(ValueError, match=r"norm_stats.*got None; pass statistics="):
        load_action_head(model)
    model.norm_stats = {LIBERO: {"proprio": {}}}
    with pytest.raises(ValueError, match=r"'proprio'.*got 'action'"):
        load_action_head(model)


def test_a_vocabulary_that_counts_its_padding() -> None:
    """resize_token_embeddings sets vocab_size to all rows: every action would be 64 bins off."""
    model = OpenVLAForActionPrediction(statistics())
    model.vocab_size = ROWS
    with pytest.raises(ValueError, match=r"head of 32128 rows, vocab_size 32064.*\(32064, 16\)"):
        load_action_head(model)


def test_bins_of_another_kind(model: OpenVLAForActionPrediction) -> None:
    bins = np.linspace(-1, 1, 257)
    for centers in (
        (bins[:-1] + bins[1:]) / 2,
        model.bin_centers[::-1].copy(),
        0.5 * model.bin_centers,
    ):
        model.bin_centers = centers
        with pytest.raises(ValueError, match=r"model: expected 255 bin_centers, -0.996078 to 0.99"):
            load_action_head(model)


def test_models_of_another_kind(model: OpenVLAForActionPrediction) -> None:
    with pytest.raises(TypeError, match=r"LlamaForCausalLM without language_model, .*bin_centers"):
        load_action_head(model.language_model)
    with pytest.raises(TypeError, match=r"model: expected one of transformers, got Linear"):
        load_action_head(nn.Linear(2, 2))
    model.language_model.lm_head = nn.Sequential(model.language_model.lm_head)
    with pytest.raises(TypeError, match=r"torch.nn.Linear, got Sequential"):
        load_action_head(model)


def test_wrapped_and_with_an_old_config(model: OpenVLAForActionPrediction) -> None:
    weight = model.language_model.lm_head.weight
    assert load_action_head(nn.DataParallel(model)).weight is weight
    model.language_model.config = SimpleNamespace(vocab_size=ROWS)  # no get_text_config
    assert load_action_head(model).weight is weight


def test_a_head_with_a_bias_and_one_that_caps(model: OpenVLAForActionPrediction) -> None:
    lm_head = model.language_model.lm_head
    lm_head.bias = nn.Parameter(torch.randn(ROWS))  # as Phi's, one of OpenVLA's backbones
    assert load_action_head(model).bias is lm_head.bias
    model.language_model.config.final_logit_softcapping = 30.0
    with pytest.raises(TypeError, match=r"a head that is a product.*softcap 30.0"):
        load_action_head(model)
