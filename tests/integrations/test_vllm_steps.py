"""The step recorder, on a scheduler of vLLM's shape: what is computed, what is written, and that it never disturbs."""

from __future__ import annotations

import csv
import importlib
import logging
import sys
import types
from dataclasses import dataclass, field

import pytest

from optimizer.capacity.steplog import WORK, read_step_log
from optimizer.integrations import vllm_steps
from optimizer.integrations.vllm_steps import COLUMNS, StepLogger, StepRecorder


@dataclass
class New:
    req_id: str
    prompt_token_ids: list[int]
    num_computed_tokens: int = 0


@dataclass
class Cached:
    """Those scheduled before: name, tokens computed before the step, tokens generated, whether it was preempted."""

    req_ids: list[str] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    num_output_tokens: list[int] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)


@dataclass
class Output:
    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[New] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    finished_req_ids: set[str] = field(default_factory=set)
    preempted_req_ids: set[str] | None = None

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


class Scheduler:
    """Gives the outputs that it was made with."""

    def __init__(self, outputs: list[Output], requests: dict[str, object] | None = None) -> None:
        self.outputs = iter(outputs)
        self.requests = {"a": object()} if requests is None else requests
        self.ended = False

    def schedule(self) -> Output:
        return next(self.outputs)

    def update_from_output(self, scheduler_output: Output, model_output: object) -> str:
        return "updated"

    def shutdown(self) -> None:
        self.ended = True


class Logged(StepLogger, Scheduler):
    pass


def new(name: str, prompt: int, hit: int = 0) -> New:
    return New(name, [1] * prompt, hit)


STORY = [
    Output({"a": 100, "b": 28}, [new("a", 100), new("b", 60)]),
    Output({"a": 1, "b": 32}, [], Cached(["a", "b"], [100, 28], [1, 0])),
    Output({"a": 1, "b": 1, "c": 8}, [new("c", 24, hit=16)], Cached(["a", "b"], [101, 60], [2, 1])),
    Output({}),
    # a is thrown out; it had generated three tokens.
    Output({"b": 1, "c": 1}, [], Cached(["b", "c"], [61, 24], [2, 1]), preempted_req_ids={"a"}),
    Output(
        {"b": 1, "a": 90}, [], Cached(["b", "a"], [62, 0], [3, 3], {"a"}), finished_req_ids={"c"},
    ),
    Output({"b": 1, "a": 13}, [], Cached(["b", "a"], [63, 90], [4, 3])),
    Output({"b": 1, "a": 1}, [], Cached(["b", "a"], [64, 103], [5, 4])),
]  # fmt: skip
# prefill_tokens, prefill_seqs, prefill_attention, decode_seqs, decode_context, preempted, finished
ROWS = [
    (128, 2, 5050 + 28 * 29 // 2, 0, 0, 0, 0),
    (32, 1, 32 * 28 + 32 * 33 // 2, 1, 101, 0, 0),
    (8, 1, 8 * 16 + 36, 2, 102 + 61, 0, 0),
    (0, 0, 0, 2, 62 + 25, 1, 0),
    (90, 1, 90 * 91 // 2, 1, 63, 0, 1),
    (13, 1, 13 * 90 + 13 * 14 // 2, 1, 64, 0, 0),
    (0, 0, 0, 2, 65 + 104, 0, 0),
]


@pytest.fixture
def log_file(tmp_path, monkeypatch):
    path = tmp_path / "steps.csv"
    monkeypatch.setenv(vllm_steps.LOG_FILE, str(path))
    return path


def drive(scheduler: Scheduler, steps: int) -> None:
    for _ in range(steps):
        assert scheduler.update_from_output(scheduler.schedule(), None) == "updated"


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def numbers(rows):
    return [tuple(int(row[name]) for name in COLUMNS[4:]) for row in rows]


def test_each_step_becomes_a_row(log_file, monkeypatch):
    monkeypatch.setenv(vllm_steps.WORKLOAD, 'chat, "long"')
    scheduler = Logged(STORY)
    drive(scheduler, len(STORY))
    assert not log_file.exists(), "few rows wait for a good moment"
    scheduler.shutdown()
    assert scheduler.ended
    rows = rows_of(log_file)
    assert tuple(rows[0]) == COLUMNS
    assert numbers(rows) == ROWS
    assert {row["workload"] for row in rows} == {'chat, "long"'}
    log = read_step_log(log_file)
    assert (log.step_s > 0).all()
    assert log.start_s[0] == 0.0
    assert log.work[:, WORK.index("decode_context")].tolist() == [row[4] for row in ROWS]


def test_asynchronous_steps_find_their_own_tokens(log_file):
    scheduler = Logged(STORY)
    waiting: list[Output] = []
    for _ in STORY:
        waiting.append(scheduler.schedule())
        if len(waiting) > 2:
            scheduler.update_from_output(waiting.pop(0), None)
    for output in waiting:
        scheduler.update_from_output(output, None)
    scheduler.shutdown()
    assert numbers(rows_of(log_file)) == ROWS
    log = read_step_log(log_file)
    assert (log.start_s[1:] < log.completed_s[:-1]).any()


def test_a_step_without_tokens_back_is_left_out_and_the_next_is_right(log_file):
    scheduler = Logged(STORY)
    scheduler.schedule()
    drive(scheduler, len(STORY) - 1)
    scheduler.shutdown()
    assert numbers(rows_of(log_file)) == ROWS[1:]


def test_it_writes_when_nobody_waits_and_in_pieces(log_file, monkeypatch):
    idle = Logged(STORY, requests={})
    drive(idle, 1)
    assert len(rows_of(log_file)) == 1
    monkeypatch.setattr(vllm_steps, "_PIECE_ROWS", 3)
    busy = Logged(STORY)
    drive(busy, 5)
    second = log_file.with_name("steps-2.csv")
    assert len(rows_of(second)) == 3, "a second engine has a file of its own"
    busy.shutdown()
    assert len(rows_of(second)) == 4


def test_a_log_that_cannot_be_written_is_told_once_and_serves_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(vllm_steps.LOG_FILE, str(tmp_path / "missing" / "steps.csv"))
    scheduler = Logged(STORY, requests={})
    with caplog.at_level(logging.WARNING):
        drive(scheduler, len(STORY))
        scheduler.shutdown()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "missing/steps.csv ends here: FileNotFoundError" in caplog.text
    assert scheduler.ended


def test_an_output_of_another_shape_is_told_once_and_serves_on(log_file, caplog):
    strange = [types.SimpleNamespace(finished_req_ids=(), total_num_scheduled_tokens=3) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        drive(Logged(strange), 3)
    assert len(caplog.records) == 1
    assert "AttributeError" in caplog.text


def test_errors_of_the_scheduler_are_its_own(log_file):
    scheduler = Logged([])
    with pytest.raises(StopIteration):
        scheduler.schedule()
    assert scheduler._recorder is not None


def test_without_a_file_nothing_is_recorded(monkeypatch):
    monkeypatch.delenv(vllm_steps.LOG_FILE, raising=False)
    scheduler = Logged(STORY)
    drive(scheduler, len(STORY))
    assert scheduler._recorder is None


def test_tokens_that_never_come_do_not_fill_the_memory(log_file):
    recorder = StepRecorder(log_file)
    for _ in range(1000):
        recorder.scheduled(Output({"a": 5}, [new("a", 5)]), 0.0, 0.1)
    assert len(recorder._in_flight) <= vllm_steps._MOST_IN_FLIGHT


def test_finished_requests_are_forgotten(log_file):
    recorder = StepRecorder(log_file)
    for number in range(50):
        name = str(number)
        recorder.scheduled(Output({name: 4}, [new(name, 9)], finished_req_ids={str(number - 1)}), 0.0, 0.1)
    assert len(recorder._prompt) == len(recorder._goal) == 1


def test_the_logged_schedulers_are_made_when_asked_for(monkeypatch, log_file):
    assert "vllm" not in sys.modules or "vllm_steps" not in str(sys.modules["vllm"])
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name in ("Scheduler", "AsyncScheduler"):
        place = f"vllm.v1.core.sched.{'scheduler' if name == 'Scheduler' else 'async_scheduler'}"
        module = types.ModuleType(place)
        setattr(module, name, type(name, (Scheduler,), {}))
        monkeypatch.setitem(sys.modules, place, module)
    for name in ("LoggedScheduler", "LoggedAsyncScheduler"):
        made = getattr(importlib.import_module("optimizer.integrations.vllm_steps"), name)
        vllm_steps.__dict__.pop(name)
        assert made.__name__ == name
        assert issubclass(made, StepLogger)
        assert issubclass(made, Scheduler)
        drive(made(list(STORY)), 2)
    with pytest.raises(AttributeError, match="LoggedNothing"):
        _ = vllm_steps.LoggedNothing


def test_without_vllm_only_the_schedulers_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError):
        _ = vllm_steps.LoggedScheduler
