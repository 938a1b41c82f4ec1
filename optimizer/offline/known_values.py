"""The best values known of the shipped instances: read, written, checked again.

`best_known.json` of the catalogue has the values; beside it, a file per instance has the plans and certificates.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from optimizer.capacity.yaml_files import validated
from optimizer.catalogue import catalogue_path
from optimizer.certificates import verify
from optimizer.check import check
from optimizer.errors import InputError
from optimizer.offline.objective import value_of
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Instance
from optimizer.problem.engine import Frozen
from optimizer.problem.files import written_whole
from optimizer.problem.gap import gap
from optimizer.problem.instance import Objective, read_json
from optimizer.problem.plan import plan_from_document
from optimizer.simulator import Simulation, simulate

SCHEMA: Final = "optimizer/best-known@1"
PROOF_SCHEMA: Final = "optimizer/best-known-proof@1"
EQUAL = 1e-9
"""Values that differ by less, relatively, are equal: a bound is rounded to a float, a moment to a nanosecond."""


class Claim(Frozen):
    """A value, and how it came about.

    Attributes
    ----------
    value
        In the units of the objective.
    by
        Primal: what found the schedule. Dual: the kind of the certificate.
    date, seconds, version
        When, after how many seconds of a solve, and by which version of this package.
    """

    value: float
    by: str
    date: str
    seconds: float = Field(ge=0)
    version: str


class Known(Frozen):
    """What is known of one objective of an instance.

    Attributes
    ----------
    primal
        The best schedule.
    dual
        The best bound that a certificate proves; None: there is none.
    tried_s
        The longest time limit that was tried.
    """

    primal: Claim
    dual: Claim | None = None
    tried_s: float = Field(gt=0)

    @property
    def gap(self) -> float | None:
        """(primal - dual) / primal; None where no bound is known."""
        return gap(self.primal.value, None if self.dual is None else self.dual.value)


class Entry(Frozen):
    """What is known of an instance.

    Attributes
    ----------
    instance_sha256
        Of the instance that it is known of.
    objectives
        By name.
    """

    instance_sha256: str
    objectives: dict[Objective, Known] = Field(default_factory=dict)


class Proof(Frozen):
    """What lets somebody else check the claims on one objective.

    Attributes
    ----------
    policy, seed
        The policy that gave the best schedule, where no plan did.
    plan
        The plan that gave it.
    certificate
        Of the bound.
    """

    policy: str | None = None
    seed: int = 0
    plan: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None


class _Entries(Frozen):
    schema_: Literal["optimizer/best-known@1"] = Field(SCHEMA, alias="schema")
    instances: dict[str, Entry] = Field(default_factory=dict)


class _Proofs(Frozen):
    schema_: Literal["optimizer/best-known-proof@1"] = Field(PROOF_SCHEMA, alias="schema")
    instance: str
    instance_sha256: str
    objectives: dict[Objective, Proof] = Field(default_factory=dict)


def read_best_known() -> dict[str, Entry]:
    """Read what is known, by the name of the instance.

    Raises
    ------
    InputError
        If the file is broken; names the field.

    Examples
    --------
    >>> known = read_best_known()["toy/packing"].objectives["makespan"]
    >>> known.primal.value, round(known.gap, 9)
    (9.0, 0.0)
    """
    path = _entries_path()
    if not path.is_file():
        return {}
    return validated(_Entries, read_json(path), file=str(path)).instances


def read_proofs(instance: Instance) -> dict[Objective, Proof]:
    """Read the plans and certificates behind the claims on a shipped instance.

    Raises
    ------
    InputError
        If there are none, or they are of another instance of that name.
    """
    path = _proofs_path(instance.name)
    try:
        text = gzip.decompress(path.read_bytes())
        proofs = validated(_Proofs, json.loads(text), file=str(path))
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read: {error}", file=str(path)) from None
    if proofs.instance_sha256 != instance.sha256:
        raise InputError("belongs to another instance than the one of that name", file=str(path))
    return proofs.objectives


def recheck(instance: Instance, objective: Objective, known: Known, proof: Proof) -> None:
    """Check claims again: the plan is executed and judged, the certificate is verified.

    Parameters
    ----------
    instance, objective
        What the claims are about.
    known, proof
        The claims, and what they rest on.

    Raises
    ------
    InputError
        At the first claim that does not hold.
    """
    simulation = _replay(instance, proof)
    value = value_of(simulation.metrics, instance.requests, objective)
    if abs(value - known.primal.value) > EQUAL * max(1.0, abs(value)):
        raise InputError(
            f"{instance.name}: the plan is worth {value!r}, not {known.primal.value!r}", field="primal"
        )
    report = check(simulation.schedule, instance)
    if not report.ok:
        raise InputError(f"{instance.name}: the schedule breaks a rule: {report}", field="primal")
    if known.dual is not None:
        proved = verify(proof.certificate, instance)
        if proved.objective != objective or proved.rounded_down < known.dual.value:
            raise InputError(
                f"{instance.name}: the certificate proves {proved.rounded_down!r} for {proved.objective}, "
                f"not {known.dual.value!r} for {objective}",
                field="dual",
            )
        try:
            gap(value, proved.rounded_down)
        except ValueError as error:
            raise InputError(f"{instance.name}: {error}", field="dual") from None


def _replay(instance: Instance, proof: Proof) -> Simulation:
    if proof.plan is not None:
        return simulate(instance, PlanPolicy(plan_from_document(proof.plan)), seed=proof.seed)
    if proof.policy is None:
        raise InputError(f"{instance.name}: there is neither a plan nor a policy", field="plan")
    return simulate(instance, proof.policy, seed=proof.seed)


def write_best_known(instance: Instance, objective: Objective, known: Known, proof: Proof) -> None:
    """Put claims and their proof in the place of those on the same objective; others of the instance stay.

    Parameters
    ----------
    instance
        A shipped one, under its name.
    objective, known, proof
        As `recheck` passed them.

    Raises
    ------
    InputError
        If the catalogue cannot be written to.
    """
    name, sha256 = instance.name, instance.sha256
    path = _proofs_path(name)
    try:
        others = read_proofs(instance)
    except InputError:
        others = {}
    proofs = _Proofs(instance=name, instance_sha256=sha256, objectives=others | {objective: proof})
    text = json.dumps(proofs.model_dump(mode="json", by_alias=True), separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, "wb") as out:
        # Without a time stamp, so that the same proofs give the same bytes.
        out.write(gzip.compress(text.encode(), mtime=0))
    # Read again at the last moment: another process may have written its own meanwhile.
    entries = read_best_known()
    old = entries.get(name)
    known_of = dict(old.objectives) if old is not None and old.instance_sha256 == sha256 else {}
    entries[name] = Entry(instance_sha256=sha256, objectives=known_of | {objective: known})
    document = _Entries(instances=dict(sorted(entries.items()))).model_dump(mode="json", by_alias=True)
    with written_whole(_entries_path()) as out:
        out.write(json.dumps(document, indent=1) + "\n")


def _entries_path() -> Path:
    return catalogue_path("instances") / "best_known.json"


def _proofs_path(name: str) -> Path:
    return catalogue_path("instances") / "best_known" / f"{name}.json.gz"
