"""The notebooks in `examples/`: stored without outputs, and each runs from top to bottom."""

import json
import re
import tempfile

import pytest

from tests.docs.blocks import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
LARGEST = 20_000  # bytes


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in an empty folder, and return the outputs of its cells; no port is opened."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    manager = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    place = tmp_path / "work"
    place.mkdir()

    def run(path):
        with tempfile.TemporaryDirectory() as sockets:  # the path of a socket must be short
            kernel = manager.AsyncKernelManager(kernel_name="python3", transport="ipc")
            kernel.connection_file = f"{sockets}/kernel.json"
            kernel.ip = f"{sockets}/socket"
            notebook = nbformat.read(path, as_version=4)
            client = nbclient.NotebookClient(
                notebook, kernel, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(place)}}
            )
            client.execute()
        return [output for cell in notebook.cells for output in cell.get("outputs", [])]

    execute = run
    execute.place = place
    return execute


def html_of(outputs):
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_has_its_place_in_the_documentation(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert path.stat().st_size < LARGEST
    assert f"examples/{path.name}" in (REPOSITORY / "docs" / "notebook.md").read_text(encoding="utf-8")


@pytest.mark.deployment
def test_the_first_run_trains_samples_and_compares(execute):
    outputs = execute(REPOSITORY / "examples" / "first_run.ipynb")
    assert {path.parent.name for path in execute.place.rglob("results.json")} == {"vae", "none"}
    said = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "\x1b" not in said
    assert sum(line.startswith("Round ") for line in said.splitlines()) == 2
    run, *tables = html_of(outputs)
    assert 'href="outputs/first_run/vae/report.html"' in run
    assert all(name in tables[-1] for name in ("accuracy", "generator.name", "none", "vae"))


@pytest.mark.deployment
def test_own_recordings_are_trained_on_classified_and_exported(execute):
    outputs = execute(REPOSITORY / "examples" / "own_recordings.ipynb")
    results = json.loads((execute.place / "outputs" / "own_recordings" / "results.json").read_text())
    assert (results["dataset"], results["test_clips"]) == ("folder", 16)
    run, exported = [table for table in html_of(outputs) if "<th>score</th>" in table]
    assert re.search(r"<th>0</th>\s*<td>rain</td>", run)
    assert exported == run
    assert {path.name for path in (execute.place / "exported").iterdir()} >= {"model.safetensors", "config.json"}
