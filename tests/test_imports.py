"""Imports run one way, those within functions included, and the method knows no framework."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Packages and modules of fed_a2v: each imports only from those before it.
ORDER = (
    *("version", "errors", "install", "core", "storage", "config", "encoders", "data", "adapter", "runs", "report"),
    *("images", "callbacks", "federation", "load", "model_card", "export", "pooled", "arms", "compare", "doctor"),
    *("demo", "commands", "cli", "__main__"),
)


# What each package, or module, of fed_a2v.federation imports of the others at most: sites and server share no code but
# that of the protocol and of the experiment.
FEDERATION = {
    "memory": set(),
    "process": set(),
    "protocol": set(),
    "factory": set(),
    "client": {"memory", "process", "protocol", "factory"},
    "server": {"memory", "process", "protocol", "factory"},
    "batches": {"client", "factory"},
    "simulation": {"memory", "client", "server", "batches"},
}


def imported(source):
    """Full names of the modules, and of what is taken from them, in some source code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(part):
    """What a package, or a module of fed_a2v, imports."""
    path = ROOT / "fed_a2v" / part
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return {name for file in files for name in imported(file.read_text(encoding="utf-8"))}


def test_every_part_has_its_place():
    parts = {path.stem for path in (ROOT / "fed_a2v").iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    assert parts - {"__init__"} == set(ORDER)


def test_every_part_of_the_federation_has_its_place():
    parts = {path.stem for path in (ROOT / "fed_a2v" / "federation").iterdir() if not path.name.startswith("__")}
    assert parts == FEDERATION.keys()


@pytest.mark.parametrize("part", FEDERATION)
def test_parts_of_the_federation_import_what_they_may(part):
    names = {name.split(".")[2] for name in imports_of(f"federation/{part}") if name.startswith("fed_a2v.federation.")}
    assert names - {part} <= FEDERATION[part]


def test_no_modules_of_the_federation_import_each_other_in_a_circle():
    paths = (ROOT / "fed_a2v" / "federation").rglob("*.py")
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    imports = {}
    for module, path in modules.items():
        names = set(imported(path.read_text(encoding="utf-8")))
        # `from package import name` imports a module of that name, or else the package.
        imports[module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys()
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError, which names a circle


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_one_way(part):
    names = {name.split(".")[1] for name in imports_of(part) if name.startswith("fed_a2v.")}
    assert names <= set(ORDER[: ORDER.index(part) + 1])


def knowing(framework):
    """The parts that import a framework."""
    return {part for part in ORDER if framework in {name.split(".")[0] for name in imports_of(part)}}


@pytest.mark.parametrize("framework", ["flwr", "hydra", "omegaconf", "wandb"])
def test_the_method_knows_no_framework(framework):
    assert "core" not in knowing(framework)


def test_only_federation_imports_flower_and_only_callbacks_and_runs_import_wandb():
    assert knowing("flwr") == {"federation"}
    assert knowing("wandb") == {"callbacks", "runs"}


# The files of a run that see the settings whole, in the order in which they get them. Others get sections or values.
WHOLE_SETTINGS = (
    *("federation/simulation", "federation/server/trainer", "federation/factory", "federation/server/step_factory"),
    *("federation/server/resources", "federation/server/strategy", "federation/protocol/instruction"),
    *("federation/client/privacy_policy", "federation/client/local_training", "data/site", "data/check"),
)


def test_only_the_files_that_run_or_build_an_experiment_see_the_settings_whole():
    packages = ("core", "storage", "encoders", "data", "runs", "report", "images", "callbacks", "federation")
    whole = {
        path.relative_to(ROOT / "fed_a2v").with_suffix("").as_posix()
        for package in packages
        for path in (ROOT / "fed_a2v" / package).rglob("*.py")
        if "fed_a2v.config.schema.Settings" in imported(path.read_text(encoding="utf-8"))
    }
    # Between `fed-a2v` and a run: jobs of a sweep, and the command that the report prints.
    assert whole == {*WHOLE_SETTINGS, "runs/sweep", "report/reproduce"}


def test_imports_within_functions_are_found():
    source = "import a.b\ndef f():\n    from c import d, e"
    assert list(imported(source)) == ["a.b", "c.d", "c.e"]


@pytest.mark.parametrize("script", sorted((ROOT / "deploy").glob("*.sh")), ids=lambda path: path.name)
def test_what_the_deployment_scripts_import_exists(script):
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.startswith("from fed_a2v.")]
    for module, _, name in (full.rpartition(".") for full in imported("\n".join(lines))):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


# The picture in CONTRIBUTING.md

PACKAGES = tuple(part for part in ORDER if (ROOT / "fed_a2v" / part).is_dir())


def drawn_arrows():
    """The arrows of the mermaid graph: `a & b --> c & d` is four."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    graph = text.split("```mermaid\n")[1].split("```")[0]
    for line in graph.splitlines():
        if "-->" in line:
            left, right = line.split("-->")
            yield from ((a.strip(), b.strip()) for a in left.split("&") for b in right.split("&"))


def package_arrows():
    """Imports between packages, without those that a longer way implies."""
    direct = {
        part: {name.split(".")[1] for name in imports_of(part) if name.startswith("fed_a2v.")} & set(PACKAGES) - {part}
        for part in PACKAGES
    }
    below = {}
    for part in PACKAGES:  # in the order of imports: what it imports is known
        below[part] = direct[part].union(*(below[other] for other in direct[part]))
    return {
        (part, other)
        for part in PACKAGES
        for other in direct[part]
        if not any(other in below[between] for between in direct[part] - {other})
    }


def test_the_graph_of_packages_in_contributing_is_that_of_the_code():
    assert set(drawn_arrows()) == package_arrows()
