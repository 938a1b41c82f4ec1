"""The catalogue of instances: every name gives what its line in the list says, the same every time, by the law of its family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from optimizer import catalogue
from optimizer.errors import InputError
from optimizer.problem import Instance
from optimizer.problem.ramps import Ramps, equal_round_s
from optimizer.problem.utilisation import decode_utilisation
from optimizer.simulator import simulate
from optimizer.traces import embedded, embedded_names, instance, list_instances, listed_instances
from optimizer.traces import instance_families as families
from optimizer.traces.instance_families import family, family_folder, family_names
from optimizer.traces.instance_laws import draw

ONE_OF_EACH = [f"{line.family}/{line.name.replace('{seed}', '0')}" for line in listed_instances()]
SMALL = [line for line in listed_instances() if line.most <= 2000 and line.family != "online"]


def test_the_families_are_there() -> None:
    wanted = {"toy", "gsm8k", "kv-ramps", "chat", "mixed-long", "gsm8k-like", "online", "large"}
    assert wanted == set(family_names())
    for name in wanted:
        assert (family_folder(name) / "README.md").is_file()


def test_names_are_unique_and_counted() -> None:
    names = list_instances()
    assert len(set(names)) == len(names) == sum(line.count for line in listed_instances())
    assert {f"gsm8k/paper-200-case-{k}" for k in range(100)} < set(names)
    assert not set(names) & set(embedded_names())


def test_listing_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "draw", None)
    assert list_instances()
    assert listed_instances()


@pytest.mark.parametrize("line", listed_instances(), ids=lambda line: f"{line.family}/{line.name}")
def test_an_instance_is_what_its_line_says(line) -> None:
    name = f"{line.family}/{line.name.replace('{seed}', str(line.count - 1))}"
    found = instance(name)
    assert found.name == name
    assert line.least <= len(found.requests) <= line.most
    assert (found.objective, found.engine.name) == (line.objective, line.engine)
    assert "MIT" in found.source
    known = found.requests.known
    assert known is not None
    assert np.array_equal(known.estimate, found.requests.output_tokens)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_name_gives_the_same_instance_every_time(name: str) -> None:
    assert instance(name).sha256 == instance(name).sha256


@pytest.mark.parametrize("line", [line for line in SMALL if line.count > 1], ids=lambda line: line.name)
def test_another_seed_gives_another_instance(line) -> None:
    one, other = (instance(f"{line.family}/{line.name.replace('{seed}', str(k))}") for k in (0, 1))
    assert one.requests.output_tokens.tolist() != other.requests.output_tokens.tolist()


@pytest.mark.long
def test_every_instance_can_be_had() -> None:
    for name in list_instances():
        assert instance(name).name == name


def test_an_instance_survives_its_file(tmp_path: Path) -> None:
    for name in ("kv-ramps/n16-online-0", "gsm8k/paper-200", "toy/give-way"):
        one = instance(name)
        one.write(tmp_path / "i.json")
        assert Instance.read(tmp_path / "i.json").sha256 == one.sha256


def test_the_trace_of_an_instance_brings_the_instance() -> None:
    trace = embedded("kv-ramps/n16-online-3")
    assert trace.instance is not None
    assert trace.has_arrivals
    assert not embedded("kv-ramps/n16-3").has_arrivals


# ---- names that are wrong


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gsm8k/paper200", "did you mean gsm8k/paper-200"),
        ("paper-200", "gsm8k/paper-200"),
        ("kv-ramp/n16-3", "kv-ramps/n16-3"),
        ("kv-ramps", "kv-ramps/ has kv-ramps/n16-{seed}"),
        ("kv-ramps/n16-10", "kv-ramps/n16-1"),
        ("kv-ramps/n16-00", "kv-ramps/n16-0"),
        ("toy/../gsm8k/gsm8k-1319", "toy/"),
        ("nothing", "optimizer instances lists them"),
        ("", "optimizer instances lists them"),
    ],
)
def test_a_wrong_name_is_told_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(InputError, match="is not shipped") as error:
        instance(name)
    assert hint in str(error.value)


def test_requests_alone_are_no_instance() -> None:
    with pytest.raises(InputError, match="requests alone"):
        instance("gsm8k/gsm8k-1319")


# ---- families that are wrong

FAMILY = """
title: mine
source: here
licence: MIT
objective: makespan
engine: {card: llama3.1-8b@h200, max_num_seqs: 4}
sets:
  - {name: "a-{seed}", law: chat, requests: 3, seeds: 2, parameters: {rate: 2.0}}
  - {name: b, law: file, requests: 2, seed: 5, parameters: {file: two.csv}, objective: ttft}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give a function that makes a catalogue with one family."""
    folder = tmp_path / "optimizer" / "_catalogue" / "instances" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "optimizer")
    # Engine cards stay where they are.
    models = Path(__file__).parents[2] / "models"
    (tmp_path / "optimizer" / "_catalogue" / "models").symlink_to(models)

    def make(text: str) -> Path:
        families._family.cache_clear()
        (folder / "family.yaml").write_text(text)
        (folder / "two.csv").write_text("prompt_tokens,output_tokens\n5,6\n7,8\n")
        return folder

    yield make
    families._family.cache_clear()


def test_a_family_of_ones_own_is_found(mine) -> None:
    mine(FAMILY)
    assert list_instances() == ("mine/a-0", "mine/a-1", "mine/b")
    assert embedded_names() == ("mine/two",)
    one, other = instance("mine/a-1"), instance("mine/b")
    assert (one.engine.max_num_seqs, one.objective, other.objective) == (4, "makespan", "ttft")
    assert one.requests.arrival_s[-1] > 0
    assert other.requests.prompt_tokens.tolist() == [5, 7]
    assert "seed 1" in one.source


def test_a_stored_instance_needs_no_entry(mine) -> None:
    folder = mine(FAMILY)
    one = instance("mine/b")
    Instance("mine/c", one.requests, one.engine, "makespan").write(folder / "c.json")
    assert "mine/c" in list_instances()
    assert instance("mine/c").objective == "makespan"
    assert embedded("mine/c").path == folder / "c.json"


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("law: chat", "law: chatter", "expected one of"),
        ("seeds: 2,", "", "go together"),
        ("seed: 5", "seeds: 5", "go together"),
        ("seeds: 2", "seeds: 0", "greater than or equal to 1"),
        ("licence: MIT", "", "licence"),
        ("objective: makespan", "objective: speed", "objective"),
        ("engine: {card: llama3.1-8b@h200, max_num_seqs: 4}", "", "has no engine"),
        ("sets:", "stes:", "stes"),
        ('"a-{seed}"', '"A {seed}"', "pattern"),
    ],
)
def test_a_wrong_family_is_refused_with_its_file(mine, right: str, wrong: str, said: str) -> None:
    mine(FAMILY.replace(right, wrong))
    with pytest.raises(InputError, match=re.escape(said)) as error:
        list_instances()
    assert str(error.value.file).endswith("family.yaml")


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("{rate: 2.0}", "{pace: 2.0}", "no such option"),
        ("{rate: 2.0}", "{rate: -2.0}", "above 0"),
        ("requests: 2,", "requests: 3,", "2 requests, and 3 are asked for"),
        ("{file: two.csv}", "{folder: two.csv}", "the law file takes file"),
        ("{file: two.csv}", "{file: two.csv, speed: 3}", "the law file takes file"),
        ("{file: two.csv}", "{}", "the law file takes file"),
        ("{rate: 2.0}", "{n: 5}", "the law chat takes rate, cv, max_tokens"),
        ("max_num_seqs: 4", "max_num_seq: 4", "max_num_seqs"),
        ("card: llama3.1-8b@h200", "card: llama3.1-8b@h2000", "h200"),
    ],
)
def test_what_shows_only_when_drawn_names_the_set(mine, right: str, wrong: str, said: str) -> None:
    mine(FAMILY.replace(right, wrong))
    with pytest.raises(InputError, match=re.escape(said)) as error:
        instance("mine/a-0" if "a" in right.split(":")[0] else "mine/b")
    assert "mine" in str(error.value.file)


# ---- the laws


@pytest.mark.parametrize("size", ["n16", "n30", "n50", "n16-online", "n50-online"])
@pytest.mark.parametrize("seed", range(10))
def test_kv_ramps_follow_their_law(size: str, seed: int) -> None:
    one = instance(f"kv-ramps/{size}-{seed}")
    assert equal_round_s(one) == 1.0
    ramps = Ramps.from_instance(one)
    assert 30 <= ramps.capacity <= 50
    assert ramps.prompt.min() >= 2  # s + 1
    assert ramps.prompt.max() <= 6
    assert ramps.peak.max() <= ramps.capacity  # s + o
    assert bool(ramps.arrival.any()) == ("online" in size)


@pytest.mark.parametrize("seed", range(10))
def test_online_ramps_have_the_lengths_of_those_at_once(seed: int) -> None:
    once, online = (instance(f"kv-ramps/{size}-{seed}").requests for size in ("n30", "n30-online"))
    assert once.prompt_tokens.tolist() == online.prompt_tokens.tolist()
    assert once.output_tokens.tolist() == online.output_tokens.tolist()


@pytest.mark.parametrize(
    "name", ["chat/n2000-0", "mixed-long/n2000-0", "gsm8k-like/n1319-0", "large/ramps-10000"]
)
def test_instances_in_equal_rounds_are_ramps(name: str) -> None:
    one = instance(name)
    assert equal_round_s(one) == 1.0
    # Neither seats nor the token budget can ever bind, whatever runs together.
    assert len(one.requests) <= one.engine.max_num_seqs
    assert int(one.requests.prompt_tokens.sum()) <= one.engine.max_num_batched_tokens


def test_the_papers_lengths_have_the_moments_they_are_given() -> None:
    requests = draw("paper-clients", 1, 200_000, {}, Path()).requests
    prompts, outputs = requests.prompt_tokens, requests.output_tokens - 1
    assert (prompts.mean(), prompts.std()) == (pytest.approx(68.43, rel=3e-3), pytest.approx(25.04, rel=1e-2))
    assert (outputs.mean(), outputs.std()) == (
        pytest.approx(344.83, rel=4e-3),
        pytest.approx(187.99, rel=1e-2),
    )


def paper_bound_s(one: Instance) -> float:
    """Give the bound of arXiv 2502.15763: all prompts, and all decodes with all clients busy."""
    r = one.requests
    return float(
        r.prompt_tokens.sum() * 1.0714e-3 + (r.output_tokens - 1).sum() / one.engine.max_num_seqs * 0.0368
    )


def test_paper_200_gives_the_papers_figures() -> None:
    one = instance("gsm8k/paper-200")
    ran = simulate(one, "vllm-v0")
    assert ran.metrics.makespan_s == pytest.approx(201.00, abs=0.1)
    assert decode_utilisation(ran.schedule, 200) == pytest.approx(0.802, abs=1e-3)
    assert paper_bound_s(one) == pytest.approx(180, abs=0.5)
    # What is not decode is prefill: 96.7 s.
    decoding = ran.schedule.decode_seqs > 0
    rounds = int(ran.schedule.steps[decoding].sum())
    assert ran.metrics.makespan_s - 0.0368 * rounds == pytest.approx(96.7, abs=1.0)


def test_mixing_neither_helps_nor_hurts_on_the_papers_engine() -> None:
    one = instance("gsm8k/paper-200")
    mixed, exclusive = (simulate(one, policy).metrics.makespan_s for policy in ("vllm-v1", "vllm-v0"))
    assert exclusive <= mixed <= exclusive * 1.002


@pytest.mark.long
def test_the_hundred_cases_give_the_papers_figures_on_average() -> None:
    spans, shares, bounds = [], [], []
    for seed in range(100):
        one = instance(f"gsm8k/paper-200-case-{seed}")
        ran = simulate(one, "vllm-v0")
        spans.append(ran.metrics.makespan_s)
        shares.append(decode_utilisation(ran.schedule, 200))
        bounds.append(paper_bound_s(one))
    assert np.mean(spans) == pytest.approx(201.00, abs=1.0)
    assert np.mean(shares) == pytest.approx(0.802, abs=0.008)
    assert np.mean(bounds) == pytest.approx(180.3, abs=0.5)


def test_measured_200_is_the_shipped_questions_on_the_measured_engine() -> None:
    one, lengths = instance("gsm8k/measured-200"), embedded("gsm8k/gsm8k-1319").requests
    assert one.requests.output_tokens.tolist() == lengths.output_tokens.tolist()
    assert (one.engine.origin, one.engine.max_num_seqs, one.engine.kv_tokens) == ("measured", 200, 26_864)


def test_conversations_share_what_was_said_before() -> None:
    requests = draw("conversations", 3, 600, {"rate": 20.0}, Path()).requests
    assert len(requests) / requests.arrival_s[-1] == pytest.approx(20, rel=0.15)
    prefix = requests.prefix
    assert prefix is not None
    latest: dict[str, int] = {}
    followed = 0
    for row, owner in enumerate(requests.tenant or ()):
        if owner in latest:
            before = latest[owner]
            said = int(requests.prompt_tokens[before] + requests.output_tokens[before])
            assert requests.prompt_tokens[row] > said
            # All full blocks of the turn before are the first blocks of this one.
            assert prefix.of(row)[: said // 16].tolist() == prefix.of(before).tolist()
            followed += 1
        latest[owner] = row
    assert followed > 100
    ids = [set(prefix.of(row).tolist()) for row in latest.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))  # nothing is shared between conversations


def test_the_loads_of_online_are_shares_of_saturation() -> None:
    rates = {s.name: s.parameters["rate"] for s in family("online").sets}
    assert rates == {
        f"conversations-{share}-{{seed}}": pytest.approx(0.37 * share) for share in (60, 90, 110)
    }


def test_the_schema_in_the_readme_is_that_of_the_file() -> None:
    text = (family_folder("toy").parent / "README.md").read_text()
    block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert block is not None
    from optimizer.offline.known_values import _Entries

    assert _Entries.model_validate(json.loads(block[1])).instances
