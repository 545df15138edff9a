"""Nothing that comes from the network or from the disk is ever unpickled, evaluated or executed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for folder in ("fed_a2v", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# Modules that run what they read. joblib also runs jobs in processes of our own, which pickles what we give it.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "read_pickle", "to_pickle", "unsafe_load", "full_load"}


def faults(source):
    """What in some source code might unpickle or execute data, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            for name in names:
                if name.split(".")[0] in UNSAFE_MODULES or name in (
                    "torch.load",
                    "numpy.load",
                    "yaml.load",
                    "joblib.load",
                ):
                    yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            evaluation_mode = called.endswith(".eval") and not node.args  # of a network
            if called == "joblib.load" or (called.split(".")[-1] in UNSAFE_CALLS and not evaluation_mode):
                yield node.lineno, f"calls {called}"
            elif called == "torch.load" and keywords.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"
            elif called in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
                yield node.lineno, "np.load with allow_pickle"
            elif called == "yaml.load" and "Safe" not in keywords.get("Loader", ""):
                yield node.lineno, "yaml.load without a safe loader"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_unpickles_or_executes_data(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "joblib.load(path)",
        "from torch import load",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source):
    assert list(faults(source))


def test_the_scan_lets_safe_reading_pass():
    safe = """
import torch
torch.load(path, weights_only=True)
np.load(path, allow_pickle=False)
np.load(path)
model.eval()
"""
    assert list(faults(safe)) == []
