"""Two studies, each of a cohort to discover on and another one to replicate in; data: SurvSet."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from logpi.rewards.hypothesis import Table


class Study(NamedTuple):
    """Two cohorts by their names in SurvSet, the known relations, and what to know of it all."""

    name: str
    discovery: str
    held_out: str
    known: tuple[tuple[str, str], ...]
    note: str


STUDIES = {
    "expression": Study(
        "expression", "gse1992", "gse4335",
        (("ESR1", "er"), ("PGR", "er"), ("GATA3", "er"), ("TFF1", "er"), ("FOXA1", "er"),
         ("ESR1", "PGR"), ("ESR1", "GATA3"), ("MKI67", "grade"), ("AURKA", "grade"),
         ("grade", "survival"), ("node", "survival"), ("er", "survival"), ("ESR1", "survival")),
        "Breast tumours on two-colour microarrays: 124 (gse1992) and 115 (gse4335).",
    ),
    "clinical": Study(
        "clinical", "rott2", "GBSG2",
        (("nodes", "survival"), ("grade", "survival"), ("size_over_20", "survival"),
         ("progesterone", "survival"), ("age", "menopause"), ("progesterone", "estrogen")),
        "Breast cancer in the clinic: 2982 of Rotterdam (rott2; its outcome, by the number of "
        "events, is death), 686 of the German trial (GBSG2; recurrence, all node-positive). The "
        "outcomes differ, so what replicates holds for both.",
    ),
}  # fmt: skip


@cache
def load(name: str) -> Table:
    """A cohort by its name in SurvSet, with the column names that its study's cohorts share."""
    from SurvSet.data import SurvLoader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickles are of an older numpy
        frame = SurvLoader().load_dataset(ds_name=name)["df"]
    raw = pd.DataFrame(frame).reset_index(drop=True)
    columns = _expression(raw) if name.startswith("gse") else _clinical(raw, name)
    outcome = {"survival": (raw["time"].to_numpy(float), raw["event"].to_numpy(int))}
    numbers = {k: v for k, v in columns.items() if v.dtype.kind == "f"}
    classes = {k: v for k, v in columns.items() if v.dtype.kind != "f"}
    return Table(numbers, classes, outcome)


def _expression(raw: pd.DataFrame) -> dict[str, Any]:
    er = "fac_er_positive" if "fac_er_positive" in raw else "fac_er_status"
    node = raw["fac_node_status"].astype(str).map({"0": "0", "1": "1", "2": "1"})
    found = {
        "er": _labels(raw[er].astype(str).where(lambda s: s.isin(["0", "1"]))),
        "node": _labels(node),
        "grade": _labels(raw["fac_grade"].astype(str).map({"1": "1-2", "2": "1-2", "3": "3"})),
    }
    genes = [name for name in raw.columns if name.startswith("num_HS_")]
    return found | {name.removeprefix("num_HS_"): raw[name].to_numpy(float) for name in genes}


_CLINICAL = {
    "rott2": {"age": "num_age", "nodes": "num_nodes", "progesterone": "num_progesterone",
              "estrogen": "num_estrogen", "menopause": "fac_meno", "hormone": "fac_hormon",
              "grade": "fac_grade"},
    "GBSG2": {"age": "num_age", "nodes": "num_pnodes", "progesterone": "num_progrec",
              "estrogen": "num_estrec", "menopause": "fac_menostat", "hormone": "fac_horTh",
              "grade": "fac_tgrade"},
}  # fmt: skip
_LEVELS = {"3": "3", "2": "1-2", "III": "3", "II": "1-2", "I": "1-2"}


def _clinical(raw: pd.DataFrame, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ours, theirs in _CLINICAL[name].items():
        if theirs.startswith("num_"):
            found[ours] = raw[theirs].to_numpy(float)
        else:
            labels = raw[theirs].astype(str).str.strip()
            found[ours] = _labels(labels.map(_LEVELS) if ours == "grade" else labels.str.lower())
    if name == "rott2":
        small = raw["fac_tsize"].astype(str).str.startswith("<=20")
    else:
        small = raw["num_tsize"] <= 20
    found["size_over_20"] = _labels(small.map({True: "no", False: "yes"}))
    return found


def _labels(column: Any) -> Any:
    return column.astype(object).where(column.notna(), "").to_numpy(dtype=str)
