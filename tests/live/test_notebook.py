"""In a notebook a search shows a bar while it runs, and its front as a picture."""

from __future__ import annotations

import base64

import pytest

pytestmark = pytest.mark.slow


def test_a_bar_and_the_front_as_a_picture(saved, quick, monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [
        f"from accel_search import search\n"
        f"from diffusers import StableDiffusionPipeline\n"
        f"prompts = [f'a {{size}} {{shape}}' for size in ('small', 'large', 'red', 'blue')\n"
        f"           for shape in ('ring', 'star')]\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(saved / 'sd')!r})",
        f"found = search(pipe, prompts, **{quick!r})",
        "found",
        "found.apply().candidate, found.winner.candidate",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    done = NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    _, searched, shown, applied = done.cells
    drawn = "".join(out["text"] for out in searched.outputs if out.get("name") == "stderr")
    assert "/1 " in drawn and "\r" in drawn  # The trial, drawn over itself.
    (output,) = shown.outputs
    assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")
    assert "speedup:" in output["data"]["text/plain"]
    assert "cache_interval" in applied.outputs[0]["data"]["text/plain"]
