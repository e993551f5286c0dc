"""The notebook: its outputs are those of a real run, and it runs from top to bottom."""

from __future__ import annotations

import pytest

from tests.support.docs_pages import NOTEBOOK, notebook_cells

PARAMETERS = "SAMPLES = 8"
SMALL = ["--height", "64", "--width", "64", "--held_out_samples", "0", "--timing_pairs", "4"]
SMALL += ["--strategy", "random", "--max_trials", "2", "--req_score_loss", "1"]


def test_it_is_committed_small_and_with_the_outputs_of_one_run_from_top_to_bottom():
    assert NOTEBOOK.stat().st_size < 1e6
    found = notebook_cells()
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert "The largest speedup within 2 % of the baseline's score" in text
    # Nothing of the machine that it ran on, and nothing that a library grumbled.
    assert "/home/" not in NOTEBOOK.read_text() and "Warning" not in text
    assert found[-1]["outputs"][-1]["data"]["text/plain"] in ("True", ["True"])


@pytest.mark.slow
def test_it_runs(monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The same in small: as many prompts as one call takes, small pictures, and two candidates.
    first = next(cell for cell in notebook.cells if PARAMETERS in cell.source)
    lines = first.source.replace(PARAMETERS, "SAMPLES = 4").splitlines()
    assert lines[-1].startswith("OPTIONS = [")
    first.source = "\n".join([*lines[:-1], f"OPTIONS = {SMALL}"])
    differ = "all(not np.array_equal(one, other) for one, other in zip(before, fast))"
    notebook.cells.append(nbformat.v4.new_code_cell(differ))
    done = NotebookClient(notebook, timeout=1500, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "")
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "trial 2/16" in printed and "accelerated" in printed
    restored, accelerated = [cell for cell in done.cells if cell.cell_type == "code"][-2:]
    assert restored.outputs[-1]["data"]["text/plain"] == "True"
    assert accelerated.outputs[-1]["data"]["text/plain"] == "True"
