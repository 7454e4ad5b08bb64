"""When two answers are the same, for counting votes and for grading alike."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec

from logpi.rewards.answers import Form, normal_form


class Comparison:
    """Compares normal forms: exactly where that is enough, else by math-verify within a budget.

    Args:
        symbolic_seconds: CPU seconds for all comparisons of expressions together, 0.2 for each;
            what they do not reach is told apart. 0 asks math-verify nothing.

    Attributes:
        skipped: comparisons that the budget did not reach.
    """

    def __init__(self, symbolic_seconds: float = 0.5) -> None:
        self.left = symbolic_seconds
        self.skipped = 0

    def same(self, a: Form | None, b: Form | None) -> bool:
        """No answer is the same as none, itself included."""
        if a is None or b is None:
            return False
        if a == b:
            return True
        kinds = {a[0], b[0]}
        if kinds <= {"number", "math"} and "math" in kinds:
            return self._symbolic(_written(a), _written(b))
        if a[0] != b[0] or not (has_math(a) or has_math(b)):
            return False
        if a[0] == "tuple":
            pairs = zip(a[3], b[3], strict=False)
            return a[1:3] == b[1:3] and len(a[3]) == len(b[3]) and all(self.same(*p) for p in pairs)
        return a[0] == "set" and self._same_sets(a[1], b[1])

    def _same_sets(self, a: Sequence[Form], b: Sequence[Form]) -> bool:
        if len(a) != len(b):
            return False
        rest = list(b)
        for form in a:
            match = next((i for i, other in enumerate(rest) if self.same(form, other)), None)
            if match is None:
                return False
            del rest[match]
        return True

    def _symbolic(self, a: str, b: str) -> bool:
        if self.left <= 0:
            self.skipped += 1
            return False
        from logpi.rewards import _symbolic

        same, spent = _symbolic.equal(a, b, self.left)
        self.left -= spent
        return same

    def classes(self, forms: Sequence[Form | None]) -> list[int | None]:
        """The class of each answer, numbered in the order of their first members; None for none.

        An answer joins the first class whose first member is the same. That decides where sameness
        is not transitive, which math-verify does not promise, and a budget that ends even less.
        """
        firsts: list[Form] = []
        known: dict[Form, int] = {}
        found: list[int | None] = []
        for form in forms:
            if form is not None and form not in known:
                known[form] = self._class_of(form, firsts)
                if known[form] == len(firsts):
                    firsts.append(form)
            found.append(None if form is None else known[form])
        return found

    def _class_of(self, form: Form, firsts: Sequence[Form]) -> int:
        """Of a form that equals no other: only a symbolic comparison can still join it to one."""
        symbolic = has_math(form)
        for number, first in enumerate(firsts):
            if self.left <= 0 and (symbolic or has_math(first)):
                self.skipped += 1
                break
            if (symbolic or has_math(first)) and self.same(first, form):
                return number
        return len(firsts)


def equivalent(a: str, b: str, *, symbolic_seconds: float = 0.5) -> bool:
    """Whether two answers (not texts that hold one) are the same."""
    return Comparison(symbolic_seconds).same(normal_form(a), normal_form(b))


def has_math(form: Form) -> bool:
    """Whether some part of it is an expression that only math-verify can judge."""
    if form[0] in ("tuple", "set"):
        return any(has_math(part) for part in form[-1])
    return bool(form[0] == "math")


def _written(form: Form) -> str:
    value = form[1]
    if isinstance(value, Fraction):
        # as LaTeX: of a digit string with a slash the grammar makes the same, but later
        return str(value) if value.denominator == 1 else (
            f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        )  # fmt: skip
    return str(value)


def prepare(seconds: float) -> None:
    """Starts the process that runs math-verify, half a second long; ImportError without it."""
    if seconds > 0 and find_spec("math_verify") is None:
        raise ImportError(
            "symbolic_seconds: math-verify is not installed: pip install 'logpi[rewards]', or "
            "symbolic_seconds=0 for numbers and words alone"
        )
    if seconds > 0:
        from logpi.rewards import _symbolic

        _symbolic.start()
