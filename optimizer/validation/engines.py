"""Which engine card stands for the engine that a run was measured on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optimizer.capacity import engine, engine_card, list_engines
from optimizer.capacity.catalogue import near
from optimizer.errors import InputError
from optimizer.problem import Engine
from optimizer.validation.runs import Limits

_CARD_FILES = (".yaml", ".yml")


def engine_of(limits: Limits, file: str, given: Mapping[str, str]) -> tuple[str, Engine]:
    """Find the engine of a run: (name or path of the card, engine).

    Parameters
    ----------
    limits
        Of the run.
    file
        For messages.
    given
        From models to engines; it comes first.

    Raises
    ------
    InputError
        If no card has the model's name, or several have.
    """
    name = given.get(limits.model) or _card_named(limits.model, file)
    return name, engine(name)


def _card_named(model: str, file: str) -> str:
    """Find the card: `llama-65b-fp8` has one of that name, `llama3.1-8b-bf16` one without its ending.

    16 bits are what every engine without an ending in its name runs in; fp8 is another engine.
    """
    # A run was measured: no estimate stands for its engine, and of several GPUs it is the one whose card was measured.
    known = [card for card in list_engines() if engine_card(card).origin != "estimated"]
    measured = [card for card in known if engine_card(card).origin == "measured"]
    for name in dict.fromkeys((model.lower(), re.sub(r"-(bf16|fp16|float16|bfloat16)$", "", model.lower()))):
        cards = [card for card in known if card.partition("@")[0] == name]
        for fitting in (cards, [card for card in cards if card in measured]):
            if len(fitting) == 1:
                return fitting[0]
        if cards:
            problem = f"there are several engine cards for {model!r}: {', '.join(cards)}"
            raise InputError(f"{problem}; say --engine-for {model}={cards[0]}", file=file, field="model")
    models = sorted({card.partition("@")[0] for card in known})
    remedy = f"say --engine-for {model}=CARD, where CARD is an engine (optimizer engines lists them) or a .yaml file"
    raise InputError(
        f"no engine card for {model!r}; {remedy}; {near(model, models)}", file=file, field="model"
    )


def took_part(card: str, limits: Limits) -> bool:
    """Say whether a card's coefficients were fitted to a run, by what the card states."""
    if not card.endswith(_CARD_FILES) and card not in list_engines():
        return False
    return f"{limits.model}-{limits.workload}" in engine_card(card).fitted_runs
