"""The prompts, and a causal language model small enough to be trained here to answer them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from corpus import EventType, Sentence
from partition import STRATEGIES
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import logpi
from logpi.rewards.events import Event

PAD, EOS, UNKNOWN = "<pad>", "<end>", "<unk>"
Sample = tuple[str, str]  # prompt, answer


def detection_prompt(text: str, names: Iterable[str]) -> str:
    return f"sentence : {text} types : {' ; '.join(names)} events :"


def argument_prompt(text: str, event: Event, roles: Iterable[str]) -> str:
    return (f"sentence : {text} event : {event.type} trigger : {event.trigger} "
            f"roles : {' ; '.join(roles)} arguments :")  # fmt: skip


def naming_prompt(text: str) -> str:
    """What follows is the name of a type in the sentence: recall without descriptions."""
    return f"sentence : {text} type :"


def detection_answer(events: Sequence[Event], names: Iterable[str]) -> str:
    """The events of these types, in the order of the text."""
    wanted = set(names)
    return _json([{"trigger": e.trigger, "type": e.type} for e in events if e.type in wanted])


def argument_answer(event: Event) -> str:
    return _json({argument.role: argument.span for argument in event.arguments})


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token a word, and one a run of punctuation, such as `":"` and `"},{"`.

    Spaces are not kept: the decoder puts one between two tokens, but none beside a quote.
    """
    syntax = ["[]", "{}", '[{"', '":"', '","', '"},{"', '"}]', '{"', '"}', '"']
    prompts = ["sentence", "types", "events", "event", "trigger", "type", "roles", "arguments"]
    text = " ".join([*words, *prompts, *syntax, *":;,."])
    split = pre_tokenizers.WhitespaceSplit()
    by_quote = pre_tokenizers.Split(Regex(r'[\[\]{}":,]*"[\[\]{}":,]*|\[\]|\{\}'), "isolated")
    pre = pre_tokenizers.Sequence([by_quote, split])
    found = dict.fromkeys(piece for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(),
         decoders.Replace(' "', '"'), decoders.Replace('" ', '"'), decoders.Replace('", "', '","')]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS,
                                   unk_token=UNKNOWN, padding_side="left")  # fmt: skip


def build_model(tokenizer: Any, *, hidden_size: int, num_layers: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


class Samples:
    """Draws training samples of the three prompts.

    A detection prompt has one part of a sentence's recalled types, or all of them, by any of the
    strategies: one model then serves all, and an ablation asks it nothing that it has not seen.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        types: Sequence[EventType],
        confidences: Tensor,  # [sentences, types], in logs
        *,
        top_k: int,
        num_parts: int,
        seed: int = 0,
    ) -> None:
        self.sentences, self.types = sentences, types
        self.roles = {one.name: one.roles for one in types}
        top = confidences.topk(min(top_k, len(types)), -1)
        self.top, self.confidences = top.indices.tolist(), top.values.exp().tolist()
        self.num_parts, self.seed = num_parts, seed

    def __call__(self, step: int, count: int) -> list[Sample]:
        """Those of a step, whatever was drawn before. Four steps share a draw by length: half of a
        batch of mixed lengths would be padding."""
        group, part = divmod(step, 4)
        draw = random.Random(f"{self.seed}/samples/{group}")
        drawn = [self._sample(draw.randrange(len(self.sentences)), draw) for _ in range(4 * count)]
        drawn.sort(key=lambda sample: len(sample[0].split()))
        return drawn[part * count : (part + 1) * count]

    def _sample(self, row: int, draw: random.Random) -> Sample:
        one = self.sentences[row]
        chance = draw.random()
        if one.events and chance < 0.2:
            event = draw.choice(one.events)
            assert event.type is not None
            return argument_prompt(one.text, event, self.roles[event.type]), argument_answer(event)
        if one.events and chance < 0.3:
            return naming_prompt(one.text), str(draw.choice(one.events).type)
        names = self._candidates(row, draw)
        return detection_prompt(one.text, names), detection_answer(one.events, names)

    def _candidates(self, row: int, draw: random.Random) -> list[str]:
        one = self.sentences[row]
        names = [self.types[i].name for i in self.top[row]]
        chance = draw.random()
        if chance < 0.1:  # as without recall
            return [t.name for t in draw.sample(self.types, max(1, len(names) // self.num_parts))]
        if chance < 0.25:  # as without partition
            return names
        strategy = STRATEGIES[draw.choice(sorted(STRATEGIES))]
        parts = strategy(self.confidences[row], self.num_parts, draw.randrange(1 << 30))
        golds = {event.type for event in one.events}
        full = [part for part in parts if any(names[i] in golds for i in part)]
        # Most parts have no event: half of the prompts are drawn from those that do.
        part = draw.choice(full if full and draw.random() < 0.5 else parts)
        return [names[i] for i in part]


def train(
    model: Qwen2ForCausalLM,
    tokenizer: Any,
    samples: Callable[[int, int], list[Sample]],  # of a step, so many
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    prompt_weight: float = 0.5,
    checkpoint: Path,
    save_every: int = 200,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, float]:
    """Maximises log p(answer | prompt) of the drawn samples; goes on from `checkpoint`.

    The prompts count too, by `prompt_weight`: a model without pretraining learns its words there.

    Returns:
        The "seconds" and the "cpu" seconds it took, those before an interrupt included.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    done, before = 0, {"seconds": 0.0, "cpu": 0.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in zip((model, optimizer, schedule), saved["states"], strict=True):
            part.load_state_dict(state)
        done, before = saved["done"], saved["times"]
    wall, cpu = time.perf_counter(), time.process_time()

    def times() -> dict[str, float]:
        return {"seconds": before["seconds"] + time.perf_counter() - wall,
                "cpu": before["cpu"] + time.process_time() - cpu}  # fmt: skip

    model.train()
    for step in range(done, steps):
        ids, answer = _encode(tokenizer, samples(step, batch_size))
        real = ids != tokenizer.pad_token_id
        hidden = model.model(ids, attention_mask=real)[0]
        found = logpi.linear_log_probs(hidden[:, :-1], model.lm_head.weight, ids[:, 1:],
                                       loss_mask=real[:, 1:])  # fmt: skip
        of_prompts = real[:, 1:] & ~answer[:, 1:]
        loss = -(found.log_probs * answer[:, 1:]).sum() / answer.sum()
        of_prompt = -(found.log_probs * of_prompts).sum() / of_prompts.sum()
        optimizer.zero_grad()
        (loss + prompt_weight * of_prompt).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
        if (step + 1) % save_every == 0:
            states = [part.state_dict() for part in (model, optimizer, schedule)]
            partial = checkpoint.with_suffix(".partial")
            torch.save({"states": states, "done": step + 1, "times": times()}, partial)
            partial.replace(checkpoint)  # whole, or not at all
    model.eval()
    return times()


def _encode(tokenizer: Any, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Right-padded `[B, T]` ids, and a bool mask that is True on the answer and the end token."""
    prompts = tokenizer([prompt for prompt, _ in samples])["input_ids"]
    answers = tokenizer([answer for _, answer in samples])["input_ids"]
    rows = [p + a + [tokenizer.eos_token_id] for p, a in zip(prompts, answers, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    wanted = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, len(prompt) : len(row)] = True
    return ids, wanted


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = 48,
             batch_size: int = 128) -> list[str]:  # fmt: skip
    """The most likely answer to each prompt, of any transformers model."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].split()))
    answers = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        told = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True)
        output = model.generate(input_ids=told["input_ids"], attention_mask=told["attention_mask"],
                                max_new_tokens=max_new_tokens, do_sample=False)  # fmt: skip
        texts = tokenizer.batch_decode(output[:, told["input_ids"].shape[1] :],
                                       skip_special_tokens=True)  # fmt: skip
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text
    return answers
