"""Whatever is put in, a program works or ends with one line and its code; never a traceback.

The cases of each test are drawn from one seed: some in the default suite, thousands with
`-m torture`. Nothing stands in for what reads them: parsers, settings, files, reports.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from accel_search.cli.options import read_config
from accel_search.cli.program import run_program
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, LoadError
from accel_search.report.html.page import search_page
from accel_search.report.html.script import script
from accel_search.runtime.loading.prompts import SUFFIXES, choose, load_prompts
from accel_search.search.space import JointSpace
from accel_search.settings import Settings, from_command_line, search_parser
from accel_search.storage import answers, search_results, speedup_bounds
from accel_search.storage.choice import find_result
from accel_search.storage.entries import BoundEntry, FailedEntry, SearchEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.keys import Configuration, parse_key, search_key
from accel_search.storage.lookup import Wanted
from accel_search.storage.run_reader import read_run
from accel_search.sweep import settings as sweeps
from accel_search.sweep.page import read_bounds, sweep_page
from accel_search.sweep.progress import table
from accel_search.sweep.status import status_of
from accel_search.traversal_search import main
from accel_search.write_report import main as report_main
from tests.support.fakes import PROVENANCE, WORKLOAD
from tests.support.pages import make_run_dir

ROOT = Path(__file__).parents[2]
SEARCHED = Settings(req_score_loss=0.02)
SPACE = JointSpace(("deepcache",), WORKLOAD)


def cases(quick, long, marks=()):
    """Draw so many cases in the default suite, and so many with `-m torture`."""
    return pytest.mark.parametrize(
        "count",
        [
            pytest.param(quick, id="quick", marks=marks),
            pytest.param(long, id="long", marks=pytest.mark.torture),
        ],
    )


def draw(strategy, count, check):
    """Check so many values of a strategy, the same at every run."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # To find the smallest case would take longer than to look at it.
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(value):
        check(value)

    each()


def ends_well(capsys, run, codes=(0, 2)):
    """Run a program, and check that it ends with one of the codes, and one line if it fails."""
    try:
        code = run()
    except SystemExit as end:  # --help and --version.
        code = end.code
    error = capsys.readouterr().err
    assert code in codes, error
    said = [line for line in error.splitlines() if not line.startswith("WARNING: ")]
    if code in (0, 3):
        assert said == []
    else:
        assert len(said) == 1 and ": error: " in said[0], error
    return code


# What is drawn

TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(), max_size=20),  # Lone surrogates, too.
    st.sampled_from(
        ["", " ", "\0", "\x1b[31m", "a\nb", "../../x", "/", "~", "x" * 300, "é" * 5000, "\ud800"]
    ),
    st.sampled_from(["auto", "cpu", "cuda:0", "20", "1h", "nan", "-1", "deepcache", "DDIM", "all"]),
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2, 8, 2**31, 2**63, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e308]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def toml(value):
    """Write a value as TOML; what TOML cannot hold becomes something else that it can."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps("" if value is None else value).replace("\x7f", "\\u007f")


def options_of(parser):
    """Return every flag that a program takes."""
    return sorted({flag for action in parser._actions for flag in action.option_strings})


PROGRAMS = {
    "accel-search": (lambda: search_parser("accel-search", "", "1"), from_command_line),
    "accel-explore": (
        lambda: sweeps.sweep_parser("accel-explore", "", "1"),
        sweeps.from_command_line,
    ),
}


def parse_only(name, parser, parse, arguments):
    """Run a program as far as its settings stand."""
    return run_program(name, lambda: parse(parser, arguments), lambda each: 0, lambda _: "INFO", "")


# Command lines and TOML


@cases(60, 3000)
@pytest.mark.parametrize("program", PROGRAMS)
def test_any_command_line(program, count, capsys):
    make, parse = PROGRAMS[program]
    parser = make()
    flags = [each for each in options_of(parser) if each not in ("--config", "--sweep")]
    words = st.one_of(st.sampled_from(flags), TEXTS, NUMBERS.map(str))
    draw(
        st.lists(words, max_size=6),
        count,
        lambda words: ends_well(capsys, lambda: parse_only(program, parser, parse, words)),
    )


@cases(60, 3000)
@pytest.mark.parametrize("program", PROGRAMS)
def test_any_toml(program, count, capsys, tmp_path):
    make, parse = PROGRAMS[program]
    parser, path = make(), tmp_path / "options.toml"
    names = [each.lstrip("-") for each in options_of(parser)]

    def check(content):
        lines = [f"{toml(name)} = {toml(value)}" for name, value in content.items()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        ends_well(
            capsys, lambda: parse_only(program, parser, parse, [f"--config={path}"]), codes=(0, 2)
        )

    draw(st.dictionaries(st.sampled_from(names) | TEXTS, VALUES, max_size=3), count, check)


@cases(60, 2000)
def test_any_space(count):
    names = st.sampled_from(["deepcache", "tome", "tgate", "steps", "no"]) | TEXTS
    parameters = st.sampled_from(["cache_interval", "ratio", "gate_step", "warmup"]) | TEXTS
    values = st.lists(SCALARS, max_size=4).map(tuple)

    def check(space):
        try:
            chosen = Settings(targets=("deepcache",), space=space)
            found = JointSpace(chosen.targets, WORKLOAD, chosen.space)
        except ConfigurationError as error:
            assert "\n" not in str(error)
            return
        assert len(found) == len({found.key_at(each) for each in range(len(found))})

    draw(st.dictionaries(names, st.dictionaries(parameters, values, max_size=2)), count, check)


@cases(40, 500)
def test_any_bytes_as_toml(count, tmp_path):
    path = tmp_path / "c.toml"

    def check(content):
        path.write_bytes(content)
        try:
            read_config(path, (), "accel-search")
        except ConfigurationError as error:
            assert "\n" not in str(error)

    draw(st.binary(max_size=200), count, check)


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5000 + "]" * 5000, "steps = " + "1" * 5000, "\ufeff", "steps = 20\0"]
)
def test_toml_beyond_all_measure(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read as TOML") as caught:
        read_config(tmp_path / "c.toml", (), "accel-search")
    assert "\n" not in str(caught.value)


def test_a_duration_without_end_is_refused_and_does_not_spoil_the_story():
    # It was written into the run's story as infinity, which JSON does not know, after the search.
    with pytest.raises(ConfigurationError, match="at most 10,000 days"):
        from_command_line(search_parser("a", "", "1"), ["--time_budget", "9" * 400 + "h"])


# Keys


@cases(100, 3000)
def test_any_key(count):
    parts = st.tuples(*[VALUES] * 6).map(str)
    words = st.text("()[]{},:'\"0123456789eE+-.jb lambdanotNone\0\n", max_size=40)

    def check(text):
        key = parse_key(text)
        assert key is None or (int(key[2]) >= 0 and "+".join(key[5]) is not None)

    draw(st.one_of(parts, words, TEXTS), count, check)


@pytest.mark.parametrize("text", ["{[]: 1}", "(" * 5000, "1" * 6000, "-" * 9000 + "1", "\0"])
def test_keys_that_literal_eval_stumbles_over(text):
    assert parse_key(text) is None


# Result files


def damaged(document):
    """Draw a document in which up to three values are replaced, taken out or added."""

    def places(value, path=()):
        yield path
        if isinstance(value, dict):
            for key in value:
                yield from places(value[key], (*path, key))
        elif isinstance(value, list):
            for index, each in enumerate(value[:4]):
                yield from places(each, (*path, index))

    def changed(change):
        where, what, instead = change
        content = copy.deepcopy(document)
        if not where:
            return instead
        parent = content
        for step in where[:-1]:
            parent = parent[step]
        if what == "replace":
            parent[where[-1]] = instead
        elif what == "remove":
            del parent[where[-1]]
        elif isinstance(parent, dict):
            parent[str(instead)] = parent[where[-1]]
        else:
            parent.append(instead)
        return content

    return st.tuples(
        st.sampled_from(list(places(document))),
        st.sampled_from(["replace", "replace", "remove", "add"]),
        VALUES,
    ).map(changed)


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def works_or_says(call, *classes):
    """Call; an error must be one of ours, and one line."""
    try:
        return call()
    except classes as error:
        assert "\n" not in str(error)
        return None


def a_result_file():
    content = json.loads((ROOT / "search_params.json").read_text())
    (entry, *_) = content.values()
    # As measured here, so that it answers.
    entry = entry | {"provenance": PROVENANCE.as_dict()}
    key = search_key(WORKLOAD, "upbound_speedup", 0.02, ["deepcache"])
    other = entry | {"provenance": PROVENANCE.as_dict() | {"model_id": "other"}}
    entry["evidence"]["search"] = search_results.search_identity(SEARCHED, SPACE.values())
    return key, {key: entry | {"by_model": {"demo": entry, "other": other}}}


@cases(50, 3000)
def test_a_damaged_result_file_is_read_and_takes_a_new_result(count, tmp_path):
    key, sound = a_result_file()
    entry = sound[key]["by_model"]["demo"]
    path = written(tmp_path / "search_params.json", sound)
    found, _ = answers.stored_answer(path, WORKLOAD, SEARCHED, SPACE.values(), PROVENANCE)
    assert (
        found is not None
        and find_result(path, Wanted(model="demo")).entry.settings == entry["settings"]
    )

    def check(content):
        written(path, content)
        found, _ = answers.stored_answer(path, WORKLOAD, SEARCHED, SPACE.values(), PROVENANCE)
        if found is not None:
            from accel_search.report.console.summary import stored_summary

            assert stored_summary(found, SEARCHED)
        settings = works_or_says(lambda: find_result(path).entry.settings, ConfigurationError)
        if settings is not None:
            assert str(Candidate(settings))
        # What a night has measured is kept, whatever the file held before.
        search_results.save_winner(path, key, as_type(entry, SearchEntry))
        assert json.loads(path.read_text())[key]["speedup"] == entry["speedup"]
        assert find_result(path, Wanted(model="demo", steps=20)).entry.settings

    draw(damaged(sound), count, check)


SWEPT = Configuration("SDXL", "DDIM", 20, "deepcache")
SWEEP = sweeps.SweepSettings(
    models=("SDXL",), scheds=("DDIM",), steps=(20,), methods=("deepcache",),
    common={"latency_only": True},
)  # fmt: skip


def a_bounds_file():
    content = json.loads((ROOT / "speedup_bounds.json").read_text())
    key = next(each for each in content if "XL" in each and "DDIM" in each and "'20'" in each)
    failed = {"error": "timeout", "message": "late", "seconds": 9.0, "latency_only": True}
    return key, {key: content[key], "failed_configs": {"SDXL_DDIM_25_tome": failed}}


@cases(30, 3000)
def test_a_damaged_file_of_bounds_is_read_reported_and_takes_a_new_bound(count, tmp_path):
    key, sound = a_bounds_file()
    (label, entry), *_ = sound[key]["by_model"].items()
    path = written(tmp_path / "speedup_bounds.json", sound)
    assert "</html>" in sweep_page(read_bounds(path), {})

    def check(content):
        written(path, content)
        read = works_or_says(lambda: read_bounds(path), LoadError, ConfigurationError)
        if read is not None:
            assert "</html>" in sweep_page(read, {})
        if isinstance(content, dict):
            status = status_of(content, SWEPT, SWEEP.search_settings(SWEPT), None)
            assert table({SWEPT: status})
        late = FailedEntry(error="timeout", message="x")
        speedup_bounds.save(path, key, label, as_type(entry, BoundEntry), "SDXL_DDIM_25_tome")
        speedup_bounds.save_failure(path, "SDXL_DDIM_50_tome", late)
        kept = json.loads(path.read_text())
        assert kept[key]["max_speedup"] and kept["failed_configs"]["SDXL_DDIM_50_tome"]

    draw(damaged(sound), count, check)


def a_trials_file(tmp_path):
    """Return what a real replay writes: two candidates measured, one failed, one confirmed."""
    from dataclasses import asdict

    base = {"seconds_per_image": [0.5, 0.51, 0.5, 0.49], "scores": [30.0, 31.0, 29.0, 32.0]}
    fast = {"cache_interval": 3, "cache_branch_id": 0}
    sample = {"seconds_per_image": [0.2, 0.21], "scores": [29.9, 31.0, 29.0, 31.8]}
    paired = {"baseline_seconds_per_image": [0.5, 0.5], "batch_size": 4}
    beside = sample | paired | {"psnr": [30.0] * 4, "ssim": [0.9] * 4}
    return {
        "format": "accel-search-trials/1",
        "workload": asdict(WORKLOAD),
        "baseline": base | {"baseline_seconds_per_image": [0.5, 0.5, 0.51, 0.5], "batch_size": 4},
        "trials": [
            {"candidate": {"deepcache": fast}, **beside, "failure": None},
            {"candidate": {"deepcache": fast | {"cache_interval": 2}}, **sample, "failure": None},
            {
                "candidate": {"deepcache": fast | {"cache_interval": 5}},
                "failure": {"kind": "invalid_image", "message": "black", "seconds": 1.0},
            },
        ],
        "beside": {
            "baseline:held_out:4": base | paired,
            "held_out:deepcache(cache_interval=3, cache_branch_id=0)": beside,
            "steps:10": beside,
        },
    }


@cases(30, 2000)
def test_a_damaged_trials_file_is_replayed_and_reported_or_refused(
    count, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sound = a_trials_file(tmp_path)
    path = tmp_path / "trials.json"
    replay = ["--replay", str(path), "--strategy", "grid", "--quiet", "--req_score_loss", "0.5"]
    written(path, sound)
    assert ends_well(capsys, lambda: main(replay)) == 0

    def check(content):
        written(path, content)
        ends_well(capsys, lambda: main(replay), codes=(0, 2, 3))
        run = works_or_says(lambda: read_run(path), LoadError, ConfigurationError)
        if run is not None:
            assert "</html>" in search_page(run)
            if works_or_says(lambda: script(run), ConfigurationError, LoadError):
                compile(script(run), "run_fast.py", "exec")

    draw(damaged(sound), count, check)


@cases(12, 1500, pytest.mark.slow)
def test_a_damaged_story_or_list_of_pictures_is_reported_or_refused(
    count, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run_dir = make_run_dir(tmp_path / "run")
    files = [*(run_dir / "stories").iterdir(), *(run_dir / "pictures").rglob("pictures.json")]
    assert len(files) == 2
    sound = {file: json.loads(file.read_text()) for file in files}
    assert search_page(read_run(run_dir))

    def check(change):
        file, content = change
        written(file, content)
        run = works_or_says(lambda: read_run(run_dir), LoadError, ConfigurationError)
        if run is not None:
            works_or_says(lambda: search_page(run), LoadError)
            works_or_says(lambda: script(run), ConfigurationError, LoadError)
        written(file, sound[file])

    draw(
        st.one_of([st.tuples(st.just(file), damaged(content)) for file, content in sound.items()]),
        count,
        check,
    )


@cases(30, 1000)
def test_any_bytes_as_any_file(count, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("search_params.json", "speedup_bounds.json", "t.json", "t.json.gz"):
        (tmp_path / name).touch()

    def check(case):
        name, content, compress = case
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if compress else content)
        ends_well(capsys, lambda: report_main([str(path)]), codes=(2, 5))
        ends_well(capsys, lambda: main(["--replay", str(path), "--quiet"]), codes=(2,))
        if path.suffix == ".json":
            works_or_says(lambda: find_result(path).entry.settings, ConfigurationError)

    draw(
        st.tuples(
            st.sampled_from(["search_params.json", "speedup_bounds.json", "t.json", "t.json.gz"]),
            st.binary(max_size=60) | st.sampled_from([b"[" * 99999, b"1" * 9999, b"\xff\xfe{"]),
            st.booleans(),
        ),
        count,
        check,
    )


# Prompts

NASTY = {
    "empty-looking": "\u200b\u200e\ufeff",
    "ten thousand characters": "a red ring " * 909,
    "ten thousand of one word": "x" * 10_000,
    "markup": "</script><script>alert(1)</script>&amp;<!-- --> ]]>",
    "NUL": "a\0b",
    "control characters": "\x01\x02\x1b[31mred\x1b[0m\x7f\r",
    "right to left": "חתול \u202e אדום مربع أحمر",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 2️⃣",
    "combining": "a" + "\u0301" * 500,
    "beyond the basic plane": "𝕳𝖊𝖑𝖑𝖔 𠜎 \U0010ffff",
    "noncharacters": "\ufffe\uffff\ufdd0",
    "template": "{{ 7 * 7 }} {% raw %} ${x} %s %(a)s",
    "tokens of the tokenizer": "<|endoftext|> <|startoftext|>",
    "a formula": "=1+1",
    "Chinese": "一个红色的环",
}


def prompts_of(path, count=1):
    return load_prompts(Settings(prompts=str(path), num_samples=max(2, count), held_out_samples=0))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_gives_back_every_prompt_that_it_can_hold(tmp_path, suffix):
    texts = list(NASTY.values())
    if suffix in (".txt", ".tsv"):  # A prompt is a line there.
        texts = [each for each in texts if not {"\n", "\r", "\t"}.intersection(each)]
    path = write_prompts(tmp_path / f"p{suffix}", texts)
    found = prompts_of(path, len(texts))
    expected = {unicodedata.normalize("NFC", each).strip() for each in texts}
    assert {prompt.text for prompt in found.search} == expected
    assert len(found.digest) == 16


def write_prompts(path, texts):
    """Write prompts as each format does."""
    if path.suffix == ".txt":
        content = "\n".join(texts)
    elif path.suffix == ".csv":
        stream = io.StringIO()
        csv.writer(stream).writerows([["prompt"], *([each] for each in texts)])
        content = stream.getvalue()
    elif path.suffix == ".tsv":
        content = "\n".join(["prompt", *texts])
    elif path.suffix == ".json":
        content = json.dumps(texts)
    elif path.suffix == ".jsonl":
        content = "\n".join(json.dumps({"prompt": each}) for each in texts)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), path)
        return path
    path.write_text(content, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_text_that_is_no_text_is_refused(tmp_path, suffix):
    path = write_prompts(tmp_path / f"p{suffix}", ["a red ring", "half a pair \ud83d of two"])
    with pytest.raises(LoadError, match="surrogates not allowed") as caught:
        prompts_of(path)
    assert "\n" not in str(caught.value)


@cases(30, 3000)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_file_of_prompts(suffix, count, tmp_path):
    path = tmp_path / f"p{suffix}"
    whole = write_prompts(path, ["a red ring", 'a "blue" star, large', "a cube"]).read_bytes()

    def check(content):
        path.write_bytes(content)
        works_or_says(lambda: prompts_of(path), LoadError, ConfigurationError)

    def cut(case):
        where, instead = case
        return whole[:where] + instead + whole[where + len(instead) :]

    nested = VALUES.map(lambda each: json.dumps(each).encode())
    draw(
        st.one_of(
            st.binary(max_size=80),
            nested,
            st.lists(nested, max_size=3).map(b"\n".join),
            st.text("prompt,\t\n\"a'\r\0", max_size=60).map(str.encode),
            st.tuples(st.integers(0, len(whole)), st.binary(max_size=4)).map(cut),
            st.integers(0, len(whole)).map(lambda end: whole[:end]),
            st.sampled_from([b"[" * 99999, b"1" * 9999, b"\xff\xfe", b"\xef\xbb\xbf"]),
        ),
        count,
        check,
    )


@cases(50, 2000)
def test_any_texts_are_chosen_among(count):
    def check(texts):
        try:
            found = choose(texts, "drawn", 0, 2, 1)
        except ConfigurationError as error:
            assert "\n" not in str(error)
            return
        assert len({each.text for each in (*found.search, *found.held_out)}) == 3

    draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6), count, check)
