"""The final answer of a text, and its normal form: what two answers share that say the same.

    extract_answer("... so it is \\boxed{\\frac12}.")   "\\frac12"
    normal_form("\\frac12") == normal_form("0.50")      both are the number 1/2

Everything here is exact, linear in the text, and raises on none.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_TEXT = 65_536  # characters looked at, from the end: the answer comes last
MAX_ANSWER = 1_000  # above, an answer is compared as it stands

# ("number", Fraction), ("math", latex), ("text", words), ("set", forms),
# ("tuple", opening, closing, forms)
Form = tuple[Any, ...]


# ---- from a text --------------------------------------------------------------------------------


def extract_answer(text: str) -> str | None:
    """The last \\boxed{..}; else what follows the last "answer is"; else the last number; or None.

    A text whose only box never closes was cut: it has no answer.
    """
    text = text[-MAX_TEXT:]
    found, cut = _box(text)
    if found or cut:
        return found
    return _announced(text) or _last_number(text)


def boxed_answer(text: str) -> str | None:
    """What the last \\boxed{..} (or \\fbox) that closes holds; None without one, or for nothing."""
    return _box(text[-MAX_TEXT:])[0]


def _box(text: str) -> tuple[str | None, bool]:
    """What the last closed box holds, and whether there are boxes, but none closes."""
    if "boxed" not in text and "fbox" not in text:
        return None, False
    first = min(at for at in (text.find("\\boxed"), text.find("\\fbox"), len(text)) if at >= 0)
    span: tuple[int, int] | None = None
    opened: list[int] = []  # where the content of each open brace begins; -1: not a box
    for mark in _BOX.finditer(text, first):
        if mark[0] == "}":
            start = opened.pop() if opened else -1
            # Of \\boxed{\\boxed{5}} the inner one has been seen.
            if start >= 0 and (span is None or not _BOX_START.match(text, start, mark.start())):
                span = (start, mark.start())
        elif mark[0][-1] == "{" and mark[0] != r"\{":
            opened.append(mark.end() if len(mark[0]) > 1 else -1)
    if span is None:
        return None, any(start >= 0 for start in opened)
    return text[slice(*span)].strip() or None, False


_BOX_START = re.compile(r"\s{0,4}\\(?:boxed|fbox)\s{0,4}\{")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{|\\.|[{}]", re.DOTALL)
_ANNOUNCED = re.compile(r"answer\s{0,4}(?:is|:|=)|答案是", re.IGNORECASE)
_MATH = re.compile(r"\$+([^$]{1,1000})\$+|\\\((.{1,1000}?)\\\)")
_NUMBER = re.compile(r"(?<![\w.)])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def _announced(text: str) -> str | None:
    last = _last(_ANNOUNCED, text)
    if last is None:
        return None
    line = text[last.end() :].lstrip(" :\n*")[: MAX_ANSWER + 1].partition("\n")[0]
    if math := _MATH.search(line):
        return (math[1] or math[2]).strip() or None
    return re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip(" *") or None


def _last_number(text: str) -> str | None:
    last = _last(_NUMBER, text)
    return last[0].rstrip(",") if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


# ---- to a normal form ---------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def normal_form(answer: str) -> Form | None:
    """Equal for answers that are equal by arithmetic, spelling or notation; None for no answer.

    Numbers are exact: 1/2, 0.5, \\frac12, 50e-2 and 1{,}000/2000 are one. Units, degrees, percent
    and dollar signs are left out (as the field's graders do: 50% is 50), and so is "x =". Words
    are compared without case. What else looks like mathematics is kept as it is written: whether
    two of these agree, the `Comparison` of logpi.rewards.equivalence says.
    """
    if len(answer) > MAX_ANSWER:
        return ("text", answer.strip())
    return _form(_plain(answer), depth=2)


def _form(text: str, depth: int) -> Form | None:
    text = text.strip()
    if not text:
        return None
    if (number := _number(text)) is not None:
        return ("number", number)
    opening, inside, closing = _unwrapped(text)
    parts = _split(inside) if depth else [inside]
    if len(parts) > 1:
        forms = [form for part in parts if (form := _form(part, depth - 1)) is not None]
        if len(forms) == len(parts):
            if opening in ("(", "["):
                return ("tuple", opening, closing, tuple(forms))
            return ("set", tuple(sorted(set(forms), key=repr)))
    elif opening in ("(", "\\{") and depth:
        one = _form(inside, depth - 1)
        return one if opening == "(" or one is None else ("set", (one,))
    if _mathematical(text):
        return ("math", re.sub(r"\s+", " ", text))
    return ("text", " ".join(text.replace("{", " ").replace("}", " ").casefold().split()) or text)


_SYMBOLS = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/",
                          "π": r"\pi ", "∞": r"\infty ", "°": "", "%": "", "$": "", "~": " ",
                          "\n": " ", "\t": " "})  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;:()\[\]$%]|\^\s?(?:\\circ|\{\s?\\circ\s?\})"
    r"|\\degree(?![A-Za-z])|\*\*"
)
_WORDING = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_ASSIGNED = re.compile(r"^\s*\\?[A-Za-z](?:_\{?\w\}?)?\s?(?:=|\\in(?![a-z]))([^=<>]+)$")
_UNIT = re.compile(
    r"^(-?[\d.,/]*\d|-?\\frac\s?\{[^{}]*\}\s?\{[^{}]*\})\s*"
    r"(?!(?:sqrt|sin|cos|tan|log|mod|exp|and|thousand|[mb]illion|trillion)\b)"
    r"(?:[a-z]{3,15}(?:\s[a-z]{2,15}){0,3}|[cmk]?m|[mk]?g|k?mph|km/h|m/s|ft|in|hr?s?)\.?"
    r"(?:\s?\^\s?\{?[23]\}?)?$",
    re.IGNORECASE,
)


def _plain(answer: str) -> str:
    text = _DROPPED.sub("", answer).translate(_SYMBOLS).strip()
    text = text.replace(r"\ ", " ").replace("{,}", ",")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = _WORDING.sub(r" \1 ", text).strip()
    text = text[:-1] if text.endswith(".") else text
    if assigned := _ASSIGNED.match(text):
        text = assigned[1].strip()
    if quantity := _UNIT.match(text):
        text = quantity[1]
    return text


_DECIMAL = r"(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})"
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_PLAIN = re.compile(rf"([+-]?)\s?({_DECIMAL})(?:\s?/\s?({_DECIMAL}))?")
_FRACTION = re.compile(
    rf"([+-]?)\s?(\d{{0,9}})\s?\\frac\s?(?:\{{\s?(-?{_DECIMAL})\s?\}}|(\d))"
    rf"\s?(?:\{{\s?({_DECIMAL})\s?\}}|(\d))"
)
_MIXED = re.compile(r"([+-]?)\s?(\d{1,9})\s(\d{1,9})/(\d{1,9})")
_SCIENTIFIC = re.compile(
    rf"([+-]?{_DECIMAL})\s?(?:e|\s?(?:\\times|\\cdot|\*)\s?10\s?\^)\s?\{{?([+-]?\d{{1,3}})\}}?",
    re.IGNORECASE,
)


def _number(text: str) -> Fraction | None:
    if "," in text:
        text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    try:
        if found := _PLAIN.fullmatch(text):
            value = Fraction(found[2]) / (Fraction(found[3]) if found[3] else 1)
            return -value if found[1] == "-" else value
        if "frac" in text and (found := _FRACTION.fullmatch(text)):
            part = Fraction(found[3] or found[4]) / Fraction(found[5] or found[6])
            value = part + int(found[2] or 0)  # \frac of a negative is never mixed in practice
            return -value if found[1] == "-" else value
        if found := _MIXED.fullmatch(text):
            value = int(found[2]) + Fraction(int(found[3]), int(found[4]))
            return -value if found[1] == "-" else value
        if found := _SCIENTIFIC.fullmatch(text):
            return Fraction(found[1]) * Fraction(10) ** int(found[2])
    except ZeroDivisionError:
        pass
    return None


def _unwrapped(text: str) -> tuple[str, str, str]:
    """Opening, inside, closing, if one pair of brackets goes around all; else "", it, ""."""
    for opening in ("(", "[", "\\{"):
        if text.startswith(opening):
            for closing in (")", "]", "\\}"):
                end = len(text) - len(closing)
                if end >= len(opening) and text.endswith(closing):
                    inside = text[len(opening) : end]
                    if _balanced(inside):
                        return opening, inside, closing
    return "", text, ""


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _split(text: str) -> list[str]:
    """At commas, "and" and "or" outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in _SEPARATOR.finditer(text):
        mark = match[0]
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return parts


_SEPARATOR = re.compile(r"[(\[{)\]}]|,|\s(?:and|or)\s")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTIONS = re.compile(r"\b(?:sqrt|sin|cos|tan|log|exp|ln|pi)\b")


def _mathematical(text: str) -> bool:
    """Something to compute with: no words, and a digit, an operator or a command."""
    bare = _FUNCTIONS.sub("", _COMMAND.sub("", text))
    return not re.search(r"[^\W\d_]{3}", bare) and bool(re.search(r"[\d\\+*/^=<>]|[a-z]-", text))
