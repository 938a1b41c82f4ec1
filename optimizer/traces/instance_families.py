"""Families of instances: what a `family.yaml` of the catalogue says, and the instances that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from optimizer.capacity import engine as engine_of
from optimizer.capacity.yaml_files import read_model, validated
from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.problem import Engine, Instance, with_knowledge
from optimizer.problem.engine import Frozen
from optimizer.problem.instance import Objective
from optimizer.traces.instance_laws import Drawn, draw, law_names

FILE = "family.yaml"
_SEED = "{seed}"


class InstanceSet(Frozen):
    """Instances that differ in nothing but the seed, or a single one.

    Attributes
    ----------
    name
        Within the family; `{seed}` stands for the seed.
    law
        What requests are drawn by (`optimizer.traces.instance_laws`).
    requests
        How many; two numbers: a whole number drawn between them, both included.
    parameters
        Of the law.
    seeds
        How many instances there are, with seeds 0, 1, ...; None: one.
    seed
        That of a single instance.
    objective, engine, source
        Where they differ from the family's.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*(\{seed\})?$")
    law: str
    requests: int | tuple[int, int]
    parameters: dict[str, Any] = Field(default_factory=dict)
    seeds: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    objective: Objective | None = None
    engine: dict[str, Any] | None = None
    source: str = ""

    @field_validator("law")
    @classmethod
    def _is_known(cls, law: str) -> str:
        if law not in law_names():
            raise ValueError(f"is no law; expected one of {', '.join(law_names())}")
        return law

    @model_validator(mode="after")
    def _a_seed_shows_in_the_name(self) -> InstanceSet:
        if (_SEED in self.name) != (self.seeds is not None):
            raise ValueError(f"{_SEED} in the name and the number of seeds go together; give both or none")
        return self

    @property
    def least_and_most(self) -> tuple[int, int]:
        """Fewest and most requests."""
        return self.requests if isinstance(self.requests, tuple) else (self.requests, self.requests)

    def names(self) -> Iterator[str]:
        """Give the name of every instance."""
        for seed in range(self.seeds or 1):
            yield self.name.replace(_SEED, str(seed))

    def seed_of(self, name: str) -> int | None:
        """Give the seed of an instance; None if the set has none of that name."""
        if self.seeds is None:
            return self.seed if name == self.name else None
        found = re.fullmatch(re.escape(self.name).replace(re.escape(_SEED), r"(0|[1-9]\d*)"), name)
        return int(found[1]) if found and int(found[1]) < self.seeds else None


class Family(Frozen):
    """A folder of the catalogue.

    Attributes
    ----------
    title
        A line on what it is.
    source, licence
        Where its numbers come from, and under which terms.
    objective
        Of every instance that names no other.
    engine
        Of every instance that has no other: fields of `Engine`, or `card` (a name that `optimizer.capacity.engine` knows)
        and fields that differ from the card's.
    sets
        What is drawn. An instance that is stored (`<name>.json`) needs no entry.
    """

    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    objective: Objective = "mean-latency"
    engine: dict[str, Any] | None = None
    sets: tuple[InstanceSet, ...] = ()

    @model_validator(mode="after")
    def _every_set_has_an_engine(self) -> Family:
        for one in self.sets:
            if one.engine is None and self.engine is None:
                raise ValueError(f"{one.name} has no engine, and the family has none; give one")
        return self

    def objective_of(self, one: InstanceSet) -> Objective:
        """Give the objective of a set."""
        return one.objective or self.objective

    def engine_of(self, one: InstanceSet) -> dict[str, Any]:
        """Give what is said of the engine of a set."""
        return one.engine or self.engine or {}


def family_names() -> tuple[str, ...]:
    """Name the families.

    >>> "gsm8k" in family_names()
    True
    """
    return tuple(sorted(path.parent.name for path in catalogue_path("instances").glob(f"*/{FILE}")))


def family_folder(name: str) -> Path:
    """Give the folder of a family."""
    return catalogue_path("instances") / name


def family(name: str) -> Family:
    """Read what a family says of itself.

    Raises
    ------
    InputError
        If its file is wrong; names the field.

    Examples
    --------
    >>> family("gsm8k").objective
    'makespan'
    """
    return _family(family_folder(name) / FILE)


@cache
def _family(path: Path) -> Family:
    return read_model(Family, path)


def build(family_name: str, name: str) -> Instance | None:
    """Draw an instance of a family; None if no set of the family has one of that name.

    Output lengths are known exactly: what less is known is a matter of the study, not of the instance.

    Raises
    ------
    InputError
        If law, parameters and engine do not go together; names the family's file.
    """
    of = family(family_name)
    file = str(family_folder(family_name) / FILE)
    for one in of.sets:
        seed = one.seed_of(name)
        if seed is None:
            continue
        try:
            drawn = draw(one.law, seed, one.requests, one.parameters, family_folder(family_name))
            engine = _engine(of.engine_of(one), drawn)
            return Instance(
                f"{family_name}/{name}",
                with_knowledge(drawn.requests, "exact"),
                engine,
                of.objective_of(one),
                _source(of, one, seed),
            )
        except InputError as error:
            if error.file is None:
                raise InputError(f"{one.name}: {error.problem}", file=file, field=error.field) from None
            raise
    return None


def _engine(said: dict[str, Any], drawn: Drawn) -> Engine:
    fields = {**said, **drawn.engine}
    card = fields.pop("card", None)
    return validated(Engine, fields) if card is None else engine_of(card, **fields)


def _source(of: Family, one: InstanceSet, seed: int) -> str:
    parameters = "".join(f", {key} {value}" for key, value in one.parameters.items())
    return f"{one.source or of.source}; law {one.law}{parameters}, seed {seed}; licence {of.licence}"
