"""The independent checker: is a schedule possible on the engine, and does it say the truth about itself?

It works from the tables of the schedule, the requests and the step-time model alone, and shares no code
with the simulator or the solvers. It does not judge how good a schedule is.
"""

from __future__ import annotations

import numpy as np

from optimizer.check.ledger import check_outcomes, follow
from optimizer.check.memory import check_paged, check_reservations
from optimizer.check.prefix import check_prefix_hits
from optimizer.check.report import CheckReport as CheckReport
from optimizer.check.report import Findings
from optimizer.check.report import Rule as Rule
from optimizer.check.report import Violation as Violation
from optimizer.check.runs import check_runs
from optimizer.check.tables import sound_rows
from optimizer.problem import Instance, Schedule


def check(schedule: Schedule, instance: Instance) -> CheckReport:
    """Check every rule of `Rule` on a schedule; never raises, however broken the schedule is.

    Rows that make no sense are named and set aside, and the rest is judged without them; so one mistake
    may break several rules. Moments are compared with a tolerance of 1e-9 s and 1e-12 of their size.

    Parameters
    ----------
    schedule
        What is said to have been executed.
    instance
        Requests and engine.

    Returns
    -------
    CheckReport
        True in a condition where no rule is broken; prints as one line then, else as a list.

    Notes
    -----
    O(n log n) in table rows, runs and KV blocks; within a run contexts only grow, so the KV of its last
    step stands for all of them. Where prefixes are shared, a block that a live request computed itself is
    counted for it, and any other claimed block once.

    A decode segment that reaches on into runs without decodes says the same as one that ends before them.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=4, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [20], "output_tokens": [13]})
    >>> columns = dict.fromkeys(Schedule.__dataclass_fields__, np.zeros(0, np.int64)) | {
    ...     "policy": "by hand", "block_tokens": 16, "max_num_batched_tokens": 8192,
    ...     "start_s": np.array([0.0, 1.0]), "end_s": np.array([1.0, 13.0]),
    ...     "first_step_s": np.array([1.0, 1.0]), "steps": np.array([1, 12]),
    ...     "decode_seqs": np.array([0, 1]), "decode_context": np.array([0, 21]),
    ...     "prefill_tokens": np.array([20, 0]),
    ...     "chunk_run": np.array([0]), "chunk_request": np.array([0]),
    ...     "chunk_tokens": np.array([20]), "chunk_context": np.array([0]),
    ...     "decode_request": np.array([0]), "decode_first_run": np.array([1]),
    ...     "decode_last_run": np.array([1]),
    ...     "first_token_s": np.array([1.0]), "finish_s": np.array([13.0]),
    ... }
    >>> print(check(Schedule(**columns), Instance("toy", requests, engine)))
    yes: 1 requests, 2 runs, 13 steps keep all 25 rules
    >>> late = columns | {"finish_s": np.array([14.0])}
    >>> print(check(Schedule(**late), Instance("toy", requests, engine)))
    no: 1 requests, 2 runs, 13 steps break finish (1 violations)
      finish, run 1, step 12, request 0: finish_s is 14.000000000 s; the step ends at 13.000000000 s
    """
    found = Findings(schedule, instance.requests)
    sound = sound_rows(schedule, instance.engine, found)
    if sound is None:
        found.notes.append("the columns do not fit together; no other rule was applied")
        return found.report()
    # Absurd numbers may overflow numpy's integers; they are violations already.
    with np.errstate(all="ignore"):
        decoded = np.zeros(len(sound.steps) + 1, np.int64)
        np.cumsum(np.where(sound.decode_seqs > 0, sound.steps, 0), out=decoded[1:])
        ledger = follow(sound, instance, decoded, found)
        check_outcomes(sound, ledger, found)
        check_runs(sound, instance, ledger, decoded, found)
        prefix = check_prefix_hits(sound, instance, ledger, decoded, found)
        if sound.reserves:
            check_reservations(sound, instance.engine, ledger, decoded, found)
        else:
            check_paged(sound, instance.engine, ledger, decoded, prefix, found)
    return found.report()
