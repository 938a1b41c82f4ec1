"""Every claim of best_known.json holds when it is checked again, and the file only ever gets better."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer import catalogue
from optimizer.check import check
from optimizer.errors import InputError
from optimizer.offline import best_known, solve
from optimizer.offline.best_known import improve, main
from optimizer.offline.known_values import Proof, read_best_known, read_proofs, recheck
from optimizer.policies.plan import PlanPolicy
from optimizer.problem.instance import Objective
from optimizer.problem.plan import plan_from_document
from optimizer.simulator import simulate
from optimizer.traces import instance, list_instances
from optimizer.traces import instance_families as families

QUICK = ("toy", "kv-ramps")
CLAIMS = [
    pytest.param(name, goal, id=f"{name}-{goal}", marks=[] if name.startswith(QUICK) else [pytest.mark.long])
    for name, entry in read_best_known().items()
    for goal in entry.objectives
]


@pytest.mark.parametrize(("name", "objective"), CLAIMS)
def test_every_claim_holds(name: str, objective: Objective) -> None:
    one, entry = instance(name), read_best_known()[name]
    assert entry.instance_sha256 == one.sha256
    known, proof = entry.objectives[objective], read_proofs(one)[objective]
    recheck(one, objective, known, proof)
    # And once more, in other words than those of `recheck`.
    chosen = proof.policy or PlanPolicy(plan_from_document(proof.plan))
    ran = simulate(one, chosen, seed=proof.seed)
    assert check(ran.schedule, one).ok
    if objective == "makespan":
        assert ran.metrics.makespan_s == pytest.approx(known.primal.value, rel=1e-9)
    if objective == "mean-latency":
        assert ran.metrics.e2e_s.mean() == pytest.approx(known.primal.value, rel=1e-9)
    assert known.dual is None or known.dual.value <= known.primal.value * (1 + 1e-9)


def test_all_claims_are_on_shipped_instances() -> None:
    assert set(read_best_known()) <= set(list_instances())
    assert "toy/packing" in read_best_known()
    folder = catalogue.catalogue_path("instances") / "best_known"
    files = {path.relative_to(folder).as_posix().removesuffix(".json.gz") for path in folder.rglob("*.gz")}
    assert files == set(read_best_known())


# ---- a claim that does not hold is refused

NAME = "toy/packing"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            lambda known, proof: (known.model_copy(update={"primal": claim(known.primal, 8.5)}), proof),
            "primal",
        ),
        (
            lambda known, proof: (known.model_copy(update={"primal": claim(known.primal, 9.5)}), proof),
            "primal",
        ),
        (lambda known, proof: (known.model_copy(update={"dual": claim(known.dual, 9.001)}), proof), "dual"),
        (lambda known, proof: (known, proof.model_copy(update={"plan": None, "policy": "lpt"})), "primal"),
        (lambda known, proof: (known, proof.model_copy(update={"plan": None, "policy": None})), "plan"),
    ],
)
def test_a_claim_that_does_not_hold_is_refused(change: Callable, field: str) -> None:
    one = instance(NAME)
    known, proof = change(read_best_known()[NAME].objectives["makespan"], read_proofs(one)["makespan"])
    with pytest.raises(InputError) as error:
        recheck(one, "makespan", known, proof)
    assert error.value.field == field


def claim(known, value: float):
    return known.model_copy(update={"value": value})


def test_a_certificate_for_another_instance_or_objective_proves_nothing() -> None:
    one = instance(NAME)
    known, proof = read_best_known()[NAME].objectives["makespan"], read_proofs(one)["makespan"]
    other = read_proofs(instance("toy/free-chunks"))["makespan"].certificate
    with pytest.raises(InputError, match="another instance"):
        recheck(one, "makespan", known, proof.model_copy(update={"certificate": other}))
    assert proof.certificate is not None
    for_latency = proof.certificate | {"objective": "mean-latency"}
    with pytest.raises(InputError, match=r"proves .* for mean-latency"):
        recheck(one, "makespan", known, proof.model_copy(update={"certificate": for_latency}))
    with pytest.raises(InputError, match="no certificate"):
        recheck(one, "makespan", known, proof.model_copy(update={"certificate": None}))


# ---- the file gets better, and never worse


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a catalogue of the toys alone, without anything known."""
    inside = tmp_path / "optimizer" / "_catalogue"
    root = Path(__file__).parents[1]
    shutil.copytree(root / "instances" / "toy", inside / "instances" / "toy")
    (inside / "models").symlink_to(root / "models")
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "optimizer")
    families._family.cache_clear()
    return inside / "instances"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Give a function that sets what a solve answers: real results, taken further from or nearer to the truth."""

    def set_answer(**changes: object) -> None:
        def answer(one, **options):
            return replace(solve(one, **{**options, "time_limit_s": 60.0}), **changes)

        monkeypatch.setattr(best_known, "solve", answer)

    return set_answer


def lpt(name: str = NAME) -> dict[str, object]:
    """Give what is worse: the outcome of a policy."""
    ran = simulate(instance(name), "lpt")
    return {"primal": ran.metrics.makespan_s, "simulation": ran, "plan": None, "found_by": "lpt"}


def test_what_is_worse_changes_nothing_but_what_was_tried(own: Path, answers: Callable) -> None:
    answers()
    assert improve(NAME, time_limit_s=60).endswith("better: schedule and bound")
    before, proof = read_best_known()[NAME], read_proofs(instance(NAME))
    answers(**lpt(), certificate=None, dual=None, time_limit_s=90.0)
    assert improve(NAME, time_limit_s=90).endswith("better: nothing")
    after = read_best_known()[NAME].objectives["makespan"]
    known = before.objectives["makespan"]
    assert (after.primal, after.dual, after.tried_s) == (known.primal, known.dual, 90.0)
    assert read_proofs(instance(NAME)) == proof


def test_schedule_and_bound_get_better_on_their_own(own: Path, answers: Callable) -> None:
    answers(**lpt(), certificate=None, dual=None)
    assert improve(NAME, time_limit_s=60).endswith("better: schedule")
    known = read_best_known()[NAME].objectives["makespan"]
    assert (known.primal.value, known.primal.by, known.dual, known.gap) == (11.0, "lpt", None, None)
    assert read_proofs(instance(NAME))["makespan"].policy == "lpt"
    answers(**lpt())
    assert improve(NAME, time_limit_s=60).endswith("better: bound")
    answers(certificate=None, dual=None)
    assert improve(NAME, time_limit_s=60).endswith("better: schedule")
    known, proof = read_best_known()[NAME].objectives["makespan"], read_proofs(instance(NAME))["makespan"]
    assert (known.primal.value, known.gap) == (9.0, pytest.approx(0, abs=1e-9))
    assert proof.policy is None
    recheck(instance(NAME), "makespan", known, proof)


def test_objectives_of_an_instance_stand_side_by_side(own: Path) -> None:
    improve(NAME, time_limit_s=60)
    improve(NAME, objective="mean-latency", time_limit_s=0.3)
    improve("toy/give-way", time_limit_s=60)
    assert set(read_best_known()) == {NAME, "toy/give-way"}
    assert set(read_best_known()[NAME].objectives) == {"makespan", "mean-latency"}
    for goal, proof in read_proofs(instance(NAME)).items():
        recheck(instance(NAME), goal, read_best_known()[NAME].objectives[goal], proof)


def test_a_schedule_that_the_checker_refuses_is_not_kept(own: Path, answers: Callable) -> None:
    wrong = simulate(instance(NAME), "lpt").schedule
    wrong.finish_s[0] += 1
    answers(check=check(wrong, instance(NAME)))
    assert "the checker refuses" in improve(NAME, time_limit_s=60)
    assert read_best_known() == {}


def test_a_value_that_the_replay_does_not_give_is_not_kept(own: Path, answers: Callable) -> None:
    answers(primal=8.0)
    with pytest.raises(InputError, match=r"worth 9\.0, not 8\.0"):
        improve(NAME, time_limit_s=60)
    assert read_best_known() == {}


@pytest.mark.parametrize("harm", ["proof gone", "proof broken", "value", "instance"])
def test_what_does_not_hold_any_more_is_replaced(own: Path, capsys: pytest.CaptureFixture, harm: str) -> None:
    improve(NAME, time_limit_s=60)
    good = read_best_known()[NAME].objectives
    file, proofs = own / "best_known.json", own / "best_known" / f"{NAME}.json.gz"
    if harm == "proof gone":
        proofs.unlink()
    elif harm == "proof broken":
        proofs.write_bytes(gzip.compress(b"{}")[:-3])
    elif harm == "value":
        file.write_text(file.read_text().replace('"value": 9.0', '"value": 7.0'))
    else:
        stored = own / f"{NAME}.json"
        stored.write_text(stored.read_text().replace("three-seats", "other-seats"))
    capsys.readouterr()
    assert improve(NAME, time_limit_s=60).endswith("better: schedule and bound")
    assert ("does not hold any more" in capsys.readouterr().err) == (harm != "instance")
    found = read_best_known()[NAME]
    assert found.instance_sha256 == instance(NAME).sha256
    assert found.objectives["makespan"].primal.value == good["makespan"].primal.value == 9.0
    recheck(instance(NAME), "makespan", found.objectives["makespan"], read_proofs(instance(NAME))["makespan"])


def test_the_same_outcome_gives_the_same_bytes(own: Path) -> None:
    improve(NAME, time_limit_s=60)
    proofs = own / "best_known" / f"{NAME}.json.gz"
    before = proofs.read_bytes()
    improve(NAME, time_limit_s=60)
    assert proofs.read_bytes() == before


# ---- the command


def test_the_command_takes_names_families_and_patterns(own: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["toy/pack*", "toy/give-way", "toy/packing", "--time-limit", "60"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out] == [["[1/2]", "toy/packing"], ["[2/2]", "toy/give-way"]]
    assert main(["toy", "--time-limit", "0.2"]) == 0
    assert set(read_best_known()) == set(list_instances())


def test_it_resumes_where_something_is_to_be_won(own: Path, capsys: pytest.CaptureFixture) -> None:
    main(["toy", "--time-limit", "0.2"])
    main([NAME, "--time-limit", "60"])
    capsys.readouterr()
    assert main(["toy", "--time-limit", "0.2", "--resume"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["toy", "--time-limit", "0.3", "--resume"]) == 0
    tried = {line.split()[1] for line in capsys.readouterr().out.splitlines()}
    # Seven and six requests to order in 0.2 s: of these one is proved optimal, the other cannot be.
    assert "toy/prefill-levels" in tried
    assert NAME not in tried
    stored = own / f"{NAME}.json"
    stored.write_text(stored.read_text().replace("three-seats", "other-seats"))
    assert main([NAME, "--time-limit", "0.2", "--resume"]) == 0
    assert NAME in capsys.readouterr().out  # what is known of another instance is nothing


def test_ctrl_c_keeps_what_was_found_and_ends(
    own: Path, answers: Callable, capsys: pytest.CaptureFixture
) -> None:
    answers(limit="interrupted", seconds=0.1)
    assert main([NAME, "toy/give-way", "--time-limit", "60"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert set(read_best_known()) == {NAME}
    # It was not tried for as long as was asked.
    assert read_best_known()[NAME].objectives["makespan"].tried_s == 0.1


def test_a_wrong_name_ends_before_any_work(own: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["toy/packing", "toy/pakcing"]) == 2
    ended = capsys.readouterr()
    assert "did you mean toy/packing" in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("trouble", [InputError("no policy can serve it"), ZeroDivisionError("a defect")])
def test_trouble_with_one_instance_does_not_stop_the_others(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, trouble: Exception
) -> None:
    def refuse(one, **options):
        if one.name == "toy/give-way":
            raise trouble
        return solve(one, **options)

    monkeypatch.setattr(best_known, "solve", refuse)
    assert main(["toy/give-way", "toy/packing", "--time-limit", "60"]) == 1
    ended = capsys.readouterr()
    assert f"{type(trouble).__name__}: {trouble}" in ended.out
    # A defect is shown whole; what is said on purpose needs no traceback.
    assert ("Traceback" in ended.err) == isinstance(trouble, ZeroDivisionError)
    assert set(read_best_known()) == {"toy/packing"}


def test_a_broken_file_is_named(own: Path) -> None:
    (own / "best_known.json").write_text(
        json.dumps({"schema": "optimizer/best-known@1", "instances": {"a": {}}})
    )
    with pytest.raises(InputError, match="instance_sha256") as error:
        read_best_known()
    assert str(error.value.file).endswith("best_known.json")


def test_a_proof_names_a_plan_or_a_policy() -> None:
    with pytest.raises(InputError, match="neither a plan nor a policy"):
        recheck(instance(NAME), "makespan", read_best_known()[NAME].objectives["makespan"], Proof())
