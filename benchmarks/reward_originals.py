"""The originals' reward algorithms, transcribed for tests and timing; their defects are theirs.

TTRL (PRIME-RL/TTRL 3e2cc93) without its unit tables and its LaTeX-to-text step, which leaves it
faster than it is. SSRL (TsinghuaC3I/SSRL 3009f21).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

# ---- TTRL ---------------------------------------------------------------------------------------


def ttrl_extract(text: str) -> str:
    """Always a string: "" where nothing is found."""
    if "final answer is $" in text and "$. I hope" in text:
        answer = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0]
    elif "boxed" in text:
        answer = _inside(text.split("boxed")[-1])
    elif "he answer is" in text:
        answer = text.split("he answer is")[-1]
    elif "答案是" in text:
        answer = text.split("答案是")[1].strip().split("\n\n")[0]
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
        answer = numbers[-1] if numbers else ""
    return _ttrl_normalized(re.sub(r"\n\s*", "", answer.strip()).strip(":").rstrip("./"))


def _inside(rest: str) -> str:
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth, kept = 1, ""
    for character in rest[1:]:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            break
        kept += character
    return kept


def _ttrl_normalized(text: str) -> str:
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = text.replace("\\left", "").replace("\\right", "")
    text = text.replace("\\{", "{").replace("\\}", "}")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "")
    text = text.replace("\\$", "").replace("$", "").replace("\\(", "").replace("\\)", "")
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for name in ("x=", "y=", "z="):
        text = text.replace(name, "")
    text = text.replace("\\%", "").replace("%", "").replace("and", "")
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    text = "0" + text if text.startswith(".") else text
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text.replace(" ", ""))
    return re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", text)


def ttrl_grade(given: str, truth: str) -> bool:
    a, b = _readable(given), _readable(truth)
    if given == truth or a == b:
        return True
    if not a:
        return False
    left, right = _elements(b), _elements(a)
    if len(left) != len(right) or (len(left) > 1 and (a[0], a[-1]) != (b[0], b[-1])):
        return False
    return all(_element_equal(x, y) for x, y in zip(left, right, strict=True))


def _readable(text: str) -> str:
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text).replace("\\pi", "pi")
    text = re.sub(r"^\((-?\d+)\)/\((\d+)\)$", r"\1/\2", text)
    return text.replace("{", "").replace("}", "").replace(" ", "").lower()


def _elements(text: str) -> list[str]:
    whole = len(text) > 2 and text[0] in "([" and text[-1] in ")]"
    return text[1:-1].split(",") if whole and not set(text[1:-1]) & set("()[]") else [text]


def _element_equal(truth: str, given: str) -> bool:
    fraction = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
    if fraction.search(truth) and fraction.search(given):
        return truth == given
    if _is_int(truth) != _is_int(given):
        return False
    return _sympy_equal(truth, given)


def _is_int(text: str) -> bool:
    try:
        value = float(text)
        return abs(value - round(value)) <= 1e-7
    except (ValueError, OverflowError):
        return False


def _sympy_equal(truth: str, given: str) -> bool:
    import sympy
    from sympy.parsing import sympy_parser

    expression = f"({truth})-({given})"
    letters = {c for c in expression.replace("sqrt", "").replace("frac", "") if c.isalpha()}
    if len(letters) > 2 or "^{" in expression or "^(" in expression:
        return False
    if re.search(r"\^[0-9]+\^|\^[0-9][0-9]+", expression):
        return False
    try:
        implicit = sympy_parser.implicit_multiplication_application
        steps = (*sympy_parser.standard_transformations, implicit)
        parsed = sympy_parser.parse_expr(expression.replace("^", "**"), transformations=steps)
        return bool(sympy.simplify(parsed) == 0)
    except Exception:
        return False


def ttrl_rewards(texts: Sequence[str]) -> tuple[list[float], str, float]:
    """(rewards, label, majority ratio): votes by string, rewards by grade."""
    answers = [ttrl_extract(text) for text in texts]
    label, count = Counter(answers).most_common(1)[0]
    rewards = [float(ttrl_grade(ttrl_extract(text), label)) for text in texts]
    return rewards, label, count / len(texts)


# ---- SSRL ---------------------------------------------------------------------------------------


def ssrl_reward(text: str, targets: Sequence[str]) -> float:
    em, _ = ssrl_outcome(text, targets)
    return 0.9 * em + 0.1 * ssrl_format(text)


def ssrl_outcome(text: str, targets: Sequence[str]) -> tuple[float, float]:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if not found:
        return 0.0, 0.0
    answer = found[-1].strip()
    em = max(float(squad(answer) == squad(target)) for target in targets)
    return em, max(_f1(squad(answer), squad(target)) for target in targets)


def squad(text: str) -> str:
    exclude = set(string.punctuation)
    bare = "".join(c for c in text.lower() if c not in exclude)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(answer: str, target: str) -> float:
    words, wanted = squad(answer).split(), squad(target).split()
    common = sum((Counter(words) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def ssrl_format(text: str) -> float:
    text = text.strip()
    names = ("think", "search", "information", "answer")
    allowed = {*names, *(f"/{name}" for name in names)}
    if any(tag not in allowed for tag in re.findall(r"<([^>]+)>", text)):
        return 0.0
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return 0.0
    tags = re.findall(r"<(/?(?:think|search|information|answer))>", text)
    if len(tags) < 4:
        return 0.0
    placeholders = ("your thoughts", "your query", "your information", "your answer")
    for name, placeholder in zip(names, placeholders, strict=True):
        for body in re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL):
            if not body.strip() or placeholder in body.lower():
                return 0.0
            if name == "search" and "\n" in body:
                return 0.0
    if tags[:2] != ["think", "/think"] or tags[-2:] != ["answer", "/answer"]:
        return 0.0
    middle, i = tags[2:-2], 0
    while i < len(middle):
        if middle[i] == "search":
            if middle[i + 1 : i + 4] != ["/search", "information", "/information"]:
                return 0.0
            i += 4
        else:
            i += 1
    thinks, searches = text.count("<think>"), text.count("<search>")
    if searches != text.count("<information>") or thinks > 8:
        return 0.0
    wanted = searches + 1
    return min(thinks / 2, 1.0) * min(thinks, wanted) / max(thinks, wanted)


def ssrl_mask(text: str, tokenize: Callable[[str], list[str]], size: int) -> list[bool]:
    mask = [True] * size
    for body in re.findall(r"<information>(.*?)</information>", text):
        block = f"<information>{body}</information>"
        start = text.find(block)
        first, last = len(tokenize(text[:start])), len(tokenize(text[: start + len(block)]))
        mask[first:last] = [False] * len(mask[first:last])
    return mask


def ssrl_query_uncertainty(log_probs: Sequence[float]) -> float:
    """The mean of -p log2 p over the tokens that were drawn: not their entropy."""
    return sum(-math.exp(one) * one / math.log(2) for one in log_probs) / len(log_probs)
