"""Log-probs of thousands of candidates behind one prompt, through a transformers model.

The candidates are one tree of tokens. Its nodes are packed into a few sequences behind the cached
prompt, each node at the position of its depth, seeing the prompt and the nodes above it: no token
is computed twice, and none is padding.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from logpi.core import checks
from logpi.core.backends import AUTO
from logpi.integrations._model_head import causal_lm, head_of, run_to_head
from logpi.ops.linear_log_probs import linear_log_probs

_IDS_PER_ROW = 64  # of the head: a node with more children takes several rows
# Up to how many tokens a model's packed hidden states were seen to be those of a sequence alone.
_CHECKED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


class CandidateLogProbs(NamedTuple):
    """What a model gives each candidate behind a prompt.

    Attributes:
        log_probs: `[C]`, the sum over the candidate's tokens.
        mean_log_probs: `[C]`, the same by its number of tokens.
    """

    log_probs: Tensor
    mean_log_probs: Tensor


@torch.no_grad()
def candidate_log_probs(
    model: Any,
    prompt: str | Sequence[int] | Tensor,  # [P]
    candidates: Sequence[str | Sequence[int] | Tensor],  # C of them, of any lengths
    *,
    tokenizer: Any = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    batch_tokens: int = 512,
    logits_dtype: torch.dtype | None = None,
    workspace_bytes: int | None = None,
    backend: str = AUTO,
) -> CandidateLogProbs:
    """log p(candidate | prompt) of each candidate, such as all the names of an ontology.

        log_probs[c] = sum_t log p(c_t | prompt, c_1 .. c_{t - 1})

    The prompt goes through the model once. Of the candidates each distinct prefix does that has a
    token behind it, once; their first tokens need none but the prompt's. All of their tokens are
    scored by `linear_log_probs`.

    Candidates that end with the same token (a line's end, the end of the text) exclude each other,
    and their probabilities sum to at most 1. Without one, a name has its own prefix's mass too.

    Args:
        model: as in `log_probs`, in evaluation mode, whose attention is "sdpa" or "eager". Layers
            with a sliding window are served.
        prompt: its ids `[P]`, or a text.
        candidates: their ids, or texts. Equal ones are scored once.
        tokenizer: of transformers, for texts. Prompt and candidates are tokenized apart; the
            candidates without special tokens.
        temperature: divides the logits.
        vocab_size: as in `linear_log_probs`.
        batch_tokens: how many prefixes a forward takes at most, beside the ancestors of the first.
        logits_dtype, workspace_bytes, backend: as in `log_probs`.

    Returns:
        `CandidateLogProbs` of `[C]` float32 (float64 for a float64 model), without gradient.

    Raises:
        ValueError: an empty prompt or candidate, an id outside of the vocabulary, more positions
            than the model has, another attention, a chunked one that is too short, training mode.
        TypeError: a model without position ids, or with a state other than keys and values (such as
            Mamba's).
        RuntimeError: a model that reads a packed sequence otherwise than its parts (checked by one
            forward of a prompt and a candidate, for a model and the most tokens so far).

    Memory: keys and values of P + batch_tokens tokens, a mask `[batch_tokens, P + batch_tokens]`,
        one forward of batch_tokens tokens, and the workspace of `linear_log_probs`.
    Work: P tokens and one for each distinct proper prefix through the model's body; of the head a
        row for each of these prefixes and for the prompt.
    Source: docs/integrations.md.
    """
    inner = causal_lm(model)
    head = head_of(inner)
    prompt_ids = _ids("prompt", prompt, tokenizer, len(head.weight), special=True)
    listed = [
        tuple(_ids(f"candidates[{i}]", one, tokenizer, len(head.weight), special=False))
        for i, one in enumerate(_list(candidates))
    ]
    checks.at_least("batch_tokens", batch_tokens, 1)
    tree = _Tree(listed)
    body = _Body(model, inner, prompt_ids, max(map(len, listed)) - 1)

    device = head.weight.device
    dtype = torch.promote_types(body.prompt_hidden_states.dtype, torch.float32)
    edges = torch.empty(len(tree.tokens), dtype=dtype, device=device)

    def score(hidden_states: Tensor, nodes: Sequence[int]) -> None:
        """The edges below some nodes, whose `hidden_states [n, D]` are."""
        below = [
            (row, tree.children[node][begin : begin + _IDS_PER_ROW])
            for row, node in enumerate(nodes)
            for begin in range(0, len(tree.children[node]), _IDS_PER_ROW)
        ]
        width = max(len(some) for _, some in below)
        children = torch.tensor([some + [-1] * (width - len(some)) for _, some in below])
        real = children >= 0
        rows = torch.tensor([row for row, _ in below], device=hidden_states.device)
        scored = linear_log_probs(
            hidden_states.index_select(0, rows).to(device),
            head.weight,
            tree.tokens[children].where(real, 0).to(device),
            bias=head.bias,
            temperature=temperature,
            vocab_size=vocab_size,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
            workspace_bytes=workspace_bytes,
            logits_dtype=logits_dtype or body.autocast_dtype,
            backend=backend,
        ).log_probs
        edges[children[real].to(device)] = scored[real.to(device)]

    score(body.prompt_hidden_states, [-1])
    for above, nodes in tree.batches(batch_tokens):
        score(body.hidden_states(tree, above + nodes)[len(above) :], nodes)
    total = tree.sums_from_the_root(edges)
    log_probs = total[torch.tensor([tree.end[one] for one in listed], device=device)]
    lengths = torch.tensor([len(one) for one in listed], device=device)
    return CandidateLogProbs(log_probs, log_probs / lengths)


class _Tree:
    """The distinct prefixes of the candidates as nodes, in preorder. The prompt is node -1."""

    def __init__(self, candidates: Sequence[tuple[int, ...]]) -> None:
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        past: list[int] = []
        self.children: dict[int, list[int]] = {-1: []}
        self.end: dict[tuple[int, ...], int] = {}  # the last node of a candidate
        path: list[int] = []
        before: tuple[int, ...] = ()
        for one in sorted(set(candidates)):
            same = 0
            while same < len(before) and before[same] == one[same]:
                same += 1  # `one` is no prefix of `before`, which sorts first
            for node in path[same:]:
                past[node] = len(tokens)
            del path[same:]
            for token in one[same:]:
                node, parent = len(tokens), path[-1] if path else -1
                tokens.append(token)
                parents.append(parent)
                depths.append(len(path))
                past.append(0)
                self.children[parent].append(node)
                self.children[node] = []
                path.append(node)
            self.end[one], before = path[-1], one
        for node in path:
            past[node] = len(tokens)
        self.tokens = torch.tensor(tokens)
        self.parents = torch.tensor(parents)
        self.depths = torch.tensor(depths)  # 0 right behind the prompt
        self.past = torch.tensor(past)  # the first node that is not below this one

    def batches(self, size: int) -> Iterator[tuple[list[int], list[int]]]:
        """Nodes with others below them, `size` at a time, and those above the first of them. In
        preorder whatever else is above one of them is among them."""
        inner = [node for node in range(len(self.tokens)) if self.children[node]]
        for begin in range(0, len(inner), size):
            nodes = inner[begin : begin + size]
            yield self.path(nodes[0])[:-1], nodes

    def path(self, node: int) -> list[int]:
        """From a first token to the node."""
        found = []
        while node >= 0:
            found.append(node)
            node = int(self.parents[node])
        return found[::-1]

    def sums_from_the_root(self, edges: Tensor) -> Tensor:
        """Of each node, the sum of `edges [nodes]` on its path."""
        total = edges.clone()
        for depth in range(1, int(self.depths.max()) + 1):
            nodes = (self.depths == depth).nonzero()[:, 0]
            total[nodes.to(edges.device)] += total[self.parents[nodes].to(edges.device)]
        return total


class _Body:
    """A model behind a prompt that it has read."""

    def __init__(self, model: Any, inner: Any, prompt: list[int], most_behind: int) -> None:
        from transformers import DynamicCache

        self.model, self.inner, self.prompt = model, inner, prompt
        self.name = type(inner).__name__
        self._refuse(len(prompt) + most_behind)
        parameters = inspect.signature(inner.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._options = (
            {"output_router_logits": False} if "output_router_logits" in parameters else {}
        )
        self.device = inner.get_input_embeddings().weight.device
        self.cache = (
            DynamicCache()
        )  # layers with a window keep all, too: the mask says what is seen
        hidden_states = self._run(torch.tensor([prompt], device=self.device), {})
        self.prompt_hidden_states = hidden_states[-1:]
        if len(self.cache) == 0 or self.cache.get_seq_length() != len(prompt):
            raise TypeError(f"model: expected {self.name} to keep the prompt's keys and values")

    def _refuse(self, length: int) -> None:
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        config = self.inner.config
        if self.inner.training:
            raise ValueError(f"model: expected {self.name} in evaluation mode, got training mode")
        if "position_ids" not in inspect.signature(self.inner.forward).parameters:
            raise TypeError(f"model: expected one with position_ids, got {self.name}")
        attention = config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"model: expected attention 'sdpa' or 'eager', which take a mask, got {attention!r}"
            )
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(
                f"candidates: expected at most {most} tokens with the prompt, the positions of "
                f"{self.name}, got {length}"
            )
        windows = []
        for layer in DynamicCache(config=config).layers:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise TypeError(
                    f"model: expected layers that keep keys and values of each token, got "
                    f"{type(layer).__name__} in {self.name}"
                )
            window = getattr(layer, "sliding_window", None)
            windows.append(window if window is not None and window < length else None)
        kinds = getattr(config.get_text_config(), "layer_types", None) or [None] * len(windows)
        self.windows = dict(zip(kinds, windows, strict=True))
        known = self.windows.keys() <= {None, "full_attention", "sliding_attention"}
        if not known and any(windows):
            raise ValueError(
                f"candidates: expected at most {min(filter(None, windows))} tokens with the "
                f"prompt, as {self.name} has {', '.join(map(str, self.windows))}, got {length}"
            )

    def _run(self, input_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """`[n, D]`; the cache is longer by as much."""
        inputs = {self._cache_argument: self.cache, "use_cache": True, **inputs, **self._options}
        run = run_to_head(self.model, input_ids=input_ids, **inputs)
        self.autocast_dtype = run.autocast_dtype
        return run.hidden_states[0]

    def hidden_states(self, tree: _Tree, nodes: list[int]) -> Tensor:
        """`[n, D]` of nodes in preorder, all of whose ancestors are among them."""
        index = torch.tensor(nodes)
        positions = len(self.prompt) + tree.depths[index]
        found = self._run(
            tree.tokens[index][None].to(self.device),
            {
                "attention_mask": self._mask(index, tree.past[index], positions),
                "position_ids": positions[None].to(self.device),
            },
        )
        self.cache.crop(-len(nodes))
        length = len(self.prompt) + len(nodes)
        if length > _CHECKED.get(self.inner, 0):
            self._check(found[-1], tree.tokens[tree.path(nodes[-1])].tolist())
            _CHECKED[self.inner] = length
        return found

    def _mask(self, index: Tensor, past: Tensor, positions: Tensor) -> Any:
        """`[1, 1, n, P + n]`: a node sees the prompt and those above it, within its window; by
        kind of layer, where windows differ."""
        above = (index <= index[:, None]) & (index[:, None] < past)
        seen = torch.cat((above.new_ones(len(index), len(self.prompt)), above), 1)
        distance = positions[:, None] - torch.cat((torch.arange(len(self.prompt)), positions))

        def of(window: int | None) -> Tensor:
            mask = seen if window is None else seen & (distance < window)
            mask = mask[None, None].to(self.device)
            if self.inner.config._attn_implementation == "eager":  # it adds it
                least = torch.finfo(self.inner.dtype).min
                mask = torch.zeros_like(mask, dtype=self.inner.dtype).masked_fill(~mask, least)
            return mask

        if len({*self.windows.values()}) == 1:
            return of(next(iter(self.windows.values())))
        return {kind: of(window) for kind, window in self.windows.items()}

    def _check(self, packed: Tensor, tokens: list[int]) -> None:
        """That a node has among others what it has alone: none is scored wrong in silence."""
        ids = torch.tensor([self.prompt + tokens], device=self.device)
        run = run_to_head(self.model, input_ids=ids, use_cache=False, **self._options)
        alone = run.hidden_states[0, -1].float()
        error = (packed.float() - alone).norm() / alone.norm()
        if error > torch.finfo(self.autocast_dtype or packed.dtype).eps ** 0.5:
            raise RuntimeError(
                f"{self.name}: its hidden states behind a mask and positions of ours differ by "
                f"{error:.1e} from those of the sequence alone; score its candidates by log_probs"
            )


def _list(candidates: Any) -> Sequence[Any]:
    if isinstance(candidates, (str, bytes)) or not hasattr(candidates, "__len__"):
        raise TypeError(
            f"candidates: expected a list of texts or of ids, got {type(candidates).__name__}"
        )
    if len(candidates) == 0:
        raise ValueError("candidates: expected at least one, got none")
    return candidates  # type: ignore[no-any-return]


def _ids(name: str, value: Any, tokenizer: Any, vocab_size: int, special: bool) -> list[int]:
    if isinstance(value, str):
        if tokenizer is None:
            raise ValueError(f"tokenizer: expected one for the text of {name}, got None")
        value = tokenizer(value, add_special_tokens=special)["input_ids"]
    ids = value.tolist() if isinstance(value, Tensor) else list(value)
    if not ids:
        raise ValueError(f"{name}: expected at least one token, got none")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise TypeError(f"{name}: expected ids as ints, got {type(token).__name__}")
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: expected ids in [0, {vocab_size}), got {token}")
    return ids
