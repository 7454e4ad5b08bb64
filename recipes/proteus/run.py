"""From raw tables to validated hypotheses: the stages of PROTEUS on breast cancer cohorts."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted? The same command goes on from the last stage.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--study", choices=("expression", "clinical", "both"), default="both")
    add("--planner", default="scripted", help="scripted, an endpoint (http://..../v1) or a folder "
        "or name of a transformers model")  # fmt: skip
    add("--model", default="default", help="of the endpoint")
    add("--genes", type=int, default=300, help="columns of numbers: known ones, then most spread")
    add("--each", type=int, default=6, help="hypotheses a direction that the script proposes")
    add("--rounds", type=int, default=2)
    add("--fdr", type=float, default=0.05)
    add("--out", type=Path, default=_HERE / "results" / "run")
    add("--fresh", action="store_true", help="delete what --out holds instead of going on with it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs what the command line asks for; returns the graphs by study."""
    args = arguments(argv)
    sys.path.append(str(_HERE.parent / "reasoning_gym"))
    import planner
    import runs
    import system

    import report

    asked = {k: v for k, v in vars(args).items() if k not in ("out", "fresh", "study")}
    runs.go_on_or_refuse(args.out, asked, fresh=args.fresh)
    plan = planner.scripted
    if args.planner.startswith("http"):
        plan = planner.endpoint(args.planner, args.model)
    elif args.planner != "scripted":
        plan = planner.local(args.planner)
    graphs = {}
    for name in ("expression", "clinical") if args.study == "both" else (args.study,):
        start = time.perf_counter()
        study = system.STUDIES[name]
        one = system.System(study, plan, args.out, genes=args.genes, each=args.each,
                            rounds=args.rounds, fdr=args.fdr)  # fmt: skip
        graphs[name] = one.run()
        found = report.counts(graphs[name])
        print(f"{name}: {found['tests']} tests, {found['hypotheses']} hypotheses, "
              f"{found['accepted']} accepted, {found['replicated']} of {found['testable']} "
              f"replicated; {system.replay(graphs[name], study)} results computed again, equal; "
              f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    print(f"report: {report.write(graphs, args.out, args.fdr)}")
    return graphs


if __name__ == "__main__":
    main()
