"""Rewards for hypotheses that data can refute; docs/rewards/hypothesis.md.

    table = Table.from_frame(frame, survival={"survival": ("time", "event")})
    reward = HypothesisReward(table, held_out=other_cohort, known=(("ESR1", "er"),))
    reward(completions)                          # a trainer's call
    judge(hypotheses, table, held_out=..)        # the same verdicts outside of training

Needs logpi[hypothesis]: scipy, statsmodels, networkx. `import logpi.rewards` does not load it.
"""

from logpi.rewards.hypothesis.judge import Verdict, judge, novelty
from logpi.rewards.hypothesis.reward import HypothesisReward, Weights
from logpi.rewards.hypothesis.statement import RELATIONS, Hypothesis, read
from logpi.rewards.hypothesis.statistics import Result, Untestable, forget, run_test
from logpi.rewards.hypothesis.table import Table

__all__ = [
    "RELATIONS",
    "Hypothesis",
    "HypothesisReward",
    "Result",
    "Table",
    "Untestable",
    "Verdict",
    "Weights",
    "forget",
    "judge",
    "novelty",
    "read",
    "run_test",
]
