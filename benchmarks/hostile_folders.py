"""Check on 2000 manipulated run folders that none runs code, reads or writes outside, or crashes.

    python benchmarks/hostile_folders.py [--folders 2000] [--seed 0] [--jobs 2] [--kinds KIND,...] [--only NUMBER,...]
                                         [--write]

Every folder is a copy of a real run with one of the changes below: to its YAML, JSON and array files, to its saved
states, whose digest is corrected afterwards, or by links, pipes and archive bombs. Each is passed to `load_run`,
`compare_runs`, `fed-a2v report` and `fed-a2v generate`, in processes that record every import, command, opened file and
written file. A folder may load, if its change has no effect, or be refused with a message.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, write_block
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.memory import peak_memory
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.storage.torch_files import content_digest

# Folders per watched process.
BATCH = 50
# Maximum number of seconds per folder, on average in a process.
SECONDS = 60
LARGEST_GROWTH = 1_000_000_000
CANARY = "canary_module"
SECRET = "the secret of another folder"

Tree = Any


def places(tree: Tree, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested dictionaries and lists."""
    found = [] if found is None else found
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        found.append((tree, key))
        places(value, found)
    return found


def odd_value(dice: random.Random) -> Any:
    """Unexpected values for a file of settings or figures."""
    deep: Any = []
    for _ in range(dice.choice([3, 50])):
        deep = [deep]
    return dice.choice(
        [
            *(
                None,
                True,
                -1,
                0,
                10**9,
                10**30,
                1e308,
                float("nan"),
                "",
                "0",
                "\x1b[31mred\x1b[0m",
                "<script>x</script>",
            ),
            *(
                "../../../etc/passwd",
                "/etc/passwd",
                "${oc.env:HOME}",
                "=cmd|' /C calc'!A0",
                "[bold]x",
                "\ud800",
                "a" * 10**5,
            ),
            *([], {}, [1, 2], {"a": {"b": 1}}, deep, {"_target_": "os.system", "command": "true"}),
        ]
    )


def code(dice: random.Random) -> dict[str, Any]:
    """An object that runs code when it is created."""
    return dice.choice(
        [
            {"_target_": f"{CANARY}.Boom"},
            {"_target_": "subprocess.Popen", "args": ["true"]},
            {"_target_": "os.system", "command": "true"},
            {"_target_": "builtins.exec", "_args_": ["open('canary','w')"]},
            {"_target_": "torch.load", "f": "canary.pt", "weights_only": False},
            {"_target_": "hydra.utils.instantiate", "config": {"_target_": f"{CANARY}.Boom"}},
            {"_target_": "fed_a2v.storage.files.write_text", "path": "/tmp/canary", "text": "x"},
            {"_target_": "fed_a2v.__main__.main"},
            {"_partial_": True, "_target_": f"{CANARY}.Boom"},
        ]
    )


def change_tree(tree: Tree, dice: random.Random) -> None:
    """Change nested values in place: a value, a removed or duplicated key, or an object with code."""
    found = places(tree)
    container, key = dice.choice(found)
    match dice.randrange(5):
        case 0:
            container[key] = odd_value(dice)
        case 1:
            del container[key]
        case 2:
            container[key] = code(dice) if dice.random() < 0.5 else [code(dice)]
        case 3 if isinstance(container, dict):
            container[str(odd_value(dice))[:40]] = container[key]
        case _:
            sections = [(each, name) for each, name in found if name in ("generator", "encoder", "dataset", "loss")]
            each, name = dice.choice(sections) if sections else (container, key)
            if isinstance(each[name], dict):
                if dice.random() < 0.3:
                    each[name].pop("_target_", None)
                each[name] |= dice.choice(
                    [
                        *(
                            code(dice),
                            {"name": "custom", **code(dice)},
                            {"name": "custom", "target": f"{CANARY}.Boom"},
                            {"extra": [code(dice)]},
                            {"hidden_dim": 10**7},
                        ),
                        *({"latent_dim": 10**9}, {"hidden_width": 10**8}, {"arguments": code(dice)}),
                    ]
                )


def change_yaml(path: Path, dice: random.Random) -> None:
    """Change a YAML file: its values, or by features of YAML."""
    import yaml

    tree = yaml.safe_load(path.read_text())
    change_tree(tree, dice)
    text = dice.choice(
        [
            *[lambda: yaml.safe_dump(tree, allow_unicode=False)] * 4,
            lambda: (
                "a: &a [x,x,x,x,x,x,x,x,x]\n"
                + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
            ),
            lambda: f"!!python/object/apply:os.system ['touch {CANARY}']\n",
            lambda: f"x: !!python/name:{CANARY}.Boom\n",
            lambda: "[" * 5000,
            lambda: "a: " + "9" * 10**5,
            lambda: path.read_text()[: dice.randrange(200)],
        ]
    )
    with_odd = text()
    path.write_text(with_odd, encoding="utf-8", errors="surrogatepass")


def change_json(path: Path, dice: random.Random) -> None:
    """Change a JSON file, or a line of a JSON Lines file."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    place = dice.randrange(len(lines))
    tree = [json.loads(lines[place])]
    change_tree(tree, dice)
    text = json.dumps(tree[0] if tree else None, default=str)
    lines[place] = dice.choice([text] * 5 + ["[" * 10**5, "9" * 10**5, "{", "NaN", '{"round":' * 2000, "\x00"])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


def change_bytes(path: Path, dice: random.Random) -> None:
    """Flip some bytes, truncate the file, or replace it."""
    content = bytearray(path.read_bytes())
    match dice.randrange(3):
        case 0:
            for _ in range(dice.choice([1, 10, 1000])):
                content[dice.randrange(len(content))] = dice.randrange(256)
        case 1:
            del content[dice.randrange(len(content)) :]
        case _:
            content[:] = dice.randbytes(dice.choice([0, 1, 500]))
    path.write_bytes(content)


def change_state(path: Path, dice: random.Random) -> None:
    """Change a saved state, and correct its digest."""
    state = dict(torch.load(path, weights_only=True))
    state.pop("digest")
    if dice.random() < 0.5:
        change_tree(state["config"], dice)
    else:
        container, key = dice.choice(places(state))
        old = container[key]
        container[key] = dice.choice(
            [
                odd_value(dice),
                torch.zeros(3, 2),
                torch.zeros(1).expand(10**9),
                torch.zeros(1).expand(*old.shape[:-1], 10**6) if isinstance(old, torch.Tensor) and old.dim() else None,
                old.flatten()[:1] if isinstance(old, torch.Tensor) else torch.full((4,), float("nan")),
                old.double() if isinstance(old, torch.Tensor) else {"a": old},
            ]
        )
    storable = _plain(state)
    storable["digest"] = "unknown" if dice.random() < 0.05 else _digest(storable)
    torch.save(storable, path)


def _plain(value: Any) -> Any:
    """The value as safe loading reads it, without text that cannot be encoded."""
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each) for each in value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _digest(value: Any) -> str:
    try:
        return content_digest(value)
    except Exception:  # a value that cannot be hashed here cannot be loaded either
        return "unknown"


def pickled(path: Path, dice: random.Random) -> None:
    """A state that runs code when it is unpickled."""
    del dice
    content = f"c{CANARY}\nBoom\n(tR.".encode()
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))


def bomb(path: Path, dice: random.Random) -> None:
    """An archive bomb of gigabytes."""
    del dice
    with zipfile.ZipFile(path) as source:
        path.write_bytes(_bomb(source.namelist()[-1]))


@functools.cache
def _bomb(name: str) -> bytes:
    """An archive with one member of 2 GB; compressing it takes seconds."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
        target.open(name, "w", force_zip64=True) as file,
    ):
        for _ in range(2000):
            file.write(bytes(1_000_000))
    return buffer.getvalue()


def change_arrays(path: Path, dice: random.Random) -> None:
    """Change one of the arrays of an `.npz` file, its type or its shape."""
    with np.load(path) as file:
        arrays = dict(file)
    name = dice.choice(sorted(arrays))
    old = arrays[name]
    arrays[name] = dice.choice(
        [
            *(
                old[:0],
                old[:1],
                old.astype(str),
                np.zeros((3, 0)),
                np.full(old.shape, np.nan),
                np.array([{"a": 1}], object),
            ),
            *(np.zeros(4), old.reshape(1, *old.shape), np.array(["\x1b[31m<b>x"] * len(old)), np.arange(len(old))),
        ]
    )
    if dice.random() < 0.2:
        del arrays[name]
    np.savez(path, **arrays)  # type: ignore[arg-type]


def link_out(path: Path, dice: random.Random) -> None:
    """A link to a file or folder outside the run."""
    del dice
    target = next(parent for parent in path.parents if (parent / "outside").is_dir()) / "outside"
    if path.is_dir():
        shutil.rmtree(path)
        path.symlink_to(target)
    else:
        path.unlink()
        path.symlink_to(target / "secret.txt")


def pipe(path: Path, dice: random.Random) -> None:
    """A pipe, which blocks its reader for ever."""
    del dice
    if path.is_dir():
        return
    path.unlink()
    os.mkfifo(path)


def files(folder: Path, *endings: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in endings and path.is_file())


CHANGES: dict[str, tuple[Callable[[Path, random.Random], None], Callable[[Path], list[Path]]]] = {
    "settings": (change_yaml, lambda folder: files(folder, ".yaml")),
    "figures": (change_json, lambda folder: files(folder, ".json", ".jsonl")),
    "states": (change_state, lambda folder: sorted(folder.glob("checkpoints/state*.pt"))),
    "pickles": (pickled, lambda folder: files(folder, ".pt")),
    "arrays": (change_arrays, lambda folder: files(folder, ".npz")),
    "bombs": (bomb, lambda folder: files(folder, ".npz", ".pt")),
    "bytes": (change_bytes, lambda folder: files(folder, ".yaml", ".json", ".jsonl", ".pt", ".npz")),
    "links": (
        link_out,
        lambda folder: [*files(folder, ".yaml", ".json", ".jsonl", ".pt", ".npz"), folder / "checkpoints"],
    ),
    "pipes": (pipe, lambda folder: files(folder, ".yaml", ".json", ".jsonl", ".pt", ".npz")),
}


def spoil(folder: Path, kind: str, dice: random.Random) -> None:
    """Make a change of a kind; a change to a saved state is made to all, so that an older one cannot replace it."""
    change, candidates = CHANGES[kind]
    found = candidates(folder)
    chosen = [path for path in found if path.suffix == ".pt"] if dice.random() < 0.5 else []
    for path in chosen or [dice.choice(found)]:
        change(path, dice)


# The watched process --------------------------------------------------------------------------------------


def watched(root: Path) -> None:
    """Pass every folder in `root / "runs"` to the program, and print the outcome of each as a line of JSON."""
    from fed_a2v import compare_runs, load_run
    from fed_a2v.cli import main
    from fed_a2v.errors import MENDABLE

    inside, faults = [root.resolve()], list[str]()
    current = [root]

    def allowed(path: str) -> bool:
        place = Path(path).resolve()
        return place.is_relative_to(current[0].resolve()) or str(place).startswith(("/dev/", "/proc/self"))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and str(arguments[0]).startswith(CANARY):
            faults.append(f"imports {arguments[0]}")
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "pickle.find_class",
            "socket.connect",
        ):
            faults.append(f"{event} {str(arguments)[:80]}")
        elif event == "open" and isinstance(arguments[0], str):
            writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            resolved = Path(arguments[0]).resolve()
            secret = resolved.is_relative_to(inside[0] / "outside")
            if secret or (writes and not allowed(arguments[0])):
                faults.append(f"opens {arguments[0]} with {arguments[1]}")

    def attempt(name: str, action: Callable[[], object]) -> str:
        try:
            action()
        except MENDABLE as error:
            return "refused" if str(error) else "refused without a message"
        except SystemExit as error:
            return "refused" if error.code == 2 else "ended"
        except BaseException as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:120]}")
            return "crashed"
        return "loaded"

    started = False
    for folder in sorted((root / "runs").iterdir()):
        faults.clear()
        before = peak_memory()
        current[0] = folder
        actions = {
            "load": lambda folder=folder: _used(load_run(folder)),
            "compare": lambda folder=folder: compare_runs([folder]),
            "report": lambda folder=folder: main(["report", str(folder)]),
            "generate": lambda folder=folder: main(["generate", str(folder), "--synthetic", "1"]),
        }
        if not started:  # import late imports before recording starts
            for action in actions.values():
                attempt("first", action)
            faults.clear()
            before, started = peak_memory(), True
            sys.addaudithook(audit)
        ends = {name: attempt(name, action) for name, action in actions.items()}
        grown = peak_memory() - before
        if grown > LARGEST_GROWTH:
            faults.append(f"grows by {grown / 1e9:.1f} GB")
        print(json.dumps({"folder": folder.name, "ends": ends, "faults": faults}), flush=True)


def _used(run: Any) -> None:
    """Typical uses of a loaded run."""
    if run.step.generator is not None:
        run.generator.sample(run.classes[0], 2)
    _ = run.metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="watched processes at the same time")
    parser.add_argument("--only", default="", help="numbers of single folders, separated by commas")
    parser.add_argument(
        "--kinds", default=",".join(CHANGES), help="kinds of changes, separated by commas; others are left out"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    parser.add_argument("--watched", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watched is not None:
        watched(given.watched)
        return
    with tempfile.TemporaryDirectory() as temporary:
        only = [int(number) for number in given.only.split(",") if number]
        indices = [number - 1 for number in only] or range(given.folders)
        kinds = given.kinds.split(",")
        chosen = [index for index in indices if kind_of(index) in kinds]
        found = run_all(Path(temporary), chosen, given.seed, given.jobs)
    text = table(found)
    print(text)
    if given.write:
        write_block("hostile folders", text)
    if any(each["faults"] for each in found):
        raise SystemExit(1)


def kind_of(index: int) -> str:
    """How a folder is changed."""
    return list(CHANGES)[index % len(CHANGES)]


def run_all(root: Path, indices: Sequence[int], seed: int, jobs: int = 1) -> list[dict[str, Any]]:
    """Manipulate the folders with these indices, and collect the outcomes."""
    original = root / "original"
    settings = compose_settings(["experiment=quick", "rounds=2", "generator.validation_frequency=1", "report=false"])
    with Path(os.devnull).open("w") as nowhere:
        run_in_process(settings, original, Console(file=nowhere))
    starts = range(0, len(indices), BATCH)
    with ThreadPoolExecutor(jobs) as threads:
        batches = threads.map(
            lambda start: batch(root / f"batch-{start}", original, indices[start : start + BATCH], seed), starts
        )
        found: list[dict[str, Any]] = []
        for outcomes in batches:
            found += outcomes
            print(f"{len(found)} of {len(indices)}", file=sys.stderr, flush=True)
    return found


def batch(place: Path, original: Path, indices: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Manipulate some folders at `place`; their outcomes, as reported by a watched process."""
    (place / "outside").mkdir(parents=True)
    (place / "outside" / "secret.txt").write_text(SECRET)
    (place / f"{CANARY}.py").write_text("raise SystemExit('the canary was imported')\n")
    shutil.copytree(original, place / "runs" / "0000-unchanged")
    kinds = {}
    for index in indices:
        kind = kind_of(index)
        name = f"{index + 1:04}-{kind}"
        shutil.copytree(original, place / "runs" / name)
        spoil(place / "runs" / name, kind, random.Random(f"{seed} {index}"))
        kinds[name] = kind
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), *sys.path]), "HOME": str(place)}
    command = [sys.executable, __file__, f"--watched={place}"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=SECONDS * len(kinds),
            check=False,
        )
        out, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out, errors = str(error.stdout or b"", "utf-8"), "it does not end"
    shutil.rmtree(place)
    outcomes = {
        line["folder"]: line for line in map(json.loads, filter(lambda one: one.startswith("{"), out.splitlines()))
    }
    unchanged = outcomes.pop("0000-unchanged", {"ends": {}})
    if unchanged["ends"].get("load") != "loaded":
        raise SystemExit(f"the unchanged run cannot be loaded: {unchanged}\n{errors[-2000:]}")
    lost = {"ends": {}, "faults": [f"the process ended: {errors[-200:]}"]}
    return [{"kind": kind, "name": name, **outcomes.get(name, lost)} for name, kind in kinds.items()]


def table(found: list[dict[str, Any]]) -> str:
    """Outcomes of the folders by kind, and every fault."""
    lines = ["| changed | folders | refused to load | loaded | faults |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(each["kind"] for each in found):
        own = [each for each in found if each["kind"] == kind]
        ends = Counter(each["ends"].get("load") for each in own)
        faults = sum(bool(each["faults"]) for each in own)
        lines.append(f"| {kind} | {len(own)} | {ends['refused']} | {ends['loaded']} | {faults} |")
    shown = [f"* {each['name']}: {'; '.join(each['faults'][:3])}" for each in found if each["faults"]]
    words = (
        "Loaded: the change has no effect, or is to a file that loading does not read. Faults: code that is run, a "
        f"file outside the folder that is read or written, a traceback, or a gigabyte of memory. {machine()}."
    )
    return "\n".join([*lines, "", words, *([""] if shown else []), *shown])


if __name__ == "__main__":
    main()
