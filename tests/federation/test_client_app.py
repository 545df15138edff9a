"""Flower's entry point for the sites, in a process of its own, as in a deployment."""

import subprocess
import sys

NAME = """
import sys
from fed_a2v.federation.client import A2VClient
from fed_a2v.federation.client_app import app
assert A2VClient({"site": "north"}).get_properties({}) == {"site": "north"}
print(*{"torch", "hydra", "scipy", "sklearn"} & set(sys.modules))
"""


def test_a_node_tells_its_name_without_the_libraries_that_its_work_needs():
    done = subprocess.run([sys.executable, "-c", NAME], text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
