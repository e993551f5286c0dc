"""Verdicts for a CI, as JUnit XML and Markdown: of named settings, a search, and `--verify`."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.named import Comparison
from accel_search.report.ci import Case, Checks, junit, markdown
from accel_search.traversal_search import main
from tests.support.fakes import FakeEvaluator
from tests.support.replays import TABLE

FILES = ["--junit", "out/j.xml", "--markdown", "out/m.md", "--quiet"]
NAMED = ["--replay", str(TABLE), "--candidate", "deepcache(3,0)", "--candidate", "deepcache(5,0)"]
HOSTILE = 'a|b `c` <b>&amp; "q" *d* [x](http://y) \x1b[31m\0\x85 \ud800 \ufffe\n# é 图 ]]> \\'
"""What a model's name or an exception's message may hold."""
VISIBLE = 'a|b `c` <b>&amp; "q" *d* [x](http://y) [31m # é 图 ]]> \\'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Stand a fake pipeline in."""
    opened = "accel_search.runtime.workbench.open_evaluator"

    def use(**options):
        monkeypatch.setattr(opened, lambda settings, logger: FakeEvaluator(**options))

    use()
    return use


def cases():
    """Return name -> (tag of the verdict, message) of what was written, its counts checked."""
    suite = ET.parse("out/j.xml").getroot().find("testsuite")  # noqa: S314 - our own
    found = {}
    for case in suite:
        if case.tag == "testcase":
            told = [child for child in case if child.tag in ("failure", "skipped")]
            found[case.get("name")] = (
                (told[0].tag, told[0].get("message")) if told else ("passed", "")
            )
    tags = [tag for tag, _ in found.values()]
    counted = [suite.get(name) for name in ("tests", "failures", "skipped", "errors")]
    known = [len(tags), tags.count("failure"), tags.count("skipped"), 0]
    assert counted == list(map(str, known))
    return found


def tables(text):
    """Return the tables of a Markdown text, as rows of cells as they are seen."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found = []
    for token in tokens:
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level > 3:
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def test_each_named_candidate_is_a_case(folder):
    assert main([*NAMED, *FILES]) == 0
    assert cases() == {"deepcache(3, 0)": ("passed", ""), "deepcache(5, 0)": ("passed", "")}
    text = Path("out/m.md").read_text()
    assert text.startswith("## accel-search: pass\n")
    verdicts, compared, _ = tables(text)
    assert [row[:2] for row in verdicts[1:]] == [
        ["pass", "deepcache(3, 0)"],
        ["pass", "deepcache(5, 0)"],
    ]
    assert verdicts[1][2].startswith("1.82 [") and verdicts[1][4] == "64"
    assert compared[1][0] == "deepcache(5, 0)" and compared[1][3].startswith("no clear")


def test_the_three_verdicts_are_passed_failure_and_skipped(folder, fake):
    named = ["--candidate", "deepcache(2,0)", "--candidate", "deepcache(4,3)"]
    assert main([*named, "--req_speedup", "1.6", *FILES]) == 3
    found = cases()
    assert found["deepcache(4, 3)"][0] == "passed"
    assert found["deepcache(2, 0)"][0] == "failure"
    assert "below the required 1.6" in found["deepcache(2, 0)"][1]
    fake(noise=0.1)
    options = ["--candidate", "deepcache(4,3)", "--req_speedup", "1.9", "--force", *FILES]
    assert main(options) == 7
    tag, message = cases()["deepcache(4, 3)"]
    assert tag == "skipped" and "More --timing_pairs than 4" in message
    fake(fails=frozenset({Candidate({"steps": {"num_inference_steps": 10}})}))
    assert main(["--candidate", "steps(10)", *FILES]) == 3
    assert cases()["steps(10)"] == ("failure", "fail: unknown_error: the pipeline said no")
    (row,) = tables(Path("out/m.md").read_text())[0][1:]
    assert row == ["fail", "steps(10)", "-", "-", "-"]


def test_a_search_is_a_case_of_its_winner_whether_found_now_or_before(folder, fake):
    search = ["--strategy", "grid", "--pictures", "0", *FILES]
    assert main(search) == 0
    assert cases() == {"deepcache(4, 3)": ("passed", "")}
    first = Path("out/m.md").read_text()
    assert "held-out prompts" in first and "a processor" in first
    assert main(search) == 0
    assert "search\\_params.json holds this result" in Path("out/m.md").read_text()
    assert tables(Path("out/m.md").read_text())[0] == tables(first)[0]
    assert main([*search, "--req_speedup", "9"]) == 3
    assert cases()["a winner of deepcache"][0] == "failure"
    assert "No candidate meets the goal" in cases()["a winner of deepcache"][1]
    assert main([*search, "--verify"]) == 0
    assert cases() == {"deepcache(4, 3)": ("passed", "")}
    assert "the result stored in search\\_params.json holds" in Path("out/m.md").read_text()
    fake(truth=lambda _: (1.2, 0.0))
    assert main([*search, "--verify"]) == 3
    assert "below the stored one" in cases()["deepcache(4, 3)"][1]


def test_a_run_that_ends_in_an_error_leaves_no_earlier_verdict(folder, capsys):
    assert main([*NAMED, *FILES]) == 0
    assert main([*NAMED, "--candidate", "deepcache(9,0)", *FILES]) == 2
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_file_that_cannot_be_written_is_one_line_before_anything_is_measured(
    folder, capsys, option
):
    assert main([*NAMED, option, "/proc/no/file", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "/proc/no/file" in error and error.count("\n") == 1
    assert main(["--latency_only", option, "f"]) == 2
    assert "has no verdict" in capsys.readouterr().err


def checks():
    candidate = Candidate({"tome": {"ratio": 0.4, "max_downsample": 2}})
    unknown = Estimate(1.0, 0.0, float("inf"))
    case = Case(HOSTILE, Verdict.FAIL, [HOSTILE], candidate, unknown, None, 3, 1.0)
    compared = [Comparison(candidate, candidate, unknown, unknown)]
    return Checks(HOSTILE, [case], {HOSTILE: HOSTILE}, compared)


def test_any_text_can_be_in_the_xml():
    written = junit(checks())
    suite = ET.fromstring(written).find("testsuite")  # noqa: S314 - our own
    case = suite.find("testcase")
    readable = "".join(char for char in HOSTILE if char not in "\x1b\0\x85\ud800\ufffe")
    assert case.get("name") == readable
    assert [own.get("value") for own in suite.find("properties")] == [readable, readable]
    assert case.find("failure").get("message").startswith('fail: a|b `c` <b>&amp; "q"')
    assert "speedup: 1.00 [unknown]" in case.find("system-out").text


def test_any_text_is_seen_as_it_is_in_markdown():
    text = markdown(checks())
    verdicts, compared, facts = tables(text)
    assert verdicts[1] == ["fail", VISIBLE, "1.00 [unknown]", "-", "3"]
    assert [len(row) for row in compared] == [4, 4]
    assert facts[1] == [VISIBLE, VISIBLE]
    assert text.isascii() is False and all(char.isprintable() or char == "\n" for char in text)
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert not any(tag in html for tag in ("<b>", "<a ", "<code>", "<em>", "<h1>"))
