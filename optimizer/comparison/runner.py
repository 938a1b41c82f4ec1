"""`compare`: run policies on the same requests and set what they were worth side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimizer.capacity import EngineCard
from optimizer.comparison.policy_files import policy_file_of
from optimizer.comparison.pool import run_all, usable_cores
from optimizer.comparison.result import Comparison, Failure, sort_column
from optimizer.comparison.task import Task
from optimizer.errors import InputError
from optimizer.policies import Policy, make_policy, options_of, policy_names
from optimizer.problem import Instance
from optimizer.report.summary import versions

Summary = Mapping[str, Any]
Chosen = tuple[str, Policy, Mapping[str, object]]
"""What a policy is called in the comparison, the policy, and those of its options that were set."""
Progress = Callable[[int, int, Summary | Failure | None], None]
"""Called at the start and after each run: runs done, runs in all, and what came of the last one."""


def compare(
    instance: Instance | Callable[[int], Instance],
    policies: str | Sequence[str | Policy] = "all",
    seeds: int | Sequence[int] = 1,
    jobs: int | None = None,
    *,
    options: Mapping[str, object] | None = None,
    sort: str = "e2e_mean_s",
    check: bool = False,
    card: EngineCard | None = None,
    done: Callable[[Task], Summary | None] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run policies on the same requests, in parallel processes.

    A policy that raises, deadlocks, or brings its process down is listed as a failure; the others go on.

    Parameters
    ----------
    instance
        An instance; or a function from a seed to one, where arrivals or lengths are drawn.
    policies
        `all`, names separated by commas, or a sequence of names and policies.
    seeds
        How many (0, 1, ...), or which ones.
    jobs
        Processes; by default as many as there are cores. 1 runs everything in this one.
    options
        Options of policies: `name.option` for one policy, `option` for all that have it.
    sort
        Figure by which the rows are sorted, best first: a key of `COLUMNS`.
    check
        Whether `optimizer.check` judges every schedule; a policy whose schedule breaks a rule has failed. It
        takes about as long as the simulation.
    card
        The engine's card, for its fit error and range, where it is none of the catalogue.
    done
        Gives the summary of a run that need not be made again, else None.
    progress
        Called in this process at the start and after each run.

    Returns
    -------
    Comparison
        Printed, it is a table.

    Raises
    ------
    InputError
        On an unknown policy, option or figure, or no seeds.

    Examples
    --------
    >>> from optimizer.problem import Engine, Instance, Requests, StepTime
    >>> requests = Requests.from_columns({"prompt_tokens": [30, 20], "output_tokens": [3, 4]})
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> result = compare(Instance("two", requests, engine), ["vllm-v1"], jobs=1)
    >>> result.rows[0]["makespan_s"]
    0.04
    """
    sort = sort_column(sort).key
    seed_list = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not seed_list:
        raise InputError(f"{seeds!r} seeds; expected at least one", field="seeds")
    if jobs is not None and jobs < 1:
        raise InputError(f"{jobs}; expected a number of processes >= 1", field="jobs")
    chosen = _choose(policies, options or {})
    instances = [instance] if isinstance(instance, Instance) else [instance(seed) for seed in seed_list]
    tasks = _tasks(instances, chosen, seed_list, check, card)
    runs: dict[tuple[str, int], Summary] = {}
    failures: list[Failure] = []
    say = progress or (lambda done, total, last: None)
    for task in tasks:
        if done is not None and (summary := done(task)) is not None:
            runs[task.name, task.seed] = summary
    left = [task for task in tasks if (task.name, task.seed) not in runs]
    say(len(runs), len(tasks), None)
    for task, outcome in run_all(left, instances, jobs or usable_cores()):
        if outcome.summary is not None:
            runs[task.name, task.seed] = outcome.summary
        else:
            failures.append(Failure(task.name, task.seed, outcome.reason))
        say(len(runs) + len(failures), len(tasks), outcome.summary or failures[-1])
    failures.sort(key=lambda f: (f.policy, f.seed))
    in_order = tuple(runs[t.name, t.seed] for t in tasks if (t.name, t.seed) in runs)
    return Comparison(in_order, tuple(failures), seed_list, sort)


def _tasks(
    instances: Sequence[Instance],
    chosen: Sequence[Chosen],
    seeds: Sequence[int],
    check: bool,
    card: EngineCard | None,
) -> list[Task]:
    """Give a task for every policy and seed; the instances are one for all seeds, or one for each."""
    prints = [one.sha256 for one in instances]
    files = {name: file.sha256 for name, _, _ in chosen if (file := policy_file_of(name)) is not None}
    return [
        Task(name, policy, seed, place % len(instances), prints[place % len(instances)], given,
             files.get(name), check, card)
        for place, seed in enumerate(seeds)
        for name, policy, given in chosen
    ]  # fmt: skip


def is_answered_by(task: Task, summary: Summary) -> bool:
    """Say whether a summary is what the task would give: same requests, engine, policy, options, versions.

    One that was checked also answers a task without a check, not the other way round.
    """
    return (
        summary.get("instance_sha256") == task.sha256
        and summary.get("policy") == task.name
        and summary.get("seed") == task.seed
        and summary.get("policy_options") == dict(task.options)
        and summary.get("policy_file_sha256") == task.file_sha256
        and ("check" in summary or not task.check)
        and summary.get("versions") == versions()
    )


def _choose(policies: str | Sequence[str | Policy], options: Mapping[str, object]) -> list[Chosen]:
    """Build the policies, each with the options meant for it."""
    if isinstance(policies, str):
        names = list(policy_names()) if policies == "all" else [p.strip() for p in policies.split(",")]
        policies = [name for name in names if name]
    if not policies:
        raise InputError("no policy is given; expected all, or names separated by commas", field="policies")
    used: set[str] = set()
    chosen: list[Chosen] = []
    for policy in policies:
        if isinstance(policy, Policy):
            chosen.append((policy.name or type(policy).__name__, policy, {}))
            continue
        given: dict[str, object] = {}
        known = options_of(policy)
        for key, value in options.items():
            name, _, option = key.rpartition(".")
            if name == policy or (not name and option in known):
                given[option] = value
                used.add(key)
        chosen.append((policy, make_policy(policy, **given), given))
    if unused := [key for key in options if key not in used]:
        raise InputError(f"no policy here takes the option {unused[0]!r}", field="policy-option")
    names = [name for name, _, _ in chosen]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"policy {twice[0]!r} is given twice; give it once", field="policies")
    return chosen
