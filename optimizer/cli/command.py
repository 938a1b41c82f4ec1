"""How a function becomes a command: groups of options are spread, errors end as one line and an exit code."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import typer

from optimizer.cli import INTERRUPTED

ANSWER_IS_NO, WRONG_INPUT, DEFECT = 1, 2, 3
Body = Callable[..., None]


def command(app: typer.Typer, name: str, *, examples: Sequence[str]) -> Callable[[Body], Body]:
    """Register a function as the command `name`.

    A parameter that is annotated with a dataclass stands for a group of options, one per field: commands
    share options by sharing the class. The examples go to the end of the help.
    """

    def enter(body: Body) -> Body:
        # In rich help a blank line keeps lines apart; a single line break would be lost.
        epilog = "\n\n".join(("Examples:", *examples))
        # A docstring breaks its lines for the source; the terminal has a width of its own.
        paragraphs = (inspect.getdoc(body) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        app.command(name, epilog=epilog, help=text)(_guarded(_spread(body)))
        return body

    return enter


def _spread(body: Body) -> Body:
    """Give a function with the fields of its dataclass parameters as parameters of its own."""
    hints = get_type_hints(body, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, own in inspect.signature(body).parameters.items():
        if name in groups:
            parameters += _fields(groups[name])
        else:
            parameters.append(own.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def spread(**given: Any) -> None:
        made = {
            name: kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        body(**made, **given)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]


def _guarded(body: Body) -> Body:
    """Give a function that ends with a message and an exit code, never with a traceback."""

    def guarded(**given: Any) -> None:
        from optimizer.errors import OptimizerError

        try:
            body(**given)
        except OptimizerError as error:
            raise _end(f"error: {error}", WRONG_INPUT, error) from None
        except KeyboardInterrupt:
            raise _end("interrupted", INTERRUPTED) from None
        except (typer.Exit, BrokenPipeError):
            raise
        except MemoryError as error:
            raise _end(
                "error: the memory was used up; take fewer requests (--count)", WRONG_INPUT, error
            ) from None
        except Exception as error:
            text = (
                f"error: this should not have happened: {type(error).__name__}: {error}\n"
                "This is a defect of optimizer. Please report it with the command, the output of\n"
                "`optimizer --version`, and what OPTIMIZER_DEBUG=1 prints when it is set."
            )
            raise _end(text, DEFECT, error) from None

    guarded.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
    guarded.__annotations__ = body.__annotations__
    return guarded


def _end(message: str, code: int, error: BaseException | None = None) -> typer.Exit:
    if error is not None and os.environ.get("OPTIMIZER_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    print(message, file=sys.stderr)
    return typer.Exit(code)
