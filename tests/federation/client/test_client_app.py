"""Flower's entry point for the sites: in a deployment every message starts a process, most of whose time is imports."""

import subprocess
import sys


def imported_of(names, source):
    """Which of these packages a process has imported that does what `source` says."""
    code = f"import sys\n{source}\nprint(*sorted({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_node_tells_its_name_without_the_libraries_that_its_work_needs():
    source = (
        "from fed_a2v.federation.client.client_app import client_fn\n"
        "from flwr.app import Context, RecordDict\n"
        "from flwr.common import GetPropertiesIns\n"
        "context = Context(1, 2, {'site': 'north'}, RecordDict(), {})\n"
        "answer = client_fn(context).get_properties(GetPropertiesIns({}))\n"
        "assert answer.properties == {'site': 'north'}, answer\n"
    )
    assert imported_of({"torch", "hydra", "scipy", "sklearn"}, source) == []


def test_its_work_needs_torch_and_nothing_of_the_server():
    heavy = {"torch", "hydra", "scipy", "sklearn", "pandas", "wandb", "plotly"}
    assert imported_of(heavy, "import fed_a2v.federation.client.message_handler") == ["torch"]
