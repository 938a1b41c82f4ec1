"""How well a batch was filled, where a number of clients is what limits it."""

from __future__ import annotations

from optimizer.errors import InputError
from optimizer.problem.schedule import Schedule


def decode_utilisation(schedule: Schedule, clients: int) -> float:
    """Give the share of decode rounds in which a client decodes, over all clients.

    Clients that decode, summed over the steps that decode, over clients times those steps. Steps of prompts alone do
    not count: it is the definition under which the figures of arXiv 2502.15763 (201.00 s at 80.2 %, 190.58 s at
    89.1 %) agree with each other.

    Parameters
    ----------
    schedule
        What was executed.
    clients
        Decode slots (the engine's `max_num_seqs`), at least 1.

    Raises
    ------
    InputError
        If there are fewer clients than requests that decoded at once, or nothing was decoded.

    Examples
    --------
    Three rounds with two clients, then two with one:

    >>> from optimizer.problem import Engine, Instance, Requests, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=9, max_num_seqs=2, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [1, 1], "output_tokens": [4, 6]})
    >>> decode_utilisation(simulate(Instance("two", requests, engine)).schedule, 2)
    0.8
    """
    decoding = schedule.decode_seqs > 0
    rounds = int(schedule.steps[decoding].sum())
    if not rounds:
        raise InputError("nothing was decoded; there is no utilisation of decode rounds")
    most = int(schedule.decode_seqs.max())
    if most > clients:
        raise InputError(f"{clients} clients, and {most} requests decoded at once", field="clients")
    return float((schedule.steps * schedule.decode_seqs).sum()) / (clients * rounds)
