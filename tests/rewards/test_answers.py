"""The answer of a text, and when two of them are the same number or the same words."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logpi.rewards import boxed_answer, extract_answer, normal_form


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{3}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"a { b \boxed{5}", "5"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"2 and \boxed{8", None),  # it was cut
        (r"\boxed{} or 3", "3"),
        ("The answer is 12. Done.", "12"),
        ("The final answer is $\\frac12$. I hope it is correct.", r"\frac12"),
        ("**Answer:** 42 m", "42 m"),
        ("The answer is 1 and then the answer is (2, 3)", "(2, 3)"),
        ("所以答案是 7", "7"),
        ("so 3/4 then", "3/4"),
        ("it costs 1,234.5, I think", "1,234.5"),
        ("x = 3-4", "4"),
        ("it is -4", "-4"),
        ("no idea", None),
        ("", None),
    ],
)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_only_boxes() -> None:
    assert boxed_answer(r"the answer is 3") is None
    assert boxed_answer(r"\boxed{ 3 }") == "3"


SAME = [
    ["0.5", r"\frac12", "1/2", r"\dfrac{1}{2}", ".50", r"$\frac{1}{2}$", "50e-2", r"\frac{0.5}{1}"],
    ["1000", "1,000", "1{,}000", "1000.0", r"10^{3}".replace("10^", r"1\times 10^"), "+1000"],
    ["-3", "−3", r"\(-3\)", "x = -3", r"\left(-3\right)", r"-\frac{6}{2}", r"\frac{-6}{2}"],
    ["1.5", r"1\frac{1}{2}", "1 1/2", "3/2"],
    ["90", r"90^\circ", r"90^{\circ}", "90°", "90 degrees", r"90\text{ cm}", r"90\,\mathrm{cm}^2"],
    ["5", r"\$5", "5%", r"5\%", "5 dollars", "5.", "**5**", r"\text{5}", "5 km/h"],
    ["(1, 2)", r"\left(1,2.0\right)", r"(\frac22, 2)"],
    ["{1,2}".replace("{", r"\{").replace("}", r"\}"), "1, 2", "2 and 1", "x \\in \\{2, 1, 1\\}"],
    ["Monday", "monday", r"\text{Monday}", r"\textbf{Monday}."],
    ["B", "(B)", r"\text{(B)}", "b"],
]


@pytest.mark.parametrize("answers", SAME, ids=lambda answers: answers[0])
def test_one_answer_in_many_spellings(answers: list[str]) -> None:
    forms = {answer: normal_form(answer) for answer in answers}
    assert len(set(forms.values())) == 1, forms


def test_different_answers_stay_apart() -> None:
    others = ["1/3", "0.3333", "(2, 1)", "[1, 2]", "(1, 2]", "Tuesday", "C", "5 million", "12:30",
              "1,2,3", "x^2", "X^2", "+", "<"]  # fmt: skip
    forms = [normal_form(answers[0]) for answers in SAME] + [normal_form(other) for other in others]
    assert None not in forms
    assert len(set(forms)) == len(forms)


@pytest.mark.parametrize("answer", ["", " ", "$$", r"\left\right", ".", r"\text{ }"])
def test_nothing_is_no_answer(answer: str) -> None:
    assert normal_form(answer) is None


@given(st.fractions(max_denominator=10**6), st.sampled_from(["", "$", " "]))
def test_numbers_are_exact(value: Fraction, around: str) -> None:
    n, d = value.numerator, value.denominator
    sign, size = ("-", -n) if n < 0 else ("", n)
    for text in (f"{n}/{d}", f"{sign}\\frac{{{size}}}{{{d}}}", f"\\frac{{{n}}}{{{d}}}"):
        assert normal_form(around + text + around) == ("number", value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals_are_exact(value: object) -> None:
    assert normal_form(f"{value:f}") == ("number", Fraction(str(value)))


def test_division_by_zero_is_no_number() -> None:
    assert normal_form("1/0")[0] == "math"
    assert normal_form(r"\frac{1}{0}")[0] == "math"
