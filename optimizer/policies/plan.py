"""Policies that execute plans: `PlanPolicy(plan)` for `simulate`; no names of their own in the registry."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import PolicyError
from optimizer.policies.mechanism import ChunkedPrefill
from optimizer.policies.plan_order import PlanOrder, check_rows
from optimizer.problem.plan import OrderPlan, Plan, PlanStep, StepsPlan
from optimizer.simulator.queues import FifoQueue, WaitingQueue
from optimizer.simulator.state import EngineState
from optimizer.units import ticks


def PlanPolicy(plan: Plan) -> PlanOrder | PlanSteps:
    """Give the policy that executes a plan; a new one for every run.

    Parameters
    ----------
    plan
        In either form.

    Examples
    --------
    >>> from optimizer.problem import Engine, Instance, Requests, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=9, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [2, 2], "output_tokens": [3, 3]})
    >>> instance = Instance("two", requests, engine)
    >>> simulate(instance, PlanPolicy(OrderPlan.of_starts([2, 0], round_s=1.0))).schedule.finish_s.tolist()
    [5.0, 3.0]
    """
    return PlanOrder(plan) if isinstance(plan, OrderPlan) else PlanSteps(plan)


@dataclass
class PlanSteps(ChunkedPrefill):
    """Executes a `StepsPlan` to the letter; after its last step, vLLM's rule in order of arrival.

    A step that cannot be executed as it is written ends in a `PolicyError` that says why: nothing is mended in
    silence. Steps wait for the requests that they admit.
    """

    plan: StepsPlan

    name = "plan-steps"
    asks_always = True

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give a queue in order of arrival; the plan takes requests out of its middle."""
        self._queue = FifoQueue()
        return self._queue

    def start(self, state: EngineState) -> None:
        """Start with the first step."""
        self._next = 0
        for step in self.plan.steps:
            check_rows(
                [*(row for row, _ in step.prefill), *step.decode, *step.preempt], len(state.left), "steps"
            )

    def step(self, state: EngineState) -> None:
        """Compose the next step of the plan, or wait until it can start."""
        s = state
        if self._next == len(self.plan.steps):
            for request in list(s.held):
                s.resume(request)
            super().step(s)
            return
        step = self.plan.steps[self._next]
        if self._must_wait(s, step):
            s.stalled = True
            return
        self._next += 1
        s.hold = 1
        for request in step.preempt:
            if request not in s.running:
                raise self._refusal(s, request, "preempts", "it does not run")
            s.preempt(request)
        self._let_decode(s, step)
        for request, tokens in step.prefill:
            if request not in s.running:
                if request not in self._queue:
                    raise self._refusal(s, request, "prefills", "it has finished")
                self._queue.remove(request)
                s.admit(request)
            s.schedule(request, tokens)

    def _must_wait(self, s: EngineState, step: PlanStep) -> bool:
        if step.not_before_s is not None and s.now < ticks(step.not_before_s):
            s.wake_at(step.not_before_s)
            return True
        return any(row >= s.arrived for row, _ in step.prefill)

    def _let_decode(self, s: EngineState, step: PlanStep) -> None:
        chosen = set(step.decode)
        if not chosen:
            s.stalled = True  # cheaper than to hold everybody back
            return
        for request in list(s.running):
            if s.is_decoding(request):
                if request not in chosen:
                    s.hold_back(request)
            elif request in s.held:
                if request in chosen:
                    s.resume(request)
            elif request in chosen:
                raise self._refusal(s, request, "decodes", "its prompt is not computed yet")
        if len(chosen) != s.num_decoding:
            missing = min(request for request in chosen if not s.is_decoding(request))
            raise self._refusal(s, missing, "decodes", "it does not run")

    def _refusal(self, s: EngineState, request: int, does: str, why: str) -> PolicyError:
        return PolicyError(
            f"step {self._next - 1} of the plan {does} request {s.requests.name(request)} at {s.now_s:.6f} s: {why}; "
            "the plan does not belong to this instance"
        )
