"""Programs as answers: flowcharts to draw them from, a sandbox that runs them, a reward that
counts the assertions that hold. docs/rewards/code.md."""

from logpi.rewards.code.extract import extract_program
from logpi.rewards.code.reward import ProgramTests, pass_at_k_by_difficulty
from logpi.rewards.code.sandbox import Job, Limits, Outcome, Run, Sandbox, SandboxError

__all__ = [
    "Job",
    "Limits",
    "Outcome",
    "ProgramTests",
    "Run",
    "Sandbox",
    "SandboxError",
    "extract_program",
    "pass_at_k_by_difficulty",
]
