"""`--lora` as text, and the lines that load what was measured."""

import ast

import pytest

from accel_search.core.loras import AskedLora, Lora, loading_lines, parse_lora, parse_loras


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:1e-1", "a.safetensors", 0.1),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:.5", r"C:\loras\a.safetensors", 0.5),
        ("a:b/c.safetensors", "a:b/c.safetensors", 1.0),
        ("a.safetensors:", "a.safetensors:", 1.0),
        ("owner/name:2", "owner/name", 2.0),
    ],
)
def test_the_scale_is_a_number_behind_the_last_colon(text, name, scale):
    asked = parse_lora(text)
    assert asked == AskedLora(name, scale)
    assert parse_lora(str(asked)) == asked


@pytest.mark.parametrize("text", ["a:nan", "a:inf", "a:101", ":0.5"])
def test_a_scale_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"e.g. style.safetensors:0.8"):
        parse_lora(text)


def test_one_spelling_of_each():
    assert parse_loras("a:0.50") == ("a:0.5",)
    assert parse_loras(["a", "b:2"]) == ("a:1", "b:2")


def test_the_lines_load_them_as_they_were_measured():
    here = Lora("my 'loras'/a.safetensors", "0" * 16, 0.8)
    hub = Lora("owner/name/sub/b.safetensors", "1" * 16, -0.5, "c" * 40)
    lines = loading_lines([here, hub])
    calls = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Call)]
    first, second, last = sorted(calls, key=lambda call: call.lineno)
    assert ast.literal_eval(first.args[0]) == here.file
    given = {word.arg: ast.literal_eval(word.value) for word in second.keywords}
    assert ast.literal_eval(second.args[0]) == "owner/name"
    assert given == {
        "weight_name": "sub/b.safetensors",
        "revision": "c" * 40,
        "adapter_name": "lora_1",
    }
    assert [ast.literal_eval(each) for each in last.args] == [["lora_0", "lora_1"], [0.8, -0.5]]
    assert loading_lines(None) == loading_lines(()) == []
