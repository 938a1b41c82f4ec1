"""From options to an instance: read, take a part, shape, say what is known, put it on an engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.cli.options import EngineOptions, WorkloadOptions
from optimizer.cli.output import say
from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.capacity import EngineCard
    from optimizer.problem import Engine, Instance, Requests
    from optimizer.traces import Trace

_MOST_LISTED = 20
"""Rows left out that are listed on the terminal; the JSON summary has all of them."""


@dataclass(frozen=True)
class Workload:
    """A trace as read, and how an instance is made of it.

    Attributes
    ----------
    trace
        As read.
    options
        What to make of it.
    engine
        What it runs on.
    card
        The engine's card, where the user gave a file; the others are in the catalogue.
    """

    trace: Trace
    options: WorkloadOptions
    engine: Engine
    card: EngineCard | None = None

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self.trace.path

    @property
    def name(self) -> str:
        """A name for results, fit for a file."""
        return re.sub(r"[^\w.+-]+", "_", Path(self.options.trace).stem) or "trace"

    @property
    def is_drawn(self) -> bool:
        """Whether another seed gives another instance."""
        o = self.options
        draws = o.rate is not None and (o.cv is not None or not self.trace.has_arrivals)
        return draws or o.spread_ticks is not None or (o.lengths or "").startswith(("interval", "noise"))

    def instance(self, seed: int) -> Instance:
        """Make the instance of a seed."""
        from optimizer.problem import Instance

        requests = _levels(
            _known(_arrivals(_part(self.trace, self.options), self, seed), self, seed), self.options
        )
        given = self.trace.instance
        if given is None:
            return Instance(self.name, requests, self.engine, origin=str(self.path))
        return Instance(given.name, requests, self.engine, given.objective, given.source, str(self.path))

    def describe(self) -> dict[str, Any]:
        """Give the JSON form of where the requests come from."""
        return {
            "trace": str(self.path),
            "format": self.trace.format,
            "trace_note": self.trace.note,
            "skipped_rows": [{"line": line, "problem": problem} for line, problem in self.trace.skipped],
            "lengths": self.options.lengths or ("as in the instance" if self.trace.instance else "exact"),
        }


def load(options: WorkloadOptions, engine_options: EngineOptions) -> Workload:
    """Read the trace and the engine, and tell the user what the reader had to say.

    Raises
    ------
    InputError
        On anything wrong with either, or options that contradict each other.
    """
    _contradictions(options)
    trace = _read(options)
    engine = _engine(engine_options, trace)
    if trace.note:
        say(f"note: {trace.path.name}: {trace.note}")
    if trace.skipped:
        say(f"left out {len(trace.skipped)} bad rows of {trace.path}:")
        for line, problem in trace.skipped[:_MOST_LISTED]:
            say(f"  line {line}: {problem}")
        if len(trace.skipped) > _MOST_LISTED:
            say(f"  and {len(trace.skipped) - _MOST_LISTED} more")
    return Workload(trace, options, engine, _own_card(engine_options))


def source_path(options: WorkloadOptions) -> Path:
    """Give the path that TRACE names, whether or not there is such a file."""
    return Path(options.trace)


def _read(options: WorkloadOptions) -> Trace:
    from optimizer.traces import embedded, embedded_names, list_instances, near_shipped, read_trace

    path, hashes = Path(options.trace), options.hash_block_tokens
    if not path.exists():
        if options.trace in (*embedded_names(), *list_instances()):
            return _without_hashes(embedded(options.trace), hashes)
        raise InputError(
            f"there is no such file, and nothing of that name in the package; {near_shipped(options.trace)}",
            file=options.trace,
        )
    trace = read_trace(
        path, format=options.format, skip_bad_rows=options.skip_bad_rows, hash_block_tokens=hashes
    )
    return trace if trace.instance is None else _without_hashes(trace, hashes)


def _without_hashes(trace: Trace, hash_block_tokens: int | None) -> Trace:
    if hash_block_tokens is not None:
        raise InputError("says itself what its hashes stand for, or has none; leave this out",
                         file=str(trace.path), field="hash-block-tokens")  # fmt: skip
    return trace


def _own_card(o: EngineOptions) -> EngineCard | None:
    from optimizer.capacity import engine_card

    own = o.engine is not None and o.engine.endswith((".yaml", ".yml")) and Path(o.engine).is_file()
    return engine_card(o.engine or "") if own else None


def _contradictions(o: WorkloadOptions) -> None:
    if o.cv is not None and o.rate is None:
        raise InputError("--cv needs --rate: how many arrivals per second?", field="cv")
    if o.rate is not None and o.time_scale is not None:
        raise InputError("--rate and --time-scale both set the pace; give one of them", field="rate")
    if o.start is not None and o.end is not None and o.end <= o.start:
        raise InputError(f"--end {o.end:g} s is not after --start {o.start:g} s", field="end")
    if o.lengths is not None:
        from optimizer.problem import Requests, with_knowledge

        # A misspelling is found before a long file is read.
        with_knowledge(Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]}), o.lengths)


def _part(trace: Trace, o: WorkloadOptions) -> Requests:
    from optimizer.traces import clip_lengths, only_tenants, window

    requests = trace.requests
    if o.tenant:
        requests = only_tenants(requests, o.tenant)
    if (o.start is not None or o.end is not None) and not trace.has_arrivals:
        raise InputError("has no arrivals to take a span of time from; use --first and --count", file=str(trace.path),
                         field="start")  # fmt: skip
    if o.first or o.count is not None or o.start is not None or o.end is not None:
        requests = window(requests, first=o.first, count=o.count, start_s=o.start, end_s=o.end)
    if o.max_prompt is not None or o.max_output is not None or o.max_total is not None:
        requests = clip_lengths(
            requests, max_prompt=o.max_prompt, max_output=o.max_output, max_total=o.max_total
        )
    return requests


def _arrivals(requests: Requests, workload: Workload, seed: int) -> Requests:
    from optimizer.traces import draw_arrivals, scale_time, spread_ticks, to_rate

    o = workload.options
    if o.spread_ticks is not None:
        requests = spread_ticks(requests, tick_s=o.spread_ticks, seed=seed)
    if o.time_scale is not None:
        return scale_time(requests, o.time_scale)
    if o.rate is None:
        return requests
    if o.cv is not None or not workload.trace.has_arrivals:
        return draw_arrivals(requests, o.rate, cv=1.0 if o.cv is None else o.cv, seed=seed)
    return to_rate(requests, o.rate)


def _known(requests: Requests, workload: Workload, seed: int) -> Requests:
    import numpy as np

    from optimizer.problem import with_knowledge

    o = workload.options
    if o.max_output_tokens is not None:
        longest = int(requests.output_tokens.max())
        if longest > o.max_output_tokens:
            raise InputError(
                f"the cap {o.max_output_tokens} is below the longest output, {longest} tokens; "
                f"clip the outputs with --max-output {o.max_output_tokens}, or raise the cap",
                field="max-output-tokens",
            )
        requests = requests.replace(
            max_output_tokens=np.full(len(requests), o.max_output_tokens, dtype=np.int64)
        )
    if o.lengths is None and workload.trace.instance is not None:
        return requests
    return with_knowledge(requests, o.lengths or "exact", seed=seed)


def _levels(requests: Requests, o: WorkloadOptions) -> Requests:
    """Give requests without service levels of their own those of the options: policies may then see them."""
    import numpy as np

    for name, level in (("ttft_slo_s", o.ttft_slo), ("tpot_slo_s", o.tpot_slo)):
        if level is not None:
            own = getattr(requests, name)
            filled = np.full(len(requests), level) if own is None else np.where(np.isnan(own), level, own)
            requests = requests.replace(**{name: filled})
    return requests


def _engine(o: EngineOptions, trace: Trace) -> Engine:
    from optimizer.capacity import engine

    limits = {
        name: value
        for name in (
            "max_num_batched_tokens", "max_num_seqs", "kv_blocks", "block_tokens", "prefix_caching", "max_model_len",
        )
        if (value := getattr(o, name)) is not None
    }  # fmt: skip
    make: Callable[..., Engine]
    if o.engine is not None:
        base, make = engine(o.engine), lambda **given: engine(o.engine or "", **given)
    elif trace.instance is not None:
        base = trace.instance.engine
        make = base.replace
    else:
        raise InputError(
            "which engine? Give --engine, for example --engine llama3.1-8b@h200 (optimizer engines lists them)",
            field="engine",
        )
    budget, seats = (limits.get(k, getattr(base, k)) for k in ("max_num_batched_tokens", "max_num_seqs"))
    if seats > budget:
        raise InputError(
            f"{seats} seats and a budget of {budget} tokens: a step must have room for one token of every running "
            f"request; give --max-num-seqs {budget} or less, or --max-num-batched-tokens {seats} or more",
            field="max-num-batched-tokens" if o.max_num_batched_tokens else "max-num-seqs",
        )
    return make(**limits) if limits else base
