"""Optimal scheduling of LLM inference, on a simulator that matches a real engine step by step.

The public names are imported when they are first used, so that `import optimizer` costs next to nothing:

- what is said: `Requests`, `Instance`, `Engine`, `StepTime`, `Schedule`, `Metrics`, `with_knowledge`
- where it comes from: `read_trace`, `generate`, `embedded`, `instance`, `list_instances`, `engine`
- what is done: `simulate`, `compare`, `solve`, `make_policy`, `policy_names`
- what may go wrong: `OptimizerError`, `InputError`, `PolicyError`

Examples
--------
>>> import optimizer
>>> optimizer.Requests.from_columns({"prompt_tokens": [10], "output_tokens": [3]}).name(0)
'0'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.capacity import engine as engine
    from optimizer.comparison import Comparison as Comparison
    from optimizer.comparison import compare as compare
    from optimizer.errors import InputError as InputError
    from optimizer.errors import OptimizerError as OptimizerError
    from optimizer.errors import PolicyError as PolicyError
    from optimizer.offline import Result as Result
    from optimizer.offline import solve as solve
    from optimizer.policies import make_policy as make_policy
    from optimizer.policies import policy_names as policy_names
    from optimizer.problem import Engine as Engine
    from optimizer.problem import Instance as Instance
    from optimizer.problem import Metrics as Metrics
    from optimizer.problem import Requests as Requests
    from optimizer.problem import Schedule as Schedule
    from optimizer.problem import StepTime as StepTime
    from optimizer.problem import with_knowledge as with_knowledge
    from optimizer.simulator import Simulation as Simulation
    from optimizer.simulator import simulate as simulate
    from optimizer.traces import embedded as embedded
    from optimizer.traces import generate as generate
    from optimizer.traces import instance as instance
    from optimizer.traces import list_instances as list_instances
    from optimizer.traces import read_trace as read_trace

    __version__: str

_HOMES = {
    "optimizer.capacity": ("engine",),
    "optimizer.comparison": ("Comparison", "compare"),
    "optimizer.errors": ("InputError", "OptimizerError", "PolicyError"),
    "optimizer.offline": ("Result", "solve"),
    "optimizer.policies": ("make_policy", "policy_names"),
    "optimizer.problem": (
        "Engine", "Instance", "Metrics", "Requests", "Schedule", "StepTime", "with_knowledge",
    ),
    "optimizer.simulator": ("Simulation", "simulate"),
    "optimizer.traces": ("embedded", "generate", "instance", "list_instances", "read_trace"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from optimizer.version import package_version

        value: Any = package_version()
    elif name in _HOME_OF:
        from importlib import import_module

        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'optimizer' has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, "__version__"})
