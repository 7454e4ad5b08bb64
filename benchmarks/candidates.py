"""`candidate_log_probs` beside the loops it replaces: `python benchmarks/candidates.py [shape]`.

3,465 names of one to a dozen tokens behind one prompt, a model with random weights. The loops make
logits for the candidate's tokens alone (`logits_to_keep`). The slow ones score a sample of the
names; all take turns, and times are by the name. Wall clock, the best of the rounds.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is first

from logpi.integrations.transformers import candidate_log_probs

NAMES = 3_465  # the event types of LLM-PEE (arXiv:2503.02628)
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "small": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768,
              "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2.5-0.5b": {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                     "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
}  # fmt: skip


def model_of(shape: str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=1024)
    return Qwen2ForCausalLM(config).eval()


def names(count: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Names that differ, of one to four words and a token that ends them; words are of one to three
    tokens, and a few of them are frequent (Zipf), as in an ontology."""
    draw = random.Random(seed)
    lengths = draw.choices((1, 2, 3), (6, 3, 1), k=2000)
    words = [[draw.randrange(3, vocab_size) for _ in range(length)] for length in lengths]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        (size,) = draw.choices((1, 2, 3, 4), (25, 50, 20, 5))
        found[(*chain(*draw.choices(words, weights, k=size)), 2)] = None
    return [list(name) for name in found]


@torch.no_grad()
def one_by_one(model: Any, prompt: Sequence[int], candidates: Sequence[list[int]]) -> Tensor:
    """The plain way: prompt and candidate through the model, a log-softmax, a sum."""
    sums = []
    for one in candidates:
        logits = model(torch.tensor([[*prompt, *one]]), logits_to_keep=len(one) + 1).logits[0, :-1]
        log_probs = logits.log_softmax(-1)
        sums.append(log_probs.gather(-1, torch.tensor(one)[:, None]).sum())
    return torch.stack(sums)


@torch.no_grad()
def in_batches(
    model: Any, prompt: Sequence[int], candidates: Sequence[list[int]], size: int = 32
) -> Tensor:
    """The same, padded, `size` at a time, of similar lengths."""
    order = sorted(range(len(candidates)), key=lambda i: len(candidates[i]))
    sums = torch.empty(len(candidates))
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        longest = len(candidates[some[-1]])
        tails = torch.zeros(len(some), longest, dtype=torch.long)
        mask = torch.zeros(len(some), longest)
        for row, i in enumerate(some):
            tails[row, : len(candidates[i])] = torch.tensor(candidates[i])
            mask[row, : len(candidates[i])] = 1
        ids = torch.cat((torch.tensor(prompt).expand(len(some), -1), tails), 1)
        logits = model(ids, logits_to_keep=longest + 1).logits[:, :-1]
        log_probs = logits.log_softmax(-1).gather(-1, tails[:, :, None])[:, :, 0]
        sums[some] = (log_probs * mask).sum(1)
    return sums


def seconds_a_name(
    calls: dict[str, tuple[int, Callable[[], object]]], rounds: int
) -> dict[str, float]:
    """The shortest of each call by the names it scores, in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, (count, call) in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], (time.perf_counter() - start) / count)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="small")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of the prompt")
    parser.add_argument("--names", type=int, default=NAMES)
    parser.add_argument("--sample", type=int, default=400, help="names that the loops score")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = model_of(options.shape)
    vocab_size = SHAPES[options.shape]["vocab_size"]
    draw = random.Random(1)
    prompt = [draw.randrange(3, vocab_size) for _ in range(options.prompt)]
    listed = names(options.names, vocab_size)
    some = random.Random(2).sample(listed, min(options.sample, len(listed)))
    prefixes = {tuple(name[:n]) for name in listed for n in range(1, len(name))}
    tokens = sum(map(len, listed))
    print(f"{options.shape}, prompt of {len(prompt)}, {len(listed)} names of {tokens} tokens, "
          f"{len(prefixes)} prefixes in the tree; {torch.get_num_threads()} threads")  # fmt: skip
    candidate_log_probs(model, prompt, listed[:50])  # its check is of the first call alone
    ours = "candidate_log_probs"
    best = seconds_a_name(
        {
            "one by one": (len(some), lambda: one_by_one(model, prompt, some)),
            "in padded batches of 32": (len(some), lambda: in_batches(model, prompt, some)),
            ours: (len(listed), lambda: candidate_log_probs(model, prompt, listed)),
        },
        options.rounds,
    )
    for name, seconds in best.items():
        print(f"{name:<26}{1e3 * seconds:>9.3f} ms a name{seconds / best[ours]:>9.1f}x")


if __name__ == "__main__":
    main()
