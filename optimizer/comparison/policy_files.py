"""Policies from a user's own file: load it here, and again, the same text, in every worker process.

The file becomes a module whose name follows from its path, so that an object pickled in one process is
found in another that has loaded the file too.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from optimizer.errors import InputError
from optimizer.policies import make_policy, policy_names

SKELETON = '''\
"""Last come, first served."""

from dataclasses import dataclass

from optimizer.policies import register
from optimizer.policies.vllm_v1 import VllmV1
from optimizer.simulator.queues import KeyQueue


@register("lcfs")
@dataclass
class LastComeFirstServed(VllmV1):
    """Last come, first served: vLLM V1's steps, waiting requests in reverse order of arrival."""

    arrivals_queue_behind = False  # an arrival may go before those that wait

    def queue(self, state):
        """Give the queue of waiting requests: the smallest key is served first."""
        return KeyQueue(lambda request: -state.arrival[request])
'''
"""A whole policy, for people who write their first."""

_FIELD = "policy-file"


@dataclass(frozen=True)
class PolicyFile:
    """A file that was loaded.

    Attributes
    ----------
    path
        Resolved.
    source
        Its bytes, as they were executed.
    names
        Policies that it registered.
    """

    path: str
    source: bytes
    names: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Fingerprint of the source."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def module(self) -> str:
        """Name of the module that it becomes."""
        return f"optimizer_policy_file_{hashlib.sha256(self.path.encode()).hexdigest()[:16]}"


_LOADED: dict[str, PolicyFile] = {}


def load_policy_file(path: str | Path) -> tuple[str, ...]:
    """Execute a Python file that registers policies; give their names.

    The policies are then known by name here and in the processes of `compare`. Files beside it can be
    imported from it. A file that is loaded already is not executed again.

    Parameters
    ----------
    path
        A file with at least one class decorated with `@register("name")`.

    Raises
    ------
    InputError
        If the file cannot be read, raises, or registers nothing; names the line.
    """
    shown, found = str(path), Path(path)
    try:
        resolved, source = str(found.resolve()), found.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=shown, field=_FIELD) from None
    there = _LOADED.get(resolved)
    if there is not None:
        if there.source != source:
            raise InputError("has changed since it was loaded; start a new process", file=shown, field=_FIELD)
        return there.names
    before = set(policy_names())
    _execute(PolicyFile(resolved, source), shown)
    names = tuple(name for name in policy_names() if name not in before)
    if not names:
        raise InputError(
            f'registers no policy; expected a class with @register("name"), such as:\n\n{SKELETON}',
            file=shown, field=_FIELD,
        )  # fmt: skip
    for name in names:
        _see_that_it_can_be_made(name, shown)
    _LOADED[resolved] = PolicyFile(resolved, source, names)
    return names


def loaded_policy_files() -> tuple[PolicyFile, ...]:
    """Give the files loaded in this process, in that order."""
    return tuple(_LOADED.values())


def policy_file_of(name: str) -> PolicyFile | None:
    """Give the file that registered a policy; None for those of the package."""
    return next((file for file in _LOADED.values() if name in file.names), None)


def told_with_place(error: BaseException) -> str:
    """Give the message of an error, and where in a policy file it arose, if it did in one."""
    for cause in (error, error.__cause__):
        for path in _LOADED:
            line = _line(cause, path)
            if line is not None:
                return f"{error} ({Path(path).name}, line {line})"
    return str(error)


def install(file: PolicyFile) -> None:
    """Load a file in a worker process, with the text that the parent had."""
    _execute(file, file.path)
    _LOADED[file.path] = file


def _execute(file: PolicyFile, shown: str) -> None:
    folder = str(Path(file.path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = ModuleType(file.module)
    module.__file__ = file.path
    sys.modules[file.module] = module
    try:
        exec(compile(file.source, file.path, "exec", dont_inherit=True), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a policy file has no say over the program
        del sys.modules[file.module]
        raise InputError(_told(error), file=shown, line=_line(error, file.path), field=_FIELD) from error


def _told(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"raises {type(error).__name__}: {error}" if str(error) else f"raises {type(error).__name__}"


def _line(error: BaseException | None, path: str) -> int | None:
    """Find the innermost line of the file that took part in the error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or None
    frames = traceback.extract_tb(None if error is None else error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)


def _see_that_it_can_be_made(name: str, shown: str) -> None:
    try:
        make_policy(name)
    except Exception as error:
        raise InputError(
            f"policy {name!r} cannot be made with its defaults: {error}; every option needs one",
            file=shown, field=_FIELD,
        ) from error  # fmt: skip
