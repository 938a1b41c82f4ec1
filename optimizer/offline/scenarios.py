"""Output lengths as a planner has to imagine them: draws from what is known, so that a plan is good for more than one guess."""

from __future__ import annotations

import numpy as np

from optimizer.problem import Instance, LengthKnowledge
from optimizer.problem.columns import Floats, Ints

_DRAWS, _FEW_DRAWS = 5, 2
_MANY = 3000


def scenarios(instance: Instance, seed: int) -> list[Instance]:
    """Give instances that agree with what is known of output lengths.

    Where nothing is said, the true lengths are known. Where they are known exactly there is one scenario, too. Else
    lengths are drawn: uniformly from intervals; log-normally about a noisy estimate, drawn towards the mean of all
    requests by what the noise alone would spread (empirical Bayes: an extreme estimate is in part extreme noise).

    Parameters
    ----------
    instance
        Policies that run on a scenario are told what the instance says, not what was drawn.
    seed
        Of the draws.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="e", kv_blocks=99, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [4], "output_tokens": [5]})
    >>> len(scenarios(Instance("one", requests, engine), 0))
    1
    """
    requests, truth = instance.requests, instance.requests.output_tokens
    if requests.known is None:
        return [_with_lengths(instance, truth, LengthKnowledge(truth, truth))]
    if requests.known.exact.all():
        return [instance]
    rng = np.random.default_rng(seed)
    count = _DRAWS if len(requests) <= _MANY else _FEW_DRAWS
    most = _most(instance)
    drawn = (np.clip(np.rint(_draw(requests.known, rng)), 1, most).astype(np.int64) for _ in range(count))
    return [_with_lengths(instance, lengths, requests.known) for lengths in drawn]


def _with_lengths(instance: Instance, lengths: Ints, known: LengthKnowledge) -> Instance:
    requests = instance.requests.replace(output_tokens=lengths, known=known)
    return Instance(instance.name, requests, instance.engine, instance.objective, instance.source)


def _draw(known: LengthKnowledge, rng: np.random.Generator) -> Floats:
    if known.log_sigma is None:
        return np.asarray(rng.uniform(known.low, known.high), np.float64)
    seen, noise = np.log(np.maximum(known.estimate, 1.0)), known.log_sigma
    spread = float(seen.var())
    # Of the spread of estimates only a part is spread of lengths.
    trust = np.clip((spread - noise**2) / spread, 0.0, 1.0) if spread > 0 else np.ones_like(noise)
    middle = seen.mean() + trust * (seen - seen.mean())
    drawn = np.exp(rng.normal(middle, noise * np.sqrt(np.maximum(trust, 0.05))))
    return np.asarray(np.clip(drawn, known.low, known.high), np.float64)


def _most(instance: Instance) -> Ints:
    """Longest outputs that the engine can serve."""
    engine, prompt = instance.engine, instance.requests.prompt_tokens
    most = engine.kv_tokens - prompt + 1
    return most if engine.max_model_len is None else np.minimum(most, engine.max_model_len - prompt)
