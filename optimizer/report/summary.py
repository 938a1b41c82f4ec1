"""One run as a flat JSON object: what ran, under which limits, what it was worth, and how long it took."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.capacity import EngineCard
from optimizer.problem import Engine, Metrics
from optimizer.problem.columns import Floats
from optimizer.report.accuracy import known_error
from optimizer.report.card import describe_engine
from optimizer.report.saturation import saturation
from optimizer.version import package_version

if TYPE_CHECKING:
    from optimizer.simulator import Simulation

SCHEMA = "optimizer/summary@1"
_QUANTILES = np.linspace(0.0, 1.0, 101)


def summarize(
    simulation: Simulation,
    *,
    options: Mapping[str, object] | None = None,
    sha256: str | None = None,
    card: EngineCard | None = None,
) -> dict[str, Any]:
    """Give the summary of a run.

    Parameters
    ----------
    simulation
        What `simulate` gave.
    options
        The policy's options that were set, where the simulation was given a ready policy.
    sha256
        Fingerprint of the instance, where it is known already: computing it reads every request.
    card
        The engine's card, where it is none of the catalogue.

    Returns
    -------
    dict
        JSON values only. Of the keys: those of `Metrics.summary`; `engine`, by `describe_engine`, with
        `known_error` of its step times in this run; `saturation`, by the function of that name;
        `requests_per_second_simulated`, requests over `loop_seconds`, the wall time of the event loop;
        `quantiles`, by latency, 101 of them from the least to the greatest.
    """
    s, instance = simulation, simulation.instance
    loop_seconds = s.loop_seconds
    return {
        "schema": SCHEMA,
        "policy": s.policy,
        "policy_options": dict(s.options if options is None else options),
        "seed": s.seed,
        "instance": instance.name,
        "instance_sha256": sha256 or instance.sha256,
        "engine": {
            **describe_engine(instance.engine, s.schedule, card),
            "known_error": known_error(instance.engine, s.schedule, card).to_document(),
        },
        "limits": limits(instance.engine),
        **s.metrics.summary(),
        "saturation": saturation(s.schedule, instance.requests, instance.engine),
        "requests_per_second_simulated": len(instance.requests) / loop_seconds if loop_seconds > 0 else None,
        "loop_seconds": loop_seconds,
        "events": s.events,
        "quantiles": quantiles(s.metrics),
        "versions": versions(),
    }


def limits(engine: Engine) -> dict[str, int | bool | None]:
    """Give what limits a batch."""
    return {
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_num_seqs": engine.max_num_seqs,
        "kv_blocks": engine.kv_blocks,
        "block_tokens": engine.block_tokens,
        "max_model_len": engine.max_model_len,
        "prefix_caching": engine.prefix_caching,
    }


def quantiles(metrics: Metrics) -> dict[str, list[float]]:
    """Give 101 quantiles of each latency in seconds, enough to draw its distribution; empty: no values."""

    def of(values: Floats) -> list[float]:
        known = values[np.isfinite(values)]
        return np.quantile(known, _QUANTILES).tolist() if known.size else []

    return {"ttft": of(metrics.ttft_s), "tpot": of(metrics.tpot_s), "e2e": of(metrics.e2e_s)}


def versions() -> dict[str, str]:
    """Give the versions that a result depends on."""
    return {"optimizer": package_version(), "python": platform.python_version(), "numpy": np.__version__}


def peak_memory_mb() -> float | None:
    """Give the most memory this process has had resident, in 10^6 bytes; None where nobody counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    # getrusage counts bytes on macOS and KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
