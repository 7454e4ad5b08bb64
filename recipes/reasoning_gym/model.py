"""A tokenizer and a causal language model small enough for a laptop, and their warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tasks import Entry, Task, prompt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

import logpi

PAD, EOS = "<|pad|>", "<|end|>"


def build_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, *, pieces: str | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which the phrases of the questions merge and every digit stays alone, or
    whatever the regular expression `pieces` finds stays apart from what is around it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated")
            if pieces
            else pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left"
    )


def build_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    num_layers: int,
    vocab_size: int,
    convolutions: bool = False,
) -> Qwen2ForCausalLM | Lfm2ForCausalLM:
    """A Qwen2 with random weights. `vocab_size` may exceed the tokenizer's: README.md says why.

    `convolutions`: an LFM2, whose layers are in turn short convolutions and attention. A
    convolution shows each token the two before it, which is half of what copying takes.
    """
    if vocab_size < len(tokenizer):
        raise ValueError(
            f"vocab_size: expected at least the tokenizer's {len(tokenizer)}, got {vocab_size}"
        )
    told: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if not convolutions:
        return Qwen2ForCausalLM(Qwen2Config(**told))
    kinds = [("conv", "full_attention")[layer % 2] for layer in range(num_layers)]
    return Lfm2ForCausalLM(Lfm2Config(**told, layer_types=kinds, block_auto_adjust_ff_dim=False))


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[Entry],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Maximises log p(answer | question) for `steps` batches."""
    if batch_size > len(entries):
        raise ValueError(f"batch_size: expected at most {len(entries)} entries, got {batch_size}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # ends near 0: what GRPO gains is not cooling
        optimizer, max_lr=learning_rate, total_steps=steps
    )
    ids, answer_mask = encode(tokenizer, entries)
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(ids))])
        rows, order = order[:batch_size], order[batch_size:]
        loss = answer_loss(model, tokenizer, ids[rows], answer_mask[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(loss.item())


def make_warm(
    folder: Path,
    entries: Sequence[Entry],
    *,
    seed: int,
    hidden_size: int,
    num_layers: int,
    vocab_size: int,
    pieces: str | None = None,
    **told: Any,
) -> None:
    """Saves in `folder` a new model that `warm_up` taught the entries, and their tokenizer, which
    keeps what `pieces` finds in a question or an answer apart."""
    set_seed(seed)
    if pieces is None:
        tokenizer = build_tokenizer(prompt(e) + e["answer"] for e in entries)
    else:
        texts = (text for e in entries for text in (prompt(e), e["answer"]))
        tokenizer = build_tokenizer(texts, pieces=pieces)
    model = build_model(
        tokenizer, hidden_size=hidden_size, num_layers=num_layers, vocab_size=vocab_size
    )
    warm_up(model, tokenizer, entries, **told)
    save(model, tokenizer, folder)


def answer_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, answer_mask: Tensor
) -> Tensor:
    """The mean of -log p of the tokens in `answer_mask`; both as `encode` returns them."""
    hidden = model.model(ids, attention_mask=ids != tokenizer.pad_token_id)[0]
    wanted = answer_mask[:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted])
    return -logpi.token_log_probs(logits, ids[:, 1:][wanted]).log_probs.mean()


def encode(tokenizer: PreTrainedTokenizerBase, entries: Sequence[Entry]) -> tuple[Tensor, Tensor]:
    """Left-padded `[B, T]` ids, and a bool mask that is True on the answer and the end token."""
    prompts = tokenizer([prompt(entry) for entry in entries])["input_ids"]
    answers = tokenizer([entry["answer"] + EOS for entry in entries])["input_ids"]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(entries), length), tokenizer.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, length - len(p) - len(a) :] = torch.tensor(p + a)
        mask[row, length - len(a) :] = True
    return ids, mask


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[Entry],
    *,
    max_new_tokens: int,
    samples: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The most likely completion of each entry, or `samples` of each at temperature 1.

    Returns:
        ids `[B * samples, T]` with the prompts in front, and the mask `[B, P]` of the prompts.
    """
    how: dict[str, Any] = {"do_sample": False}
    if samples is not None:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        how["num_return_sequences"] = samples
    was_training = model.training
    model.eval()
    inputs = tokenizer([prompt(e) for e in entries], return_tensors="pt", padding=True)
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        **how,
    )
    model.train(was_training)
    return ids, inputs["attention_mask"]


def greedy_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    entries: Sequence[Entry],
    *,
    max_new_tokens: int,
) -> float:
    """The fraction of entries whose most likely completion the task's verifier scores 1.0."""
    ids, mask = complete(model, tokenizer, entries, max_new_tokens=max_new_tokens)
    texts = tokenizer.batch_decode(ids[:, mask.shape[1] :], skip_special_tokens=True)
    scores = [task.score(text, entry) for text, entry in zip(texts, entries, strict=True)]
    return sum(score == 1.0 for score in scores) / len(scores)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Written beside its place and renamed, so that an interrupt leaves all of it or nothing."""
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What `save` wrote."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # AutoTokenizer would go by the model and build the tokenizer of Qwen2.
    return model, PreTrainedTokenizerFast.from_pretrained(folder)
