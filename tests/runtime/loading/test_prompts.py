"""Prompts: the same ones everywhere, disjoint, from any source."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from accel_search.errors import ConfigurationError, ExitCode, LoadError
from accel_search.runtime.loading import prompts
from accel_search.runtime.loading.prompts import choose, load_prompts
from accel_search.settings import Settings

TEXTS = [f"prompt {i}" for i in range(40)]


def test_search_and_held_out_prompts_are_distinct_and_disjoint():
    chosen = choose([*TEXTS, *TEXTS, "", "  "], "test", 0, 15, 25)

    texts = [p.text for p in (*chosen.search, *chosen.held_out)]
    assert len(chosen.search) == 15
    assert len(chosen.held_out) == 25
    assert sorted(texts) == sorted(TEXTS)
    assert len({p.seed for p in (*chosen.search, *chosen.held_out)}) == 40


def test_the_choice_depends_on_the_seed_and_on_nothing_else():
    chosen = choose(TEXTS, "test", 0, 10, 10)

    assert choose(TEXTS[::-1], "test", 0, 10, 10) == chosen
    assert choose(TEXTS, "test", 1, 10, 10).search != chosen.search
    # Pinned: another machine or another version must not choose otherwise.
    assert (chosen.search[0].text, chosen.search[0].seed) == ("prompt 15", 196580869931117)


def test_a_prompts_noise_does_not_depend_on_how_many_others_there_are():
    few, many = choose(TEXTS, "test", 0, 5, 5), choose(TEXTS, "test", 0, 20, 20)

    assert many.search[:5] == few.search
    assert many.held_out[-5:] == few.held_out


def test_too_few_prompts_say_how_many_there_are():
    with pytest.raises(ConfigurationError, match=r"holds 40 distinct prompts.*need 41") as caught:
        choose(TEXTS, "test", 0, 21, 20)
    assert caught.value.exit_code == ExitCode.INVALID


def test_no_held_out_prompts_can_be_asked_for():
    assert choose(TEXTS, "test", 0, 40, 0).held_out == ()


FILES = {
    "lines.txt": "\ufeffone\n\n  two  \nthree, with a comma\n",
    "table.csv": 'id,caption\n1,one\n2,two\n3,"three, with a comma"\n4,\n',
    "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\tNote\n"
    "one\tAbstract\tBasic\t\ntwo\tAbstract\tBasic\t\nthree, with a comma\tArts\tBasic\tx\n",
    "list.json": json.dumps(["one", "two", "three, with a comma", None]),
    "objects.json": json.dumps(
        [{"id": 1, "text": "one"}, {"text": "two"}, {"prompt": "three, with a comma", "text": "x"}]
    ),
    "columns.json": json.dumps({"Prompt": ["one", "two", "three, with a comma"], "id": [1, 2, 3]}),
    "lines.jsonl": '{"captions": ["one", "uno"]}\n\n{"captions": ["two"]}\n'
    '{"captions": ["three, with a comma"]}\n{"captions": []}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_each_file_format_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")

    chosen = load_prompts(Settings(prompts=str(path), num_samples=2, held_out_samples=1))

    texts = {p.text for p in (*chosen.search, *chosen.held_out)}
    assert texts == {"one", "two", "three, with a comma"}
    assert chosen.source == str(path)


HEADS = {
    "capital.csv": "ID,Caption\n1,one\n2,two\n",
    "capitals.csv": "ID,PROMPT\n1,one\n2,two\n",
    "spaces.csv": "ID, prompt \n1,one\n2,two\n",
    "spaces.jsonl": '{" Captions": ["one", "uno"]}\n{" Captions": ["two"]}\n',
    "exact first.csv": "Caption,text\nx,one\ny,two\n",
    "the better name first.csv": "TEXT,Prompt ,CAPTION\nx,one,x\ny,two,y\n",
    "a blank line.csv": "\nprompt\none\ntwo\n",
    "blank lines.csv": "\r\n \r\n,\r\nid,prompt\r\n1,one\r\n2,two\r\n",
    "blank lines.tsv": "\n\t\n\tprompt\n1\tone\n2\ttwo\n",
}
"""Tables as spreadsheets and other programs write their heads."""


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_found_in_any_letters_and_behind_blank_lines(tmp_path, name):
    (tmp_path / name).write_bytes(HEADS[name].encode())
    chosen = load_prompts(Settings(prompts=str(tmp_path / name), num_samples=2, held_out_samples=0))
    assert {p.text for p in chosen.search} == {"one", "two"}


def test_a_head_of_a_parquet_file_is_found_in_any_letters(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": [1, 2], "Caption ": ["one", "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    chosen = load_prompts(
        Settings(prompts=str(tmp_path / "t.parquet"), num_samples=2, held_out_samples=0)
    )
    assert {p.text for p in chosen.search} == {"one", "two"}


def test_a_tilde_is_the_home_folder_as_in_other_options(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    chosen = load_prompts(Settings(prompts="~/p.txt", num_samples=2, held_out_samples=0))
    assert {p.text for p in chosen.search} == {"one", "two"}
    with pytest.raises(LoadError, match=r"--prompts ~/q.txt: no such file; give builtin, coco or"):
        load_prompts(Settings(prompts="~/q.txt"))
    with pytest.raises(LoadError, match=r"--prompts ~no-one/p.txt: no such file"):
        load_prompts(Settings(prompts="~no-one/p.txt"))


SEPARATORS = "one\u2028two", "three\x0cfour", "five\x85six"
"""What `str.splitlines` takes for several lines, and no editor does."""
LINES = {
    "lines.txt": "\r\n".join(SEPARATORS),
    "table.csv": "prompt,id\r\n" + "\r\n".join(f"{text},1" for text in SEPARATORS),
    "table.tsv": "prompt\tid\n" + "\n".join(f"{text}\t1" for text in SEPARATORS),
    "lines.jsonl": "\n".join(
        json.dumps({"prompt": text}, ensure_ascii=False) for text in SEPARATORS
    ),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["bare", "marked"])
@pytest.mark.parametrize("name", LINES)
def test_a_line_ends_where_an_editor_ends_it(tmp_path, name, mark):
    (tmp_path / name).write_bytes((mark + LINES[name]).encode())
    chosen = load_prompts(Settings(prompts=str(tmp_path / name), num_samples=3, held_out_samples=0))
    assert {p.text for p in chosen.search} == set(SEPARATORS)


def test_two_spellings_of_one_text_are_one_prompt_with_one_noise():
    composed, taken_apart = "caf\u00e9", "cafe\u0301"
    chosen = choose([composed, "tea"], "test", 0, 2, 0)
    assert choose([taken_apart, "tea"], "test", 0, 2, 0).digest == chosen.digest
    with pytest.raises(ConfigurationError, match="holds 1 distinct prompts"):
        choose([composed, taken_apart], "test", 0, 2, 0)


@pytest.mark.parametrize("content", ["", "\n \n", "one\none\n one "])
def test_an_empty_file_or_one_prompt_over_and_over_says_how_many_there_are(tmp_path, content):
    (tmp_path / "p.txt").write_text(content)
    count = len(set(content.split()))
    with pytest.raises(ConfigurationError, match=f"holds {count} distinct prompts.*need 2: lower"):
        load_prompts(Settings(prompts=str(tmp_path / "p.txt"), num_samples=2, held_out_samples=0))


def test_cells_of_a_parquet_file_that_are_no_text_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "table.parquet"
    for values, shown in (([None, 7], "row 2 holds 7"), ([b"one", b"two"], "row 1 holds b'one'")):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": values}), file)
        with pytest.raises(LoadError, match=f"{shown}, which is no text") as caught:
            load_prompts(Settings(prompts=str(file)))
        assert caught.value.exit_code == ExitCode.NOT_LOADED


def test_a_quotation_mark_in_a_tsv_file_is_part_of_the_prompt(tmp_path):
    (tmp_path / "p.tsv").write_text('Prompt\tCategory\n"hi" on a wall\tx\nthe word "end\ty\n')
    chosen = load_prompts(
        Settings(prompts=str(tmp_path / "p.tsv"), num_samples=2, held_out_samples=0)
    )
    assert {p.text for p in chosen.search} == {'"hi" on a wall', 'the word "end'}


def test_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": [1, 2, 3], "captions": [["one", "uno"], ["two"], []]})
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")

    chosen = load_prompts(
        Settings(prompts=str(tmp_path / "table.parquet"), num_samples=2, held_out_samples=0)
    )

    assert {p.text for p in chosen.search} == {"one", "two"}


BROKEN = {
    "broken.json": (b"{", "cannot be read as json"),
    "number.json": (b"3", "expected a list"),
    "broken.parquet": (b"PAR1", "cannot be read as parquet"),
    "other.csv": (b"id,name\n1,one\n", "no column prompt, caption, captions, text, Prompt; it has"),
    "binary.txt": (b"one\xff\xfe\x00", "not UTF-8 (byte 0xff at position 3): save it as"),
    "utf16.json": ('["one", "two"]'.encode("utf-16"), "not UTF-8 (byte 0xff at position 0)"),
    "latin.csv": ("prompt\ncafé\n".encode("latin-1"), "not UTF-8 (byte 0xe9 at position"),
    "numbers.json": (b'["one", "two", 3]', "row 3 holds 3, which is no text"),
    "flags.jsonl": (b'{"prompt": "one"}\n\n{"prompt": true}', "row 2 holds True, which is no text"),
    "columns.json": (b'{"prompt": ["one", NaN]}', "row 2 holds nan, which is no text"),
    "nested.json": (
        b'[{"prompt": {"en": "one, two, three, four, five, six"}}]',
        "row 1 holds {'en': 'one, two, three, four, five, six…, which is no text",
    ),
    "captions.json": (b'[{"captions": [["one"]]}]', "row 1 holds ['one'], which is no text"),
    "commas.csv": (b"prompt\none\na ring, a star\n", "row 2 has more cells than there are columns"),
    "table.xlsx": (b"", "ending in .txt, .csv, .tsv, .json, .jsonl, .parquet"),
    "broken.jsonl": (b'{"prompt": "one"}\n{', "cannot be read as jsonl"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, name):
    content, expected = BROKEN[name]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(LoadError) as caught:
        load_prompts(Settings(prompts=str(tmp_path / name)))

    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"--prompts {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_choices():
    with pytest.raises(LoadError, match=r"--prompts cocoo: no such file; give builtin, coco or"):
        load_prompts(Settings(prompts="cocoo"))


def test_coco_takes_each_pictures_first_caption(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return {"captions": [[f"picture {i} ", "other words"] for i in range(10)]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)

    chosen = load_prompts(Settings(pipe="SDXL", num_samples=4, held_out_samples=6))

    assert asked == [("phiyodr/coco2017", "validation")]
    assert chosen.source == "coco"
    texts = {p.text for p in (*chosen.search, *chosen.held_out)}
    assert texts == {f"picture {i}" for i in range(10)}


def test_coco_without_a_network_names_the_way_out(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)

    with pytest.raises(
        LoadError, match=r"no route\): check the network .*use --prompts builtin or a file"
    ) as c:
        load_prompts(Settings(prompts="coco"))
    assert "\n" not in str(c.value)


def _offline(served, patch):
    import datasets

    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _unreachable(served, patch):
    import datasets

    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    nowhere = "http://127.0.0.1:9"
    patch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    patch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        nowhere + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(datasets.config, "HF_ENDPOINT", nowhere)


def _busy(served, patch):
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    served.status = 429


def _fails(make):
    """Return what makes `datasets` fail by an error of its own, which hides another."""

    def stand_in_the_way(served, patch):
        def load_dataset(name, split):
            from datasets.exceptions import DatasetGenerationError

            try:
                raise make()
            except Exception as error:
                raise DatasetGenerationError("An error occurred") from error

        patch.setattr("datasets.load_dataset", load_dataset)

    return stand_in_the_way


OBSTACLES = {
    "offline": (_offline, "cannot be fetched in offline mode: unset HF_HUB_OFFLINE to fetch it"),
    "no network": (_unreachable, "could not be fetched (ConnectionError: Couldn't reach "),
    "missing": (lambda *_: None, "does not exist, was removed or is private: check the spelling"),
    "busy": (_busy, "cannot be fetched now, the hub was asked too often (HTTP 429): wait some"),
    "full disk": (
        _fails(lambda: OSError(errno.ENOSPC, "No space left on device")),
        "does not fit the disk of {cache}: free disk space, or set HF_HOME",
    ),
    "damaged": (
        _fails(lambda: ValueError("not an Arrow file")),
        "could not be fetched (ValueError: not an Arrow file): run the same command again, or use",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_of_coco_is_one_line(served, tmp_path, monkeypatch, name):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    stand_in_the_way, expected = OBSTACLES[name]
    stand_in_the_way(served, monkeypatch)

    with pytest.raises(LoadError) as caught:
        load_prompts(Settings(prompts="coco"))

    expected = expected.format(cache=tmp_path / "hf" / "hub")
    start = f"--prompts coco: the dataset phiyodr/coco2017 {expected}"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert ("check the network" in str(caught.value)) == (name == "no network")


def test_choosing_prompts_imports_no_torch():
    code = (
        "import sys, accel_search.runtime.loading.prompts, accel_search.runtime.measuring.batches;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert prompts.COCO_SPLIT == "validation"


CASES = {
    "cases.csv": "prompt,Negative_Prompt ,seed\none,blurry,7\none,,8\none,,\ntwo,, 9.0 \n",
    "cases.tsv": "prompt\tnegative_prompt\tseed\none\tblurry\t7\none\t\t8\none\t\t\ntwo\t\t9\n",
    "cases.json": json.dumps(
        {
            "prompt": ["one", "one", "one", "two"],
            "negative_prompt": ["blurry", None, "", " "],
            "seed": [7, 8, None, 9.0],
            "more": [1],
        }
    ),
    "cases.jsonl": '{"prompt": "one", "negative_prompt": "blurry", "seed": 7}\n'
    '{"prompt": "one", "seed": 8}\n{"prompt": "one"}\n{"prompt": "two", "seed": "9"}\n',
}


def _cases_of(path, **options):
    chosen = load_prompts(Settings(prompts=str(path), held_out_samples=0, **options))
    return {(p.text, p.seed, p.inputs) for p in chosen.search}, chosen


@pytest.mark.parametrize("name", [*CASES, "cases.parquet"])
def test_rows_of_one_prompt_that_say_something_else_are_different_cases(tmp_path, name):
    import pyarrow.json
    import pyarrow.parquet

    path = tmp_path / name
    if name in CASES:
        path.write_text(CASES[name])
    else:
        (tmp_path / "cases.jsonl").write_text(CASES["cases.jsonl"].replace('"9"', "9"))
        table = pyarrow.json.read_json(tmp_path / "cases.jsonl")
        pyarrow.parquet.write_table(table, path)
    cases, chosen = _cases_of(path, num_samples=4)
    derived = next(seed for text, seed, _ in cases if text == "one" and seed not in (7, 8))
    none = (("negative_prompt", ""),)
    assert cases == {
        ("one", 7, (("negative_prompt", "blurry"),)),
        ("one", 8, none),
        ("one", derived, none),
        ("two", 9, none),
    }
    # All have a negative prompt if one has; the option stands in where a row has none.
    others, other = _cases_of(path, num_samples=4, negative_prompt="dark")
    assert ("two", 9, (("negative_prompt", "dark"),)) in others
    assert other.digest != chosen.digest


def test_rows_without_further_columns_have_the_digest_they_always_had(tmp_path):
    # Pinned: results that are stored have been measured on it.
    assert choose(TEXTS, "test", 0, 10, 10).digest == "f609804e10e00d04"
    (tmp_path / "t.csv").write_text("prompt,seed,other\n" + "".join(f"{t},,x\n" for t in TEXTS))
    chosen = load_prompts(
        Settings(prompts=str(tmp_path / "t.csv"), num_samples=10, held_out_samples=10)
    )
    assert chosen.digest == choose(TEXTS, "test", 0, 10, 10).digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,seed\na,-1\n", "row 1 holds '-1' in the column seed; expected a whole number"),
        ("prompt,seed\na,1.5\n", "row 1 holds '1.5' in the column seed"),
        ("prompt,seed\na,1\nb,99999999999999999\n", "row 2 holds '99999999999999999'"),
    ],
)
def test_a_cell_that_its_column_is_not_for_is_one_line(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LoadError, match=said):
        _cases_of(tmp_path / "t.csv", num_samples=2)


def test_columns_of_a_json_file_that_differ_in_length_are_one_line(tmp_path):
    (tmp_path / "t.json").write_text('{"prompt": ["a", "b"], "seed": [1]}')
    with pytest.raises(LoadError, match=r"its columns differ in length \(prompt 2, seed 1\)"):
        _cases_of(tmp_path / "t.json", num_samples=2)
