"""Verifiable rewards: texts in, numbers out; no torch, no network. The extra: logpi[rewards]."""

from logpi.rewards.answers import boxed_answer, extract_answer, normal_form
from logpi.rewards.contract import Details, Reward
from logpi.rewards.equivalence import equivalent
from logpi.rewards.estimators import Estimate, maj_at_k, pass_at_k
from logpi.rewards.events import Event, EventExtraction, event_scores, parse_events
from logpi.rewards.information import (
    Grounded,
    LocalIndex,
    RealSearch,
    entropy_guided,
    information_mask,
    information_mask_at,
    information_mask_by_ids,
    query_spans,
)
from logpi.rewards.majority_vote import MajorityVote
from logpi.rewards.self_search import SelfSearch

__all__ = [
    "Details",
    "Estimate",
    "Event",
    "EventExtraction",
    "Grounded",
    "LocalIndex",
    "MajorityVote",
    "RealSearch",
    "Reward",
    "SelfSearch",
    "boxed_answer",
    "entropy_guided",
    "equivalent",
    "event_scores",
    "extract_answer",
    "information_mask",
    "information_mask_at",
    "information_mask_by_ids",
    "maj_at_k",
    "normal_form",
    "parse_events",
    "pass_at_k",
    "query_spans",
]
