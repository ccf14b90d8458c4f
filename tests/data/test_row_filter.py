"""A filter means the rows that the same condition in Python means, and what is no filter is refused by name."""

from __future__ import annotations

import datetime as dt
import operator
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import CONFIG, homes, put
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frmu.config import Config, parse
from frmu.data.checks import text_of
from frmu.data.columns import RECORD, SLICE, SUBJECT, TARGET, TIME
from frmu.data.condition import DEEPEST, LONGEST
from frmu.data.parquet import columns_of, gather
from frmu.data.row_filter import LONGEST_PATTERN, Where, parse_row_filter
from frmu.errors import RequestError

CLIENT = "home 1"


def config_of(**data: Any) -> Config:
    """A config with every role that a column may have, and names that are words of SQL."""
    base = {
        "path": "homes.parquet",
        "client": "home",
        "record": "record",
        "subject": "person",
        "time": "ts",
        "target": "load",
        "task": "regression",
        "modalities": {"weather": ["temperature", "hour of day", "end", "yesterday"]},
        "lags": {"yesterday": {"column": "load", "back": "1d"}},
    }
    return parse({"data": base | data, "slices": {"by": "band"}}, Path("homes.toml"))


CONFIG_OF = config_of()
NUMBERS = {"temperature": "temperature", "hour of day": '"hour of day"', "end": "end", TARGET: "load"}
TEXTS = {RECORD: "record", SUBJECT: "person", SLICE: "band"}
FIRST = dt.datetime(2025, 1, 1)


def shard(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a shard holds them."""
    kinds = {RECORD: pa.string(), TARGET: pa.float64(), SUBJECT: pa.string(), TIME: pa.timestamp("us")}
    kinds |= {SLICE: pa.string(), "temperature": pa.float64(), "hour of day": pa.float64(), "end": pa.float64()}
    kinds |= {"load": pa.float64()}
    return pa.table(
        {name: pa.array([row.get(name, row[TARGET]) for row in rows], kind) for name, kind in kinds.items()}
    )


ROWS = [
    {
        RECORD: str(i),
        TARGET: [-1.0, 0.0, 2.5][i % 3],
        SUBJECT: ["ada", "bo", "a%", "O'Hara", "7"][i % 5],
        TIME: FIRST + dt.timedelta(hours=12 * i),
        SLICE: ["high", "low", "été"][i % 3],
        "temperature": [-0.0, 0.0, 1.0, 30.5, -7.0][i % 5],
        "hour of day": float(i % 24),
        "end": float(i % 2),
    }
    for i in range(30)
]
TABLE = shard(ROWS)


def mask(text: str, config: Config = CONFIG_OF, table: pa.Table = TABLE, client: str = CLIENT) -> list[bool]:
    found = parse_row_filter(text, config).mask(table, client)
    assert found.dtype == np.bool_
    assert found.shape == (table.num_rows,)
    return found.tolist()


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- the law: a mask is what Python says of each row -----------------------------------------------------------------

Row = dict[str, Any]
Pair = tuple[str, Callable[[Row], bool]]  # a filter, and what it means
SIGNS = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}

some_numbers = st.one_of(
    st.sampled_from([row["temperature"] for row in ROWS[:5]] + [2.5, 1.0, 12.0]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-40, 40).map(float),
).map(lambda value: (repr(value), value))
some_texts = st.one_of(
    st.sampled_from(["ada", "bo", "a%", "O'Hara", "7", "high", "low", "été", "12", ""]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
).map(lambda value: (quoted(value), value))
some_times = st.datetimes(FIRST, dt.datetime(2025, 1, 20)).flatmap(
    lambda moment: st.sampled_from(
        [
            (f"'{moment.isoformat()}'", moment),
            (f"timestamp '{moment.isoformat(' ')}'", moment),
            (f"date '{moment.date()}'", dt.datetime.combine(moment.date(), dt.time())),
            (f"'{(moment + dt.timedelta(hours=2)).isoformat()}+02:00'", moment),
        ]
    )
)


@st.composite
def comparisons(draw: st.DrawFn) -> Pair:
    columns = [(stored, said, some_numbers) for stored, said in NUMBERS.items()]
    columns += [(stored, said, some_texts) for stored, said in TEXTS.items()]
    columns += [(TIME, "ts", some_times), ("client", "home", some_texts)]
    stored, said, values = draw(st.sampled_from(columns))
    kind = draw(st.sampled_from(["compare", "in", "between", "null", *(["like"] if values is some_texts else [])]))
    negated = draw(st.booleans())
    word, turn = ("not ", operator.not_) if negated else ("", bool)
    if kind == "compare":
        sign = draw(st.sampled_from(list(SIGNS)))
        text, value = draw(values)
        meant = SIGNS[sign]
        left, right = (said, text) if not negated else (text, said)  # here: the value stands first
        written = sign if not negated else MIRRORED.get(sign, sign)
        return f"{left} {written} {right}", lambda row: meant(row[stored], value)
    if kind == "in":
        some = draw(st.lists(values, min_size=1, max_size=4))
        wanted = [value for _, value in some]
        return f"{said} {word}in ({', '.join(text for text, _ in some)})", lambda row: turn(row[stored] in wanted)
    if kind == "between":
        low, high = sorted([draw(values), draw(values)], key=lambda pair: pair[1])
        return (
            f"{said} {word}between {low[0]} and {high[0]}",
            lambda row: turn(low[1] <= row[stored] <= high[1]),
        )
    if kind == "like":
        return draw(likes(stored, said, word, turn))
    return f"{said} is {word}null", lambda row: turn(False)


def is_like(text: str, pattern: str) -> bool:
    """What like means, said as plainly as it can be."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(is_like(text[start:], pattern[1:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and is_like(text[1:], pattern[1:])


@st.composite
def likes(draw: st.DrawFn, stored: str, said: str, word: str, turn: Callable[[Any], bool]) -> Pair:
    """Patterns of wild cards, of the characters of our names, and of such as mean something in a regular expression."""
    pattern = "".join(draw(st.lists(st.sampled_from("%%%__adbo7[]*?.^$(|+é'O\n!{#- "), max_size=6)))
    return f"{said} {word}like {quoted(pattern)}", lambda row: turn(is_like(row[stored], pattern))


def joined(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def all_of(parts: list[Pair]) -> Pair:
        return " and ".join(f"({text})" for text, _ in parts), lambda row: all(meant(row) for _, meant in parts)

    def any_of(parts: list[Pair]) -> Pair:
        return " OR ".join(f"({text})" for text, _ in parts), lambda row: any(meant(row) for _, meant in parts)

    def none_of(part: Pair) -> Pair:
        return f"not ({part[0]})", lambda row: not part[1](row)

    several = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(several.map(all_of), several.map(any_of), inner.map(none_of))


filters = st.recursive(comparisons(), joined, max_leaves=8)


@settings(max_examples=400)
@given(filters, st.sampled_from([CLIENT, "ada", "7", "été"]))
def test_a_mask_is_what_python_says_of_each_row(pair: Pair, client: str) -> None:
    text, meant = pair
    assert mask(text, client=client) == [meant(row | {"client": client}) for row in ROWS], text


@settings(max_examples=100)
@given(filters, filters)
def test_the_laws_of_de_morgan(one: Pair, other: Pair) -> None:
    a, b = np.array(mask(one[0])), np.array(mask(other[0]))
    assert mask(f"not ({one[0]})") == (~a).tolist()
    assert mask(f"not (({one[0]}) or ({other[0]}))") == (~a & ~b).tolist()
    assert mask(f"not (({one[0]}) and ({other[0]}))") == (~a | ~b).tolist()


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["temperature > 0", "end = 1", "person = 'ada'", "load < 1"]), min_size=2, max_size=9))
def test_and_binds_before_or_and_not_before_both(parts: list[str]) -> None:
    words = ["and" if len(part) % 2 else "or" for part in parts[1:]]
    flat = "not " + parts[0] + "".join(f" {word} {part}" for word, part in zip(words, parts[1:], strict=True))
    groups = [~np.array(mask(parts[0]))]
    for word, part in zip(words, parts[1:], strict=True):
        if word == "and":
            groups[-1] = groups[-1] & np.array(mask(part))
        else:
            groups.append(np.array(mask(part)))
    assert mask(flat) == np.logical_or.reduce(groups).tolist()


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("temperature > 10 and person in ('p1', 'p3')", "temperature > 10 and person in ['p1', 'p3']"),
        ("ts < '2025-02-01' or not humidity between 30 and 60", "ts < '2025-02-01' or not (30 <= humidity <= 60)"),
        ("home = 'home 1' and load >= 2.5", "home == 'home 1' and load >= 2.5"),
        ("home <> 'home 1' and load >= 2.5", "home != 'home 1' and load >= 2.5"),
        ("record like 'h_-1%'", "record.str.fullmatch('h.-1.*')"),
    ],
)
def test_a_filter_finds_what_a_pandas_query_finds_in_the_users_file(tmp_path: Path, text: str, query: str) -> None:
    table = homes()
    config = put(tmp_path / "homes", table, CONFIG)
    where = parse_row_filter(text, config)
    found: list[str] = []
    for client, held in gather(config, sorted(table.home.unique())).items():
        found += held.filter(pa.array(where.mask(held, client)))[RECORD].to_pylist()
    wanted = table.query(query).record
    assert 0 < len(wanted) < len(table)
    assert sorted(found) == sorted(wanted)


# --- what each kind of column is compared with -----------------------------------------------------------------------


@pytest.mark.parametrize("written", ["7", "7.0", "007", "7e0", "'7'", "70e-1"])
def test_a_number_names_what_the_import_named(written: str) -> None:
    assert mask(f"record = {written}") == [row[RECORD] == "7" for row in ROWS]
    assert mask(f"record in ({written})") == [row[RECORD] == "7" for row in ROWS]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1))
def test_a_record_is_found_by_its_number_whatever_it_is(value: float) -> None:
    name = text_of(pa.chunked_array([[value]]), "file", "column")[0].as_py()
    table = shard([ROWS[0] | {RECORD: name}])
    written = str(value) if isinstance(value, int) or abs(value) < 2**53 or not value.is_integer() else repr(value)
    assert mask(f"record = {written}", table=table) == [True]


def test_numbers_differ_where_their_names_do() -> None:
    table = shard([ROWS[0] | {RECORD: name} for name in ("9007199254740993", "9007199254740992")])
    assert mask("record = 9007199254740993", table=table) == [True, False]


def test_true_and_false_are_1_and_0_and_the_names_that_the_import_gives() -> None:
    assert mask("end = true") == mask("end is true") == mask("end = 1") == mask("end is not false")
    table = shard([ROWS[0] | {SUBJECT: "true"}, ROWS[0] | {SUBJECT: "false"}])
    assert mask("person = true", table=table) == [True, False]


def test_a_zero_is_a_zero_whatever_its_sign() -> None:
    zero = [row["temperature"] == 0 for row in ROWS]
    for written in ("= 0", "= -0.0", "in (0)", "in (-0.0, 99)", "between -0.0 and 0"):
        assert mask(f"temperature {written}") == zero


def test_a_date_is_its_midnight_in_utc() -> None:
    assert mask("ts = '2025-01-02'").count(True) == 1
    assert mask("ts < date '2025-01-02'") == mask("ts < '2025-01-02T01:00+01:00'")
    assert mask("ts < timestamptz '2025-01-02 01:00+01:00'") == mask("'2025-01-02 00:00' > ts")


def test_a_shard_is_one_clients() -> None:
    assert mask("home = 'home 1'") == [True] * len(ROWS)
    assert mask("home = 'home 1'", client="home 2") == [False] * len(ROWS)
    assert mask("home like 'home _' and end = 1") == mask("end = 1")
    assert mask("home in (1, 2)", client="2") == [True] * len(ROWS)


def test_an_empty_shard_has_no_rows() -> None:
    for text in ("home = 'a'", "person like 'a%'", "record in (1)", "ts < '2025-01-01'", "load is null", "not end = 1"):
        assert mask(text, table=TABLE.slice(0, 0)) == []
        assert (
            mask(text, table=pa.table({name: pa.chunked_array([], TABLE[name].type) for name in TABLE.column_names}))
            == []
        )


def test_a_class_is_text() -> None:
    config = config_of(target="label", task="classification", lags={}, modalities={"weather": ["temperature"]})
    table = TABLE.set_column(1, TARGET, pa.array(["hi", "lo"] * 15))
    assert mask("label = 'hi' and label <> 'lo'", config, table) == [True, False] * 15


def test_a_column_of_two_roles_is_a_name_first() -> None:
    config = config_of(record="end")
    table = TABLE.set_column(0, RECORD, pa.array([f"{2**53 + i}" for i in range(30)]))
    assert mask(f"end = {2**53 + 1}", config, table) == [i == 1 for i in range(30)]


def test_every_column_of_a_shard_but_lags_can_be_named() -> None:
    assert set(columns_of(CONFIG_OF)) == set(TABLE.column_names)
    for said in [*NUMBERS.values(), *TEXTS.values(), "ts", "home"]:
        assert mask(f"{said} is not null") == [True] * len(ROWS)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("like 'a%'", ["ada", "a%"]),
        ("like 'a!%' escape '!'", ["a%"]),
        (r"like 'a\%' escape '\'", ["a%"]),
        ("like '%''%'", ["O'Hara"]),
        ("like '__'", ["bo", "a%"]),
        ("like '%'", ["ada", "bo", "a%", "O'Hara", "7"]),
        ("like ''", []),
        ("like '.*'", []),
        ("not like '%a%' escape '!'", ["bo", "7"]),
    ],
)
def test_like(pattern: str, names: list[str]) -> None:
    assert mask(f"person {pattern}") == [row[SUBJECT] in names for row in ROWS]


def test_a_filter_is_a_value() -> None:
    where = parse_row_filter("temperature > 0 and person like 'a%'", CONFIG_OF)
    again = pickle.loads(pickle.dumps(where))
    assert again == where
    assert again.mask(TABLE, CLIENT).tolist() == where.mask(TABLE, CLIENT).tolist()
    assert repr(where) == """Where(text="temperature > 0 and person like 'a%'")"""
    assert isinstance(where, Where)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "says nothing"),
        (" \n", "says nothing"),
        ("x" * (LONGEST + 1), "at most 10,000"),
        ("temprature > 3", 'no column "temprature" .* did you mean "temperature"'),
        ("TEMPERATURE > 3", 'did you mean "temperature"\\? Upper and lower case'),
        ("case = 3", 'no column "case" is declared in the config, nor is it a word'),
        ("sky = 3", 'no column "sky" .* it declares home, record, person, ts, .*A shard keeps no other'),
        ("yesterday > 3", '"yesterday" is a lag, computed from "load"; filter on "load"'),
        ('"yesterday" > 3', '"yesterday" is a lag'),
        ("day = '2025-01-01'", 'no column "day"'),
        ('person = "ada"', "no column \"ada\" .* text goes in single quotes: 'ada'"),
        ("hour of day > 3", 'at the end of "hour of"'),
        ("temperature = 1; drop table x", '";" after character 15'),
        ("temperature = 1;", '";" after character 15'),
        ("temperature = 1 -- and end = 1", "holds a comment, 'and end = 1'"),
        ("temperature = /* 1 */ 1", "holds a comment"),
        ("/* 1 */ temperature = 1", "holds a comment"),
        ("-- 1", "holds a comment"),
        ("temperature = 1 /*", "not closed"),
        ("person = 'ada", "not closed"),
        ("count(*) = 1", 'calls a function, "count'),
        ("date('2025-01-01') < ts", 'calls a function, "date'),
        ("cast(end as text) = '1'", 'calls a function, "cast'),
        ('"end"(1) = 1', "calls a function"),
        ("exists (select 1)", "calls a function"),
        ("temperature in (select 1)", '"select"'),
        ("select 1", '"select"'),
        ("temperature + 1 > 3", '"\\+" is none of the signs'),
        ("temperature - 1 > 3", '"temperature - 1" is arithmetic'),
        ("temperature::int = 1", '"::" is none of the signs'),
        ("a.temperature = 1", '"\\." is none of the signs'),
        ("person || 'x' = 'y'", '"\\|\\|" is none'),
        ("temperature = :p", '":" is none'),
        ("load = temperature", 'compares two columns, "load" and "temperature"'),
        ("end in (1, load)", 'compares two columns, "end" and "load"'),
        ("1 < temperature < 3", "chains comparisons"),
        ("1 = 1", '"1 = 1" compares no column'),
        ("end = 1 or true", '"TRUE" compares no column'),
        ("'ada'", "compares no column"),
        ("end", '"end" alone is no condition; compare it, as end = true'),
        ("not ts", '"ts" alone is no condition'),
        ("end = null", 'nothing equals null; write "end is null"'),
        ("end not in (1, null)", "nothing equals null"),
        ("temperature = '3'", "\"temperature\" is a number, got '3'; write 3 without quotes"),
        ("temperature in (1, 'x')", "is a number, got 'x'"),
        ("temperature = date '2025-01-01'", "is a number, got date '2025-01-01'"),
        ("temperature = 1e400", "beyond float64"),
        ("record = 1e400", "beyond float64"),
        ("record < 10", '"record" is text, got 10, and text is ordered by its characters'),
        ("person between 1 and 3", "text is ordered by its characters"),
        ("person = date '2025-01-01'", "is text, got date"),
        ("ts > 3", '"ts" is a time, got 3'),
        ("ts > '2025-02-30'", "'2025-02-30' is none; write 2025-02-01 or"),
        ("ts > date '2025-01-01 10:00'", "is none; write 2025-02-01"),
        ("ts > '0001-01-01T00:00+14:00'", "is a time, and"),
        ("temperature between 3 and 1", "the lower bound stands first"),
        ("temperature between symmetric 3 and 1", "is not part of a filter"),
        ("temperature in ()", "names no value"),
        ("temperature in 3", "is not part of a filter"),
        ("(temperature, end) = (1, 2)", "is a list"),
        ("temperature like '3%'", "like is for text"),
        ("person like 3", "takes a pattern"),
        (r"person like 'a\%'", "has a backslash; say escape"),
        ("person like 'a!b' escape '!'", "must stand before %, _ or itself, got 'b'"),
        ("person like 'a!' escape '!'", "got the end"),
        ("person like 'a' escape 'ab'", "escape takes one character"),
        (f"person like '{'%' * (LONGEST_PATTERN + 1)}'", "at most 1,000"),
        ("person = 'O' 'Hara'", "a quote within a text is doubled"),
        ("person is 'ada'", "is takes null, true or false"),
        ("person ilike 'a'", '"ilike"'),
        ("(end = 1", r'at the end of "\(end = 1"'),
        ("end = 1)", r'at the end of "end = 1\)"'),
        ("end = 1) or (end = 0", "cannot be read"),
        ("end = 1 as x", '"as"'),
        ("end = 1\0 and load = 2", "NUL character"),
        ("person = '\ud800'", "character 11 is not valid Unicode"),
        ("not " * 17 + "end = 1", "more than 16"),
        ("(" * 17 + "end = 1" + ")" * 17, "more than 16"),
        ("(" * 5_000, "more than 16"),
        ("end = " + "-" * 17 + "1", "comment"),
        ("end = " + "- " * 17 + "1", "more than 16"),
        ("end" + " = 1" * 2_000, "chains|inside each other"),
    ],
)
def test_what_is_no_filter_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        parse_row_filter(text, CONFIG_OF)
    assert str(error.value).startswith("where: ")
    assert len(str(error.value)) < 600
    assert "\x1b" not in str(error.value)  # sqlglot underlines for a terminal


def test_a_filter_as_deep_as_allowed_fits_the_stack_of_a_caller_that_is_deep_itself() -> None:
    """Whether a request is taken must not depend on who asks: it is read again when it is honoured."""
    texts = ["(" * DEEPEST + "end = 1" + ")" * DEEPEST, "not (" * (DEEPEST // 2) + "end = 1" + ")" * (DEEPEST // 2)]
    texts.append("end = 1 and (" * DEEPEST + "end = 1" + ")" * DEEPEST)

    def below(levels: int, text: str) -> Where:
        return below(levels - 1, text) if levels else parse_row_filter(text, CONFIG_OF)

    for text in texts:
        assert below(300, text).mask(TABLE, CLIENT).sum() == 15


def test_a_long_filter_is_no_deep_one() -> None:
    few = (LONGEST - 100) // len(" or record = 7")
    assert mask("end = 1" + " or record = 7" * few) == mask("end = 1")
    assert mask("record in (" + ", ".join("7" for _ in range(3_000)) + ")").count(True) == 1


WORDS = """
and or not in between like escape is null true false date timestamp ( ) ( ) , - = <> < <= ' " ; -- /* */ . + *
temperature end ts person record home load yesterday 1 -1 0x1 1e999 'ada' 'a%' '2025-01-01' select from case when
then union ? :a :: [ ] { } {{ }} {# || $$ @ # ` \\ N'x' b'1' interval exists any all cast count distinct
"""
words = st.sampled_from(WORDS.split())
soup = st.lists(words | st.text(max_size=3), max_size=25).map(" ".join)


@settings(max_examples=600)
@given(soup | st.text(max_size=60) | st.lists(words, max_size=40).map("".join))
@example("end = 1 {% raw")
@example("e'")
def test_a_hostile_text_is_a_filter_or_a_request_error(text: str) -> None:
    try:
        found = mask(text)
    except RequestError:
        return
    assert mask(f"not ({text})") == [not one for one in found]


def test_no_text_takes_long() -> None:
    """Neither the parser nor a pattern has a text that costs more than its length."""
    rng = random.Random(0)
    pattern = "%a" * (LONGEST_PATTERN // 2 - 1)
    texts = [
        "(" * 9_000,
        "end in " + "(" * 16 + "'1'" + ")" * 16,
        ", (" * 15,
        "end in (" + "(1, " * 15 + ")" * 16,
        "not end in (" * 8 + ")" * 8,
        "end between " * 700,
        "end like " * 900,
        *("".join(rng.choices(["(", "end", " in ", " not ", ",", "1", ")", " = "], k=2_000)) for _ in range(20)),
    ]
    table = shard([row | {SUBJECT: "a" * 2_000} for row in ROWS])
    started = time.perf_counter()
    for text in texts:
        with pytest.raises(RequestError):
            parse_row_filter(text, CONFIG_OF)
    assert mask(f"person like '{pattern}b'", table=table) == [False] * len(ROWS)
    assert mask(f"person like '{'_' * (LONGEST_PATTERN - 1)}%'", table=table) == [True] * len(ROWS)
    assert time.perf_counter() - started < 20


def test_the_parser_is_loaded_when_a_filter_is_read() -> None:
    code = "import sys, frmu.data.row_filter; sys.exit('sqlglot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_but_the_config_decides_whether_a_filter_is_taken(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", pd.DataFrame({"home": ["a"]}), CONFIG)
    assert parse_row_filter("humidity < 0", config).text == "humidity < 0"


# --- records that lack a modality ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a > 1", [1]),
        ("not a > 1", [0]),
        ("a in (0, 2)", [0, 1]),
        ("a not in (0)", [1]),
        ("a is null", [2, 3]),
        ("a is not null", [0, 1]),
        ("said like '%lamp%'", [0, 2]),
        ("said not like '%lamp%'", [1]),
        ("said = 'a lamp'", [0]),
        ("not (a > 1 and said = 'x')", [0, 1, 2]),
        ("a > 1 or load = 3", [1, 3]),
        ("not (a > 1 or home = 'other')", [0]),
        ("home = 'home 1' and said is null", [3]),
    ],
)
def test_what_is_not_known_is_neither_so_nor_not_so(text: str, rows: list[int]) -> None:
    data = {"path": "x", "client": "home", "record": "record", "target": "load", "task": "regression"}
    data |= {"modalities": {"numbers": ["a"], "notes": ["said"]}}
    config = parse({"data": data, "model": {"encoders": {"notes": "hash"}}}, Path("homes.toml"))
    table = pa.table(
        {
            RECORD: ["0", "1", "2", "3"],
            TARGET: [0.0, 1.0, 2.0, 3.0],
            "a": pa.array([0.0, 2.0, None, None]),
            "said": ["a lamp", "red", "lamps", None],
        }
    )
    assert np.flatnonzero(mask(text, config, table)).tolist() == rows
