"""Instances: their JSON comes back as the same, broken documents are explained, misfits are refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import (
    Engine,
    Instance,
    LengthKnowledge,
    PrefixHashes,
    Requests,
    StepPiece,
    StepRegime,
    StepTime,
    with_knowledge,
)
from optimizer.problem.instance import SCHEMA

ENGINE = Engine(name="toy", kv_blocks=10_000, step_time=StepTime.affine(base_s=0.01))
COLUMNS = (
    "arrival_s", "prompt_tokens", "output_tokens", "ids", "max_output_tokens", "weight",
    "deadline_s", "ttft_slo_s", "tpot_slo_s", "tenant",
)  # fmt: skip

seconds = st.floats(0, 1e6)
levels = st.one_of(seconds, st.just(math.nan))


@st.composite
def made(draw) -> Instance:
    """Instances with every optional column there or not."""
    n = draw(st.integers(1, 6))

    def rows(values, **more):
        return draw(st.lists(values, min_size=n, max_size=n, **more))

    def perhaps(values, **more):
        return rows(values, **more) if draw(st.booleans()) else None

    prompts, outputs = rows(st.integers(1, 300)), rows(st.integers(1, 300))
    prefix = None
    if draw(st.booleans()):
        block_tokens, covers = draw(st.sampled_from([4, 16, 512])), draw(st.booleans())
        lists = [
            draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=-(-(p + covers * o) // block_tokens)))
            for p, o in zip(prompts, outputs, strict=True)
        ]
        ids = np.array([i for own in lists for i in own], dtype=np.int64)
        prefix = PrefixHashes(ids, np.cumsum([0, *map(len, lists)]), block_tokens, covers)
    requests = Requests.from_columns(
        {
            "arrival_s": np.sort(rows(seconds)),
            "prompt_tokens": prompts,
            "output_tokens": outputs,
            "ids": perhaps(st.text(max_size=5), unique=True),
            "max_output_tokens": [o + 5 for o in outputs] if draw(st.booleans()) else None,
            "weight": perhaps(seconds),
            "deadline_s": perhaps(levels),
            "ttft_slo_s": perhaps(levels),
            "tpot_slo_s": perhaps(levels),
            "tenant": perhaps(st.text(max_size=5)),
        },
        prefix=prefix,
    )
    spelling = draw(st.sampled_from(["none", "exact", "bucket:50", "interval:0.3", "noise:0.5"]))
    engine = ENGINE.replace(
        max_model_len=draw(st.sampled_from([None, 4096])), prefix_caching=draw(st.booleans())
    )
    return Instance(
        draw(st.text(max_size=9)),
        with_knowledge(requests, spelling, seed=n),
        engine,
        draw(st.sampled_from(["makespan", "mean-latency", "weighted-latency", "ttft", "goodput"])),
        draw(st.text(max_size=9)),
    )


def same(a: Instance, b: Instance) -> bool:
    """Say whether two instances are equal, column by column, to the last bit."""
    x, y = a.requests, b.requests
    pairs = [(getattr(x, name), getattr(y, name)) for name in COLUMNS]
    for known in ("low", "high", "mean", "log_sigma"):
        pairs.append((x.known and getattr(x.known, known), y.known and getattr(y.known, known)))
    for part in ("ids", "starts", "block_tokens", "covers_outputs"):
        pairs.append((x.prefix and getattr(x.prefix, part), y.prefix and getattr(y.prefix, part)))
    return (a.name, a.engine, a.objective, a.source) == (b.name, b.engine, b.objective, b.source) and all(
        (p is None) == (q is None)
        and (p is None or np.array_equal(np.array(p), np.array(q), equal_nan=isinstance(p, np.ndarray)))
        for p, q in pairs
    )


@settings(deadline=None)
@given(made())
def test_json_comes_back_as_the_same_instance(tmp_path_factory, instance):
    """Through a file, with all optional columns, knowledge and prefixes; fingerprint included."""
    path = tmp_path_factory.mktemp("instance") / "i.json"
    instance.write(path)
    again = Instance.read(path)
    assert same(instance, again)
    assert again.sha256 == instance.sha256
    assert (again.origin, instance.origin) == (str(path), None)


def test_the_comparison_of_these_tests_sees_differences():
    """`same` is not always true."""
    a = Instance(
        "a",
        with_knowledge(Requests.from_columns({"prompt_tokens": [1], "output_tokens": [2]}), "exact"),
        ENGINE,
    )
    assert same(a, a)
    for requests in (
        a.requests.replace(known=None),
        a.requests.replace(weight=np.ones(1)),
        a.requests.replace(arrival_s=np.ones(1)),
        a.requests.replace(prefix=PrefixHashes(np.array([1]), np.array([0, 1]), 16)),
    ):
        assert not same(a, Instance("a", requests, ENGINE))


def test_a_file_is_one_line_of_strict_json(tmp_path):
    """What is absent in a row is null: NaN is no JSON."""
    requests = Requests.from_columns(
        {"prompt_tokens": [1, 2], "output_tokens": [1, 1], "deadline_s": [None, 5.0]}
    )
    Instance("x", requests, ENGINE).write(tmp_path / "i.json")
    text = (tmp_path / "i.json").read_text()
    assert text.count("\n") == 1
    assert text.endswith("}\n")
    columns = json.loads(text, parse_constant=pytest.fail)["requests"]
    assert columns["deadline_s"] == [None, 5.0]
    assert "weight" not in columns


def document(**changes) -> dict:
    """A good document, with other columns where asked for."""
    return {
        "schema": SCHEMA,
        "name": "by hand",
        "engine": {"name": "e", "kv_blocks": 100, "step_time": {"regimes": [{"pieces": [{"base_s": 0.01}]}]}},
        "requests": {"prompt_tokens": [10, 20], "output_tokens": [3, 4]} | changes,
    }


def complaint(given_document) -> InputError:
    with pytest.raises(InputError) as caught:
        Instance.from_document(given_document, file="i.json")
    return caught.value


def test_the_defaults_of_a_document():
    """Name, objective and source may be left out."""
    short = document()
    del short["name"]
    instance = Instance.from_document(short)
    assert (instance.name, instance.objective, instance.source) == ("unnamed", "mean-latency", "")


def test_requests_may_be_a_list_of_objects():
    """The same keys, one object per request; a key that some leave out is absent there."""
    columns = Instance.from_document(document(deadline_s=[None, 5.0], ids=["a", "b"]))
    listed = document() | {
        "requests": [
            {"prompt_tokens": 10, "output_tokens": 3, "ids": "a"},
            {"prompt_tokens": 20, "output_tokens": 4, "ids": "b", "deadline_s": 5.0},
        ]
    }
    assert same(Instance.from_document(listed), columns)
    assert Instance.from_document(listed).sha256 == columns.sha256


def test_an_object_that_leaves_out_a_number_is_named():
    """By its place in the list."""
    listed = document() | {"requests": [{"prompt_tokens": 1, "output_tokens": 3}, {"prompt_tokens": 20}]}
    assert str(complaint(listed)).startswith(
        "i.json, requests[1], field output_tokens: nothing is given; expected a whole number"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", '{\n"a": 1,\n"b" 2}', "[1,\n2,\n", "nonsense"],
    ids=["empty", "cut", "colon", "list", "text"],
)
def test_what_is_no_json_is_named_with_its_line(tmp_path, text):
    """The line where parsing stopped."""
    path = tmp_path / "i.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is no JSON: ") as caught:
        Instance.read(path)
    assert caught.value.file == str(path)
    assert caught.value.line == min(text.count("\n") + 1, 3)


def test_a_string_without_end_is_named_by_where_it_starts(tmp_path):
    """Python's own message ends in "at", whatever follows."""
    (tmp_path / "i.json").write_text('{"a": "b')
    with pytest.raises(InputError, match=r"line 1: is no JSON: Unterminated string starting at character 7$"):
        Instance.read(tmp_path / "i.json")


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    """With the operating system's reason, or the byte that is no UTF-8."""
    with pytest.raises(InputError, match=r"i\.json: cannot be read: No such file"):
        Instance.read(tmp_path / "i.json")
    (tmp_path / "i.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"is no text: .* at byte 7"):
        Instance.read(tmp_path / "i.json")


@pytest.mark.parametrize(
    "given_document", [[], None, 3, "x", {}, {"schema": "optimizer/schedule@1"}], ids=repr
)
def test_another_schema_is_refused(given_document):
    """Also what is no object at all."""
    assert str(complaint(given_document)) == (
        f'i.json: this is no instance: expected an object with "schema": "{SCHEMA}"'
    )


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"engin": 1}, "engin", "Extra inputs are not permitted"),
        ({"engine": None}, "engine", "None"),
        ({"engine": {}}, "engine.name", "Field required"),
        ({"objective": "fun"}, "objective", "'fun'"),
        ({"name": 3}, "name", "given: 3"),
        ({"prefix_block_tokens": "x"}, "prefix_block_tokens", "given: 'x'"),
    ],
)
def test_a_wrong_header_is_named_with_its_field(change, field, said):
    """And with what was given."""
    error = complaint(document() | change)
    assert (error.file, error.field) == ("i.json", field)
    assert said in error.problem


def test_a_wrong_number_inside_the_engine_is_named_with_its_path():
    """Down to the piece."""
    wrong = document()
    wrong["engine"]["step_time"]["regimes"][0]["pieces"][0]["base_s"] = -1
    error = complaint(wrong)
    assert error.field == "engine.step_time.regimes.0.pieces.0.base_s"
    assert error.problem == "Input should be greater than or equal to 0 (given: -1)"


@pytest.mark.parametrize(
    "given_requests", [None, 3, "x", {"prompt_tokens": 3}, {"prompt_tokens": "10"}], ids=repr
)
def test_requests_are_columns_or_objects(given_requests):
    """Nothing else."""
    error = complaint(document() | {"requests": given_requests})
    assert str(error) == 'i.json: "requests" must be an object of columns, or a list of objects'


def test_a_request_that_is_no_object_is_named():
    """By its place."""
    error = complaint(document() | {"requests": [{"prompt_tokens": 1, "output_tokens": 1}, 7]})
    assert str(error) == "i.json: requests[1] is 7; expected an object"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt_tokens": [10, -1]}, r"i.json, requests\[1\], field prompt_tokens: -1; expected"),
        ({"arrival_s": [2, 1]}, r"i.json, requests\[1\], field arrival_s: 1.0 s is before"),
        ({"weight": [1, None]}, r"i.json, requests\[1\], field weight: nothing is given"),
        ({"ids": ["a", "a"]}, r"i.json, requests\[1\], field ids: 'a' stands twice"),
        ({"colour": [1, 2]}, r"i.json: unknown column 'colour'"),
        ({"tenant": ["a"]}, r"i.json: column 'tenant' has 1 rows; expected 2"),
        ({"output_tokens": []}, r"i.json: column 'output_tokens' has 0 rows; expected 2"),
        ({"known_low": [1, 1]}, r"i.json, field known_low: known_low and known_high go together"),
        ({"known_mean": [1, 1]}, r"i.json, field known_low: known_low and known_high go together"),
        ({"known_low": [1, 1], "known_high": [2, 9]}, r"i.json, requests\[0\], field output_tokens: the true length 3"),
        ({"known_low": [1, None], "known_high": [3, 9]}, r"i.json, requests\[1\], field known_low: nothing is given"),
        ({"known_low": ["a", 1], "known_high": [3, 9]}, r"i.json, requests\[0\], field known_low: 'a'"),
        ({"known_low": [1.7, 1], "known_high": [3, 9]}, r"i.json, requests\[0\], field known_low: 1.7; expected a whole"),
        ({"known_low": [1, 1], "known_high": [10**30, 9]}, r"i.json, requests\[0\], field known_high: 10000000"),
        ({"known_low": [1], "known_high": [3, 9]}, r"i.json: column 'known_low' has 1 rows; expected 2"),
        ({"known_low": [1, 1], "known_high": [3, 9], "known_mean": [-5, None]},
         r"i.json, requests\[0\], field known_mean: -5; expected a finite number >= 0"),
        ({"prefix_hashes": [[1], [1]]}, r"i.json: prefix_hashes needs prefix_block_tokens"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_named_with_file_row_and_field(columns, said):
    """As far as there is a row."""
    with pytest.raises(InputError, match=f"^{said}"):
        Instance.from_document(document(**columns), file="i.json")


@pytest.mark.parametrize(
    ("hashes", "more", "said"),
    [
        ([[1]], {}, "hashes of 1 requests; expected 2"),
        ([[1], [1, 2, 3]], {}, "3 block hashes for a prompt of 20 tokens; expected at most 2"),
        ([[1], 5], {}, "expected whole numbers"),
        ([[1], ["a"]], {}, "expected whole numbers"),
        ([[1], [2**63]], {}, "expected whole numbers"),
        ([[1.5], [1]], {}, "1.5 is no hash; expected whole numbers"),
        ([[True], [1]], {}, "True is no hash; expected whole numbers"),
        ([[1], [1]], {"prefix_block_tokens": 0}, "0 tokens per hash; expected at least 1"),
    ],
)
def test_wrong_prefix_hashes_are_explained(hashes, more, said):
    """Too few, too many, no numbers, too large."""
    error = complaint(document(prefix_hashes=hashes) | {"prefix_block_tokens": 16} | more)
    assert error.file.startswith("i.json")
    assert said in error.problem


def test_a_request_without_hashes_may_have_null():
    """As well as an empty list."""
    r = Instance.from_document(document(prefix_hashes=[None, [7]]) | {"prefix_block_tokens": 16}).requests
    assert [r.prefix.of(i).tolist() for i in (0, 1)] == [[], [7]]
    assert r.prefix.covers_outputs is False


def test_a_request_that_never_fits_is_refused_with_its_numbers():
    """It computes prompt + output - 1 tokens: the last one is never fed back."""
    columns = {"prompt_tokens": [5, 17, 40], "output_tokens": [1, 16, 1], "ids": ["a", "b", "c"]}
    requests = Requests.from_columns(columns)
    assert Instance("x", requests.take(slice(0, 2)), ENGINE.replace(kv_blocks=2))
    with pytest.raises(InputError) as caught:
        Instance("x", requests, ENGINE.replace(kv_blocks=1), origin="i.json")
    assert str(caught.value).startswith(
        "i.json: request b needs 2 KV blocks of 16 tokens for 17 prompt and 16 output tokens, and the engine has 1"
    )
    assert "(2 such requests)" in caught.value.problem


def test_a_request_longer_than_the_model_is_refused_with_its_numbers():
    """Prompt and output together may be as long as the model, not longer."""
    requests = Requests.from_columns({"prompt_tokens": [90, 90], "output_tokens": [10, 11]})
    assert Instance("x", requests.take([0]), ENGINE.replace(max_model_len=100))
    with pytest.raises(
        InputError, match=r"request 1 is 101 tokens long and .* max_model_len is 100; .*\(1 such"
    ):
        Instance("x", requests, ENGINE.replace(max_model_len=100))


def test_an_objective_is_one_of_those_there_are():
    """Also where no file is read."""
    with pytest.raises(
        InputError, match="field objective: 'fun' is no objective; expected one of makespan, mean"
    ):
        Instance("x", Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]}), ENGINE, "fun")


def base() -> Instance:
    requests = Requests.from_columns(
        {"prompt_tokens": [10, 20], "output_tokens": [3, 4], "deadline_s": [1.0, None]},
        known=LengthKnowledge(np.array([1, 4]), np.array([5, 4])),
        prefix=PrefixHashes(np.array([7, 7, 8]), np.array([0, 1, 3]), 16),
    )
    return Instance("x", requests, ENGINE)


def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    """Equal instances have equal ones, whatever the order in which that process hashes its strings."""
    assert base().sha256 == base().sha256
    base().write(tmp_path / "i.json")
    code = "import sys; from optimizer.problem import Instance; print(Instance.read(sys.argv[1]).sha256)"
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "i.json")],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.split() == [base().sha256]


@pytest.mark.parametrize(
    "changed",
    [
        {"arrival_s": np.array([0.0, 1e-9])},
        {"prompt_tokens": np.array([10, 21])},
        {"output_tokens": np.array([4, 4])},
        {"ids": ("a", "b")},
        {"max_output_tokens": np.array([9, 9])},
        {"weight": np.array([1.0, 1.0])},
        {"deadline_s": np.array([1.0, 2.0])},
        {"ttft_slo_s": np.array([1.0, np.nan])},
        {"tpot_slo_s": np.array([1.0, np.nan])},
        {"tenant": ("a", "b")},
        {"known": None},
        {"known": LengthKnowledge(np.array([1, 4]), np.array([5, 4]), np.array([3.0, 4.0]))},
        {"prefix": None},
        {"prefix": PrefixHashes(np.array([7, 7, 9]), np.array([0, 1, 3]), 16)},
        {"prefix": PrefixHashes(np.array([7, 7, 8]), np.array([0, 2, 3]), 16)},
        {"prefix": PrefixHashes(np.array([7, 7, 8]), np.array([0, 1, 3]), 32)},
        {"prefix": PrefixHashes(np.array([7, 7, 8]), np.array([0, 1, 3]), 16, True)},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_the_fingerprint_changes_with_every_column(changed):
    """Whatever can change a result."""
    assert Instance("x", base().requests.replace(**changed), ENGINE).sha256 != base().sha256


@pytest.mark.parametrize(
    "changed",
    [
        {"kv_blocks": 9_999},
        {"max_num_seqs": 3},
        {"prefix_caching": True},
        {"step_time": StepTime(regimes=(StepRegime(pieces=(StepPiece(base_s=0.0100001),)),))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_fingerprint_changes_with_the_engine(changed):
    """Its limits as well as its step times."""
    assert Instance("x", base().requests, ENGINE.replace(**changed)).sha256 != base().sha256


def test_the_fingerprint_outlives_fields_that_engines_gain():
    """A field with a default changes it only where it is set to something else."""

    class NewEngine(Engine):
        speculative_tokens: int = 0

    new = NewEngine(**dict(ENGINE))
    prints = [
        Instance("x", base().requests, e).sha256 for e in (ENGINE, new, new.replace(speculative_tokens=4))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_does_not_depend_on_the_file(tmp_path):
    """Where it lies is no part of it; the objective is."""
    base().write(tmp_path / "i.json")
    assert Instance.read(tmp_path / "i.json").sha256 == base().sha256
    assert Instance("x", base().requests, ENGINE, "makespan").sha256 != base().sha256
