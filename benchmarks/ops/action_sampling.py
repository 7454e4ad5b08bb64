"""sample_action_tokens beside the rollout of SimpleVLA-RL: its head, its draw, its numpy.

A shape is [rows, D, V]; 56 rows are one chunk of a robot (8 steps of 7 numbers). SimpleVLA-RL
multiplies the whole head, takes the 256 columns of the action tokens, divides by T = 1.6, draws by
multinomial, copies the ids to the host and turns them to actions there, in numpy. Everyone gives
tokens, their log-probs and the actions; logits are in the dtype of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.harness import Group, Provider
from benchmarks.shapes import Shape
from benchmarks.targets import Target
from logpi import ActionCodec, sample_action_tokens
from logpi.ops.action_sampling import BACKENDS

__all__ = ["QUICK", "SHAPES", "TARGETS", "Case", "groups"]

T, D, V, BINS = 1.6, 4096, 32064, 256
SHAPES = {
    "cpu": (
        Shape("libero/1", 56, V, "one robot: a chunk of 8 steps", D),
        Shape("libero/8", 448, V, "eight robots: the shape of the targets", D),
    ),
    "cuda": (
        Shape("libero/8", 448, V, "eight robots: the shape of the targets", D),
        Shape("libero/64", 3584, V, "64 robots", D),
    ),
}
QUICK = {"cpu": ("libero/1",), "cuda": ("libero/8",)}
LOW, HIGH = [-0.75, -0.8, -0.94, -0.11, -0.2, -0.18, 0.0], [0.94, 0.86, 0.93, 0.17, 0.18, 0.34, 1.0]
MASK = [True] * 6 + [False]
_HIDDEN, _LOGITS, _PEER = "from hidden states", "from logits", "SimpleVLA-RL"
_SHAPE = f"[448, {D}, {V}]"
Found = tuple[Tensor, Tensor, Any]  # token ids, log-probs, actions


class Case:
    """Hidden states `[N / 7, 7, D]`, the head's weight, and their logits."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.moved: dict[str, int] = {}  # products and calls take the time
        random = torch.Generator().manual_seed(seed)
        hidden, vocab = shape.hidden or D, shape.vocab
        self.codec = ActionCodec(BINS, vocab - 64, LOW, HIGH, MASK)
        size = shape.rows // 7, 7, hidden
        self.hidden_states = torch.randn(size, generator=random).to(device, dtype)
        weight = torch.randn(vocab, hidden, generator=random) * (2 / hidden**0.5)
        self.weight = weight.to(device, dtype)
        self.logits = linear(self.hidden_states, self.weight)
        self.nbytes = self.hidden_states.nbytes + self.weight.nbytes
        part = self.weight[self.codec.support].double()
        self._truth = torch.log_softmax(linear(self.hidden_states.double(), part) / T, -1)

    def error(self, provider: Provider, result: Any) -> float | None:
        """Of the log-probs of whatever it drew, beside the product in float64; inf where an action
        is not its token's."""
        if provider.role == "reference":
            return None
        ids, log_probs, actions = result
        at = (ids.long() - self.codec.support.start)[..., None]
        expected = self.codec.unnormalize(self.codec.decode(ids, dtype=torch.float64))
        if (torch.as_tensor(actions).cpu() - expected.cpu()).abs().max() > 1e-6:
            return float("inf")
        return (log_probs.double() - self._truth.gather(-1, at)[..., 0]).abs().max().item()


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape: from hidden states, then from logits."""
    codec, x, weight, logits = case.codec, case.hidden_states, case.weight, case.logits
    part = weight[codec.support]

    def ours(name: str, *inputs: Tensor) -> Provider:
        stage = {_LOGITS if len(inputs) == 1 else _HIDDEN: lambda _: drawn(name, *inputs)}
        return Provider(f"logpi {name}", stage, "ours")

    def drawn(name: str, *inputs: Tensor) -> Found:
        found = sample_action_tokens(
            *inputs, codec=codec, temperature=T, seed=1, step=2, backend=name
        )
        return found.token_ids, found.log_probs, found.actions

    def peer(name: str, logits_of: Callable[[], Tensor], of: str = _HIDDEN) -> Provider:
        return Provider(name, {of: lambda _: simple_vla_rl(logits_of(), codec)})

    product = Provider("product of the slice", {_HIDDEN: lambda _: linear(x, part)}, "reference")
    whole = peer(_PEER, lambda: linear(x, weight))
    sliced = peer("its draw on the slice's product", lambda: linear(x, part))
    names = [row.name for row in BACKENDS]
    from_hidden = [product, *(ours(name, x, weight) for name in names), whole, sliced]
    from_logits = [*(ours(name, logits) for name in names), peer(_PEER, lambda: logits, _LOGITS)]
    return [Group(_HIDDEN, "", from_hidden), Group(_LOGITS, "", from_logits)]


def simple_vla_rl(logits: Tensor, codec: ActionCodec) -> Found:
    """What its generate_action_verl does with logits (or with nothing but the slice of them), in
    our words: the log-prob is that of the draw, which it asks of the actor afterwards."""
    if logits.shape[-1] > codec.num_bins:
        logits = logits[..., -codec.num_bins - 64 : -64]
    p = torch.softmax(logits / T, dim=-1)
    flat = p.reshape(-1, p.shape[-1])
    drawn = torch.multinomial(flat, 1)
    log_probs = flat.gather(-1, drawn).log().view(p.shape[:-1])
    ids = drawn.view(p.shape[:-1]) + (codec.vocab_size - codec.num_bins)
    host = ids.cpu().numpy()
    edges = numpy.linspace(-1, 1, codec.num_bins)
    centres = (edges[:-1] + edges[1:]) / 2.0
    actions = centres[numpy.clip(codec.vocab_size - host - 1, 0, len(centres) - 1)]
    low, high = numpy.array(LOW), numpy.array(HIGH)
    stretched = 0.5 * (actions + 1) * (high - low + 1e-8) + low
    return ids, log_probs, numpy.where(numpy.array(MASK), stretched, actions)


TARGETS = {
    "cpu": (
        Target("times SimpleVLA-RL", _SHAPE, (_HIDDEN, ""), "ratio", 50.0, against=_PEER),
        Target("times SimpleVLA-RL", _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_PEER),
    ),
    "cuda": (
        Target("times SimpleVLA-RL", _SHAPE, (_HIDDEN, ""), "ratio", 50.0, against=_PEER),
        Target("times SimpleVLA-RL", _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_PEER),
        Target("µs a call", _SHAPE, (_HIDDEN, ""), "us", 8.0),
    ),
}
