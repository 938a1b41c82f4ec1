"""Improves the best values known: `python -m optimizer.offline.best_known [NAMES...] --time-limit S`.

Solves shipped instances one after another and keeps what is better, with its proof. What is finished is kept at any moment;
`--resume` goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import get_args

from optimizer.certificates import verify
from optimizer.errors import OptimizerError
from optimizer.offline.known_values import (
    EQUAL,
    Claim,
    Known,
    Proof,
    read_best_known,
    read_proofs,
    recheck,
    write_best_known,
)
from optimizer.offline.result import Result
from optimizer.offline.solve import solve
from optimizer.problem import Instance
from optimizer.problem.instance import Objective
from optimizer.traces import instance as shipped
from optimizer.traces import list_instances
from optimizer.version import package_version


def improve(
    name: str, *, objective: Objective | None = None, time_limit_s: float = 60.0, seed: int = 0
) -> str:
    """Solve a shipped instance, and keep of the outcome what is better than what is known.

    A schedule that the checker refuses and a bound without a certificate are never kept. What is known but does
    not hold any more, because the instance or a rule has changed, is replaced.

    Parameters
    ----------
    name
        One of `optimizer.traces.list_instances()`.
    objective
        None: the instance's own.
    time_limit_s, seed
        Of the solve.

    Returns
    -------
    str
        A line on the outcome.

    Raises
    ------
    InputError
        If there is no such instance, or no policy can serve it.
    KeyboardInterrupt
        After Ctrl-C, when what was found up to then is kept.
    """
    instance = shipped(name)
    goal = objective or instance.objective
    old, proof = _standing(instance, goal)
    result = solve(instance, objective=goal, time_limit_s=time_limit_s, seed=seed)
    if not result.check.ok:
        return f"{name}  {goal}  left as it was: the checker refuses the schedule: {result.check}"
    new = _claims(result, instance, goal)
    primal_better = old is None or new.primal.value < old.primal.value - EQUAL * abs(old.primal.value)
    dual_better = new.dual is not None and (
        old is None or old.dual is None or new.dual.value > old.dual.value + EQUAL * abs(old.dual.value)
    )
    found = _proof(result)
    if old is not None:
        new = Known(
            primal=new.primal if primal_better else old.primal,
            dual=new.dual if dual_better else old.dual,
            tried_s=max(new.tried_s, old.tried_s),
        )
        kept = {} if primal_better else {"policy": proof.policy, "seed": proof.seed, "plan": proof.plan}
        found = found.model_copy(update=kept | ({} if dual_better else {"certificate": proof.certificate}))
    recheck(instance, goal, new, found)
    write_best_known(instance, goal, new, found)
    if result.limit == "interrupted":
        raise KeyboardInterrupt
    better = [word for word, is_better in (("schedule", primal_better), ("bound", dual_better)) if is_better]
    return f"{_line(name, goal, new)}  {result.seconds:.1f} s  better: {' and '.join(better) or 'nothing'}"


def _standing(instance: Instance, objective: Objective) -> tuple[Known | None, Proof]:
    """Give what is known and holds."""
    entry = read_best_known().get(instance.name)
    known = None if entry is None else entry.objectives.get(objective)
    if known is None or entry is None or entry.instance_sha256 != instance.sha256:
        return None, Proof()
    try:
        proof = read_proofs(instance)[objective]
        recheck(instance, objective, known, proof)
    except (OptimizerError, KeyError) as error:
        print(
            f"{instance.name}  {objective}  what was known does not hold any more: {error}", file=sys.stderr
        )
        return None, Proof()
    return known, proof


def _claims(result: Result, instance: Instance, objective: Objective) -> Known:
    def claim(value: float, by: str, seconds: float) -> Claim:
        today = datetime.now(UTC).date().isoformat()
        return Claim(value=value, by=by, date=today, seconds=round(seconds, 3), version=package_version())

    since = next((p.seconds for p in result.progress if p.primal == result.primal), result.seconds)
    primal = claim(result.primal, result.found_by, since)
    dual = None
    if result.certificate is not None:
        proved = verify(result.certificate, instance)
        since = next((p.seconds for p in result.progress if p.dual == proved.rounded_down), result.seconds)
        dual = claim(proved.rounded_down, proved.kind, since)
    tried_s = result.seconds if result.limit == "interrupted" else result.time_limit_s
    return Known(primal=primal, dual=dual, tried_s=tried_s)


def _proof(result: Result) -> Proof:
    plan = None if result.plan is None else result.plan.to_document()
    policy = result.simulation.policy if plan is None else None
    return Proof(policy=policy, seed=result.seed, plan=plan, certificate=result.certificate)


def _line(name: str, objective: Objective, known: Known) -> str:
    dual = "none" if known.dual is None else f"{known.dual.value:.6g} ({known.dual.by})"
    off = "" if known.gap is None else f"  gap {100 * known.gap:.2f} %"
    return f"{name}  {objective}  {known.primal.value:.6g} ({known.primal.by})  bound {dual}{off}"


def _chosen(patterns: Sequence[str]) -> list[str]:
    """Give the instances that names, families (`toy`) and patterns (`kv-ramps/n16-*`) stand for."""
    every = list_instances()
    if not patterns:
        return list(every)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [
            name for name in every if fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/")
        ]
        if not found:
            shipped(pattern)  # says what is near
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _is_done(name: str, objective: Objective | None, time_limit_s: float) -> bool:
    """Say whether nothing is to be won: it is proved optimal, or was tried for as long."""
    entry, instance = read_best_known().get(name), shipped(name)
    if entry is None or entry.instance_sha256 != instance.sha256:
        return False
    known = entry.objectives.get(objective or instance.objective)
    return known is not None and (
        known.tried_s >= time_limit_s or (known.gap is not None and known.gap <= EQUAL)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve instances one after another; gives the exit code: 1 where one could not be solved, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m optimizer.offline.best_known",
        description="Improve the best known values of shipped instances.",
    )
    parser.add_argument(
        "names", nargs="*", help="names, families (toy) or patterns (kv-ramps/n16-*); none: every instance"
    )
    parser.add_argument(
        "--time-limit", type=float, default=60.0, metavar="S", help="seconds per instance (60)"
    )
    parser.add_argument("--objective", choices=get_args(Objective), help="in place of the instance's own")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the solve (0)")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what is optimal or was tried for as long"
    )
    asked = parser.parse_args(arguments)
    code = 0
    try:
        names = _chosen(asked.names)
        for number, name in enumerate(names, start=1):
            if asked.resume and _is_done(name, asked.objective, asked.time_limit):
                continue
            try:
                line = improve(
                    name, objective=asked.objective, time_limit_s=asked.time_limit, seed=asked.seed
                )
            except Exception as error:
                # A run over everything takes hours: what goes wrong with one instance must not cost the others.
                if not isinstance(error, OptimizerError):
                    traceback.print_exc()
                line, code = f"{name}  {type(error).__name__}: {error}", 1
            print(f"[{number}/{len(names)}] {line}", flush=True)
    except OptimizerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was found is kept, and --resume goes on from here", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
