"""Random and adversarial texts that a reward has to survive."""

from __future__ import annotations

import random
from collections.abc import Iterator

PARTS = [
    "\\boxed{", "}", "{", "\\{", "\\frac{", "\\frac12", "\\sqrt{", "\\text{", "$", "\\(", "\\left(",
    "<think>", "</think>", "<search>", "</search>", "<information>", "</information>", "<answer>",
    "</answer>", "<", ">", "</", "answer is ", "Answer: ", "答案是", "1/0", "0.5", "-", "1e999",
    "9^{9^{9}}", "1000000!", "x", "=", ",", "(", ")", "[", "]", "and", " or ", "\n", " ", "\t",
    "\\", "\x00", "\ud800", "\u202e", "é", "東京", "🙂", "٣", "²", "½", "∞", "−", "%", "100%",
    "1,000", "'", '"',
    "import os", "__", "lambda: 0", "1" * 50, "a" * 40, "\\begin{pmatrix}1&2\\end{pmatrix}", "NaN",
    "inf", "\\infty", "\\int_0^1", "\\sum_{i=1}^{n}", "^", "_", "!", "|", "~", ";", "**",
    "12 inches", "```json\n", "```", '[{"trigger": "a", ', '"type": "B", ', '"type": 3}', "}, {",
    ":", "null", '"arguments": [{"text": "c", "role": "d"}]}', '{"events": [', "[[1, 2]]",
    '"a": "\\', '{"trigger": [0, 3], "event_type": "\\ud800", "args": {"e": ["f", [1, 4]]}}',
    "-Infinity", "1" * 5000,
]  # fmt: skip


def random_texts(count: int, seed: int) -> Iterator[str]:
    """Mixtures of what the parsers look for, well-formed shells around them, and any characters."""
    draw = random.Random(seed)
    for _ in range(count):
        body = "".join(draw.choices(PARTS, k=draw.randint(0, 12)))
        shape = draw.random()
        if shape < 0.3:
            body = f"\\boxed{{{body}}}"
        elif shape < 0.5:
            body = f"<think>{body}</think><answer>{body}</answer>"
        elif shape < 0.6:
            body += "".join(chr(draw.randrange(0x110000)) for _ in range(8))
        yield body


def large_texts(size: int) -> dict[str, str]:
    """One part over and over, and nestings: what makes a careless pattern quadratic."""
    texts = {f"{part!r:.16} repeated": part * (size // len(part)) for part in PARTS}
    for opening, closing in (("{", "}"), ("\\boxed{", "}"), ("(", ")"), ("<think>", "</think>"),
                             ("[", "]"), ('{"a":', "}"), ('[{"arguments":', "}]")):  # fmt: skip
        depth = size // (len(opening) + len(closing))
        texts[f"{opening} nested"] = opening * depth + "5" + closing * depth
    texts["block after block"] = "<search>a</search><information>b</information>" * (size // 48)
    texts["searches without an end"] = "<search>a</search>" * (size // 18) + "<information>"
    texts["digits with dots"] = "1." * (size // 2)
    texts["boxes one after the other"] = "\\boxed{5} " * (size // 10)
    return texts
