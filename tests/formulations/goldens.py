"""The toy models whose exports lie in models/formulations; `python -m tests.formulations.goldens` writes them anew."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from optimizer.catalogue import catalogue_path
from optimizer.formulations import chunks, hindsight, hybrid, packing, ramps
from optimizer.formulations.stages import Stages
from optimizer.formulations.steps import build_steps
from optimizer.problem import Engine, Instance, Requests, StepPiece, StepRegime, StepTime
from optimizer.problem.ramps import Ramps

FOLDER = catalogue_path("models") / "formulations"


def lp(problem) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.lp")
        problem.writeLP(str(path))
        return path.read_text()


def hybrid_toy() -> Stages:
    return Stages((60, 50, 40), (3, 4, 3), 2, 1.0, ((64, 2.0), (128, 3.0)), kv_tokens=180)


def packing_toy() -> packing.Packing:
    return packing.Packing((5, 5, 4, 4, 3, 3, 3), clients=3)


def hindsight_toy() -> Ramps:
    return Ramps.of([2, 2, 1], [3, 3, 2], capacity=6, arrival=[0, 0, 1], seats=2)


def steps_toy() -> Instance:
    engine = Engine(name="toy", kv_blocks=5, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": [2, 2], "output_tokens": [3, 2]})
    return Instance("two", requests, engine, "makespan")


def chunks_toy() -> dict:
    """Two prompts beside one request that decodes: floor and work compete, and the context grows."""
    step_time = StepTime(
        regimes=(
            StepRegime(
                pieces=(
                    StepPiece(base_s=0.010, per_decode_context_s=1e-5),
                    StepPiece(
                        base_s=0.002,
                        per_prefill_token_s=2e-4,
                        per_prefill_attention_s=1e-6,
                        per_decode_context_s=1e-5,
                    ),
                )
            ),
        )
    )
    engine = Engine(name="toy", kv_blocks=99, step_time=step_time)
    found = {}
    for objective in ("prefill-time", "ttft"):
        done = chunks.solve(engine, [60, 100], tbt_s=0.015, decoding=[100], objective=objective, granule=10)
        found[objective] = {"value_s": done.value, "steps": done.solution.steps}
    return found


def exports() -> dict[str, str]:
    """Text by file name."""
    return {
        "hybrid.lp": lp(hybrid.build(hybrid_toy()).problem),
        "packing.lp": lp(packing.build_milp(packing_toy()).problem),
        "packing.cpsat.txt": str(packing.build_cp(packing_toy()).model.proto),
        "hindsight.lp": lp(hindsight.build(hindsight_toy()).problem),
        "ramps.cpsat.txt": str(ramps.build(hindsight_toy()).model.proto),
        "steps.cpsat.txt": str(build_steps(steps_toy(), preempt=False).model.proto),
        "chunks.json": "".join(json.dumps({name: found}) + "\n" for name, found in chunks_toy().items()),
    }


if __name__ == "__main__":
    for name, text in exports().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
