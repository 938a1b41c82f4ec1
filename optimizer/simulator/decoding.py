"""Requests that decode in lockstep: none of them is touched while a run of steps goes by.

All requests that decode advance together, one token per step. So each remembers at which value of the common
decode clock it would have had no token at all, and everything else (its context, what it generated, when it
finishes) is that number and the clock. The KV blocks they take in the next k steps depend only on how many
of them stand at each offset within a block: `_offsets` counts them.

This is where the true output lengths are known; what a policy sees is `EngineState`, which builds on it.
"""

from __future__ import annotations

from heapq import heappop, heappush

from optimizer.problem.requests import Requests
from optimizer.simulator.recorder import Recorder

UNLIMITED = 1 << 60


class DecodeGroup:
    """The requests that decode, and the tokens that all requests hold.

    Attributes
    ----------
    clock
        Decode steps so far.
    num_decoding
        How many decode.
    context_sum
        Tokens that they hold.
    prompt_tokens, computed
        By request; `computed`: tokens in the KV cache, for requests that do not decode.
    admission
        By request: a number that grows with every admission.
    """

    __slots__ = (
        "_finish", "_generated", "_heap", "_next_end", "_offsets", "_output", "_size",
        "admission", "block_tokens", "clock", "computed", "context_sum", "num_decoding", "prompt_tokens", "recorder",
    )  # fmt: skip

    def __init__(self, requests: Requests, block_tokens: int) -> None:
        n = self._size = len(requests)
        self.prompt_tokens: list[int] = requests.prompt_tokens.tolist()
        self._output: list[int] = requests.output_tokens.tolist()
        self.block_tokens = block_tokens
        self.clock = self.context_sum = self.num_decoding = 0
        self.computed = [0] * n
        self.admission = [0] * n
        # While a request decodes: its output tokens less the clock, and the clock at its end; else its output
        # tokens, and -1.
        self._generated = [0] * n
        self._finish = [-1] * n
        self._offsets = [0] * block_tokens
        self._heap: list[int] = []
        self._next_end = UNLIMITED
        self.recorder = Recorder(n)

    def is_decoding(self, request: int) -> bool:
        """Whether the request takes part in decode steps."""
        return self._finish[request] >= 0

    def generated(self, request: int) -> int:
        """Give the output tokens that the request has so far."""
        base = self._generated[request]
        return base + self.clock if self._finish[request] >= 0 else base

    def context(self, request: int) -> int:
        """Give the tokens that the request has in the KV cache."""
        if self._finish[request] >= 0:
            return self.prompt_tokens[request] + self._generated[request] + self.clock - 1
        return self.computed[request]

    def decode_need(self, steps: int = 1) -> int:
        """Give the blocks that the decoding requests take in the next `steps` steps."""
        b = self.block_tokens
        cycles, rest = divmod(steps, b)
        need = cycles * self.num_decoding
        if rest:
            offsets, start = self._offsets, self.clock % b
            end = start + rest
            need += sum(offsets[start:end]) if end <= b else sum(offsets[start:]) + sum(offsets[: end - b])
        return need

    def _join(self, request: int, generated: int) -> None:
        """Let a request decode from the next decode step on; `generated` tokens are out."""
        base = self._generated[request] = generated - self.clock
        finish = self._finish[request] = self._output[request] - base
        self._offsets[(1 - self.prompt_tokens[request] - base) % self.block_tokens] += 1
        self.context_sum += self.prompt_tokens[request] + generated - 1
        self.num_decoding += 1
        heappush(self._heap, finish * self._size + request)
        if finish < self._next_end:
            self._next_end = finish
        recorder = self.recorder
        recorder.opened[request] = recorder.flushed + len(recorder.runs)

    def _leave(self, request: int) -> None:
        """Take a request out of the decoding ones."""
        base = self._generated[request]
        self._offsets[(1 - self.prompt_tokens[request] - base) % self.block_tokens] -= 1
        self.context_sum -= self.prompt_tokens[request] + base + self.clock - 1
        self.num_decoding -= 1
        self._generated[request] = base + self.clock
        self._finish[request] = -1
        self.recorder.left(request)

    def pop_finished(self) -> list[int]:
        """Take the requests that finish now out of the decoding ones, in order of admission."""
        heap, size, clock, finish = self._heap, self._size, self.clock, self._finish
        done = []
        while heap:
            end, request = divmod(heap[0], size)
            if finish[request] != end:  # it was thrown out or held back since, or this is a second entry
                heappop(heap)
            elif end > clock:
                break
            else:
                heappop(heap)
                self.computed[request] = self.prompt_tokens[request] + self._generated[request] + clock - 1
                self._leave(request)
                done.append(request)
        self._next_end = heap[0] // size if heap else UNLIMITED
        if len(done) > 1:
            done.sort(key=self.admission.__getitem__)
        return done

    def completed(self, request: int) -> bool:
        """Say whether a request whose prompt is done is finished by the token of that; if not, let it decode."""
        generated = self._generated[request] + 1
        if generated < self._output[request]:
            self._join(request, generated)
            return False
        self._generated[request] = generated
        return True
