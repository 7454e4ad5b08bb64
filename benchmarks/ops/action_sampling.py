"""sample_action_tokens beside the rollout of SimpleVLA-RL: its head, its draw, its numpy.

A shape is [rows, D, V]; 56 rows are one chunk of a robot (8 steps of 7 numbers). SimpleVLA-RL
multiplies the whole head, takes the 256 columns of the action tokens, divides by T = 1.6, draws by
multinomial, copies the ids to the host and turns them to actions there, in numpy. That is the peer
of the targets, and gives no log-probs. Its worker asks the actor for those before the rollout's
batch leaves it, which is a second forward: here it gets the logits of the first. Ours give tokens,
log-probs and actions in one call. Logits are in the dtype of the hidden states.
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
_HIDDEN, _LOGITS = "from hidden states", "from logits"
_PEER, _WITH = "SimpleVLA-RL", "SimpleVLA-RL, with its actor's log-probs"
_SHAPE = f"[448, {D}, {V}]"
EDGES = numpy.linspace(-1, 1, BINS)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2.0
Found = tuple[Tensor, Tensor | None, Any]  # token ids, log-probs, actions


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
        if log_probs is None:
            return None
        return (log_probs.double() - self._truth.gather(-1, at)[..., 0]).abs().max().item()


def groups(case: Case) -> list[Group]:
    """What takes turns, for one shape: from hidden states; from logits, cold and warm."""
    codec, x, weight, logits = case.codec, case.hidden_states, case.weight, case.logits
    part, kept = weight[codec.support], logits[..., codec.support].clone()

    def drawn(name: str, *inputs: Tensor) -> Found:
        found = sample_action_tokens(
            *inputs, codec=codec, temperature=T, seed=1, step=2, backend=name
        )
        return found.token_ids, found.log_probs, found.actions

    def ours(name: str, *inputs: Tensor) -> Provider:
        stage = {_LOGITS if len(inputs) == 1 else _HIDDEN: lambda _: drawn(name, *inputs)}
        return Provider(f"logpi {name}", stage, "ours")

    def peers(of: str, logits_of: Callable[[], Tensor]) -> list[Provider]:
        return [
            Provider(_PEER, {of: lambda _: its_rollout(logits_of(), codec)}),
            Provider(_WITH, {of: lambda _: its_rollout(logits_of(), codec, log_probs=True)}),
        ]

    names = [row.name for row in BACKENDS]
    sliced = Provider(
        "its draw on the slice's product", {_HIDDEN: lambda _: its_rollout(linear(x, part), codec)}
    )
    from_hidden = [
        Provider("product of the slice", {_HIDDEN: lambda _: linear(x, part)}, "reference"),
        *(ours(name, x, weight) for name in names),
        *peers(_HIDDEN, lambda: linear(x, weight)),
        sliced,
    ]
    copy = {_LOGITS: lambda _: kept.copy_(logits[..., codec.support])}
    from_logits = [
        Provider("copy of the slice", copy, "reference"),
        *(ours(name, logits) for name in names),
        Provider("logpi, one action of 7", {_LOGITS: lambda _: drawn("auto", logits[:1])}, "ours"),
        *peers(_LOGITS, lambda: logits),
    ]
    group = Group(_LOGITS, "", from_logits)
    return [Group(_HIDDEN, "", from_hidden), group, group.warm()]


def its_rollout(logits: Tensor, codec: ActionCodec, log_probs: bool = False) -> Found:
    """What its generate_action_verl does with logits (or with nothing but the slice of them), in
    our words, and if asked what its actor adds. Softmaxes are in float32, as autocast has them."""
    if logits.shape[-1] > codec.num_bins:
        logits = logits[..., -codec.num_bins - 64 : -64]
    p = torch.softmax(logits / T, dim=-1, dtype=torch.float32)
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), num_samples=1)
    ids = (drawn + (codec.vocab_size - codec.num_bins)).view(p.shape[:-1])
    host = ids.cpu().numpy()
    actions = CENTRES[numpy.clip(codec.vocab_size - host - 1, 0, len(CENTRES) - 1)]
    low, high = numpy.array(LOW), numpy.array(HIGH)
    stretched = 0.5 * (actions + 1) * (high - low + 1e-8) + low
    actions = numpy.where(numpy.array(MASK), stretched, actions)
    return ids, its_actor(logits, ids, codec) if log_probs else None, actions


def its_actor(sliced: Tensor, ids: Tensor, codec: ActionCodec) -> Tensor:
    """Its actor's pass over the same logits: log-probs, and the entropy, which it always makes."""
    z = sliced.div(T)
    log_p = torch.log_softmax(z, dim=-1, dtype=torch.float32)
    at = (ids - (codec.vocab_size - codec.num_bins)).unsqueeze(-1)
    log_probs = log_p.gather(-1, at).squeeze(-1)
    p = torch.softmax(z, dim=-1, dtype=torch.float32)
    torch.logsumexp(z, dim=-1) - (p * z).sum(-1)
    return log_probs


_TIMES, _MORE = f"times {_PEER}", "times the same with log-probs"
_RATIOS = (
    Target(_TIMES, _SHAPE, (_HIDDEN, ""), "ratio", 50.0, against=_PEER),
    Target(_TIMES, _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_PEER),
    Target(_TIMES, _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_PEER, caches="warm"),
    Target(_MORE, _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_WITH),
    Target(_MORE, _SHAPE, (_LOGITS, ""), "ratio", 20.0, against=_WITH, caches="warm"),
)
TARGETS = {
    "cpu": _RATIOS,
    "cuda": (*_RATIOS, Target("µs a call", _SHAPE, (_HIDDEN, ""), "us", 8.0)),
}
