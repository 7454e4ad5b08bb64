"""A model and a tokenizer small enough for TRL's trainers to take a few steps in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = "0123456789abcdefghijklmnopqrstuvwxyz+-=*"


def tiny_model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            bos_token_id=None,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def save_tiny(folder: Path) -> None:
    """A model and a one-character tokenizer: with beta > 0 TRL loads the reference by path."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {word: i for i, word in enumerate(WORDS, start=len(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    tiny_model().save_pretrained(folder)
