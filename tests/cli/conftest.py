"""The command line in this process, and small inputs for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from optimizer.cli import main
from optimizer.problem import Engine, StepTime


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def trace(tmp_path):
    """Five requests with arrivals, and tenants."""
    path = tmp_path / "five.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,tenant\n0,100,5,a\n0.5,200,7,b\n1,50,1,a\n2,300,20,b\n4,10,3,a\n"
    )
    return path


@pytest.fixture
def lengths(tmp_path):
    """Four requests without arrivals."""
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "".join(f"{40 * i},{10 * i}\n" for i in range(1, 5)))
    return path


@pytest.fixture
def toy_engine():
    return Engine(
        name="toy", kv_blocks=200, max_num_batched_tokens=512, max_num_seqs=16,
        step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-5, per_decode_seq_s=1e-4),
    )  # fmt: skip
