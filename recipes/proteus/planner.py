"""Who plans: a script, a model behind an OpenAI-compatible endpoint, or one of transformers.

Each is a function from (stage, prompt, facts) to a text that holds JSON. A text that holds none is
recorded as such, and the stage goes on with nothing from it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any

Planner = Callable[[str, str, dict[str, Any]], str]


def scripted(stage: str, prompt: str, facts: dict[str, Any]) -> str:
    """Plain rules, offline. They see what a model sees, and no more."""
    if stage == "directions":
        classes = [name for name, levels in facts["classes"].items() if len(levels) == 2]
        found = [{"question": "what foretells survival?", "relation": "predicts_hazard_of",
                  "entity_b": "survival", "test": "cox", "group": []},
                 {"question": "which classes foretell it?", "relation": "predicts_hazard_of",
                  "entity_b": "survival", "test": "log_rank", "group": []}]  # fmt: skip
        for name in classes:
            found.append({"question": f"which numbers differ by {name}?", "relation": "differs_by",
                          "entity_b": f"{name}={facts['classes'][name][-1]}",
                          "test": "t" if facts["rows"] < 500 else "rank_sum",
                          "group": []})  # fmt: skip
        if facts["round"] > 1:  # where the first round found most, look within a class
            found = [{**one, "group": [f"{name}={facts['classes'][name][-1]}"],
                      "question": f"{one['question'][:-1]} within {name}?"}
                     for one in found[:1] for name in classes[:2]]  # fmt: skip
        return json.dumps(found)
    best: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in facts["results"]:  # sorted by p
        h = result["hypothesis"]
        best.setdefault((h["relation"], h["entity_b"], *h["group"]), []).append(
            {**h, "direction": "+" if result["effect"] > 0 else "-"}
        )
    return json.dumps([h for ones in best.values() for h in ones[: facts["each"]]])


def endpoint(url: str, model: str, timeout: float = 120.0) -> Planner:
    """Any OpenAI-compatible server; its key, if it wants one, from OPENAI_API_KEY."""

    def ask(stage: str, prompt: str, facts: dict[str, Any]) -> str:
        body = {"model": model, "temperature": 0,
                "messages": [{"role": "user", "content": prompt}]}  # fmt: skip
        request = urllib.request.Request(
            url.rstrip("/") + "/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json",
             "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    return ask


def local(path: str, max_new_tokens: int = 1024) -> Planner:
    """A causal language model of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)

    def ask(stage: str, prompt: str, facts: dict[str, Any]) -> str:
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return ask
