"""Check on 10,000 malformed replies that none crashes the server, enters the average, or chooses a file name.

    python benchmarks/hostile_replies.py [--replies 10000] [--seed 0] [--write]

One site of a real run sends valid replies, the other four only malformed ones, of every kind below in turn, 200 per
round, as the bytes that Flower passes on. Then the run is repeated with the honest site alone. No reply was accepted if
all were counted as rejected and both runs end in the same state, bit for bit.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, write_block
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.server import SimpleClientManager
from flwr.server.server import evaluate_clients
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.protocol import join_arrays, read_arrays
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.federation.simulation import InProcessClient
from fed_a2v.runs.checkpoint import load_state

A_ROUND = 200
Manifest = dict[str, Any]


class Draft:
    """A reply to corrupt: arrays, manifest, and further content of the message."""

    def __init__(self, reply: FitRes, dice: random.Random) -> None:
        self.arrays = [array.copy() for array in read_arrays(reply.parameters, 1000)]
        self.manifest: Manifest = json.loads(str(reply.metrics["manifest"]))
        self.examples: Any = reply.num_examples
        self.dice = dice
        self.tensor_type = "numpy.ndarray"
        self.text: Callable[[str], Any] = lambda text: text
        # Bytes of the npy files, and the records of Flower's message.
        self.files: Callable[[list[bytes]], list[bytes]] = lambda files: files
        self.parts: Callable[[list[bytes]], list[bytes]] = lambda parts: parts

    @property
    def a_class(self) -> Manifest:
        """The entry of one of the reply's classes."""
        return self.dice.choice(self.manifest["classes"])  # type: ignore[no-any-return]

    def spoil(self, value: float) -> None:
        """Set one element of an array of floats."""
        array = self.dice.choice([array for array in self.arrays if array.dtype.kind == "f"])
        array = self._widened(array) if abs(value) > 6e4 and np.isfinite(value) else array
        array.flat[self.dice.randrange(array.size)] = value

    def _widened(self, array: np.ndarray) -> np.ndarray:
        place = next(number for number, other in enumerate(self.arrays) if other is array)
        self.arrays[place] = array.astype(np.float32)
        return self.arrays[place]

    def reshape(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change one array."""
        place = self.dice.randrange(len(self.arrays))
        self.arrays[place] = np.asarray(change(self.arrays[place]))

    def packed(self) -> FitRes:
        """The reply as it is received."""
        files = self.files([join_arrays([array]).tobytes() for array in self.arrays])
        joined = b"".join(file + bytes(-len(file) % 64) for file in files[:-1]) + b"".join(files[-1:])
        parts = self.parts(ndarrays_to_parameters([np.frombuffer(joined, np.uint8)]).tensors)
        parameters = Parameters(parts, self.tensor_type)
        metrics = {"manifest": self.text(json.dumps(self.manifest))}
        return FitRes(Status(Code.OK, ""), parameters, self.examples, metrics)


def corrupt(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Draft], None]:
    """Corrupt the bytes of one array, or of all."""

    def spoil(draft: Draft) -> None:
        def one_of(files: list[bytes]) -> list[bytes]:
            place = draft.dice.randrange(len(files))
            return [*files[:place], change(files[place], draft.dice), *files[place + 1 :]]

        setattr(draft, draft.dice.choice(["files", "parts"]), one_of)

    return spoil


def declared(shape: str, descr: str = "'<f4'") -> bytes:
    """An npy header of a large array, followed by twelve bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(12)


def zipped() -> bytes:
    """A small archive with a large content."""
    file = io.BytesIO()
    np.savez_compressed(file, np.zeros(10**6))
    return file.getvalue()


BOMB = zipped()


def set_in(draft: Draft, key: str, value: Any) -> None:
    draft.manifest[key] = value


def in_class(draft: Draft, key: str, value: Any) -> None:
    draft.a_class[key] = value


def in_text(draft: Draft, change: Callable[[str], Any]) -> None:
    draft.text = change


KINDS: dict[str, Callable[[Draft], Any]] = {
    # Values
    "NaN": lambda d: d.spoil(float("nan")),
    "infinity": lambda d: d.spoil(float("inf")),
    "minus infinity": lambda d: d.spoil(float("-inf")),
    "1e30": lambda d: d.spoil(1e30),
    "-1e30": lambda d: d.spoil(-1e30),
    "weights a million times too large": lambda d: d.arrays.__setitem__(1, d.arrays[1].astype(np.float32) + 1e7),
    # Shapes, types, counts of arrays
    "another axis": lambda d: d.reshape(lambda a: a[None]),
    "a shorter array": lambda d: d.reshape(lambda a: a.reshape(-1)[:-1]),
    "an empty array": lambda d: d.reshape(lambda a: a.reshape(-1)[:0]),
    "another type": lambda d: d.reshape(lambda a: a.astype(np.int32)),
    "bool": lambda d: d.reshape(lambda a: a.astype(bool)),
    "complex": lambda d: d.reshape(lambda a: a.astype(complex)),
    "foreign byte order": lambda d: d.reshape(lambda a: a.astype(">f4")),
    "text": lambda d: d.reshape(lambda _: np.array(["x"])),
    "an array too many": lambda d: d.arrays.append(d.arrays[0]),
    "an array too few": lambda d: d.arrays.pop(d.dice.randrange(len(d.arrays))),
    "no arrays": lambda d: d.arrays.clear(),
    # Counts of clips
    "negative clips": lambda d: in_class(d, "count", -d.dice.randint(1, 10**9)),
    "no clips": lambda d: in_class(d, "count", 0),
    "very many clips": lambda d: in_class(d, "count", d.dice.randint(10**6, 10**30)),
    "clips as text": lambda d: in_class(d, "count", "3"),
    "clips true": lambda d: in_class(d, "count", True),
    "negative examples": lambda d: setattr(d, "examples", -d.dice.randint(0, 10**9)),
    "very many examples": lambda d: setattr(d, "examples", 10**9 + d.dice.randint(1, 10**12)),
    "examples as a float": lambda d: setattr(d, "examples", 3.5),
    # Names
    "an unknown class": lambda d: in_class(d, "name", f"class {d.dice.random()}"),
    "a class named like a path": lambda d: in_class(d, "name", "../" * d.dice.randint(1, 9) + "x"),
    "a class name of 10 MB": lambda d: in_class(d, "name", "n" * 10**7),
    "a class name with a line break": lambda d: in_class(d, "name", "dog\nERROR all is lost"),
    "a class twice": lambda d: d.manifest["classes"].append(d.a_class),
    "another site's name": lambda d: set_in(d, "site", f"site-{d.dice.randint(0, 999):03d}x"),
    "a site named like a path": lambda d: set_in(d, "site", "../../etc/passwd"),
    "a fingerprint like a path with spaces": lambda d: set_in(d, "fingerprint", "../.. x"),
    # The manifest
    "an earlier round": lambda d: set_in(d, "round_number", d.manifest["round_number"] - d.dice.randint(1, 5)),
    "a later round": lambda d: set_in(d, "round_number", d.manifest["round_number"] + d.dice.randint(1, 5)),
    "an older schema": lambda d: set_in(d, "schema_version", 0),
    "a newer schema": lambda d: set_in(d, "schema_version", d.dice.randint(2, 9) * 100),
    "another task": lambda d: set_in(d, "task", d.dice.choice(["register", "evaluate", "exec"])),
    "square roots where others have none": lambda d: set_in(d, "square_root", not d.manifest["square_root"]),
    "an unknown key": lambda d: set_in(d, f"key {d.dice.random()}", 1),
    "a missing key": lambda d: d.manifest.pop(d.dice.choice(sorted(d.manifest))),
    "an index too large": lambda d: in_class(d, "clip", d.dice.randint(10**3, 10**30)),
    "a negative index": lambda d: in_class(d, "clip", -d.dice.randint(1, 99)),
    "an index of another array": lambda d: in_class(d, "clip", 0),
    "an infinite loss": lambda d: set_in(d, "losses", {"loss": float("inf")}),
    "time that runs backwards": lambda d: set_in(d, "seconds", -1.0),
    "weights too many": lambda d: set_in(d, "weights", d.dice.randint(10**3, 10**18)),
    "a truncated manifest": lambda d: in_text(d, lambda text: text[: d.dice.randrange(len(text))]),
    "a nested manifest": lambda d: in_text(d, lambda _: "[" * 20_000),
    "an empty manifest": lambda d: in_text(d, lambda _: ""),
    "a manifest of bytes": lambda d: in_text(d, str.encode),
    "a key that comes twice": lambda d: in_text(d, lambda text: text.replace("{", '{"site": "x", ', 1)),
    # The containers
    # By at least 64 bytes: fewer missing zeros at the end of an array would be restored by the padding after it.
    "a truncated array": corrupt(lambda tensor, dice: tensor[: dice.randrange(len(tensor) - 63)]),
    "trailing bytes": corrupt(lambda tensor, dice: tensor + b"x" * dice.randint(1, 99)),
    "random bytes": corrupt(lambda _, dice: dice.randbytes(dice.randint(0, 999))),
    "a terabyte declared": corrupt(lambda *_: declared(f"({10**12},)")),
    "a product that overflows": corrupt(lambda *_: declared("(4294967296, 4294967296)")),
    "a header that is code": corrupt(lambda *_: declared("__import__('os').getcwd()")),
    "objects": corrupt(lambda *_: declared("(1,)", "'|O'")),
    "a pickle": corrupt(lambda *_: b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."),
    "an archive that unpacks to much": corrupt(lambda *_: BOMB),
    "another container": lambda d: setattr(d, "tensor_type", "torch"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the result into docs/engineering.md")
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        hostile, honest = Path(folder) / "hostile", Path(folder) / "honest"
        rejected, crashes = play(hostile, given.replies, given.seed)
        play(honest, given.replies, given.seed, answer=False)
        same = equal(load_state(hostile), load_state(honest)) and names(hostile) == names(honest)
    accepted = given.replies - rejected - sum(crashes.values())
    verdict = "equal" if same else "DIFFER FROM"
    text = (
        f"**{given.replies} malformed replies of {len(KINDS)} kinds: {sum(crashes.values())} crashes, "
        f"{accepted} accepted**; the run's files and its last state {verdict} those of the honest site alone. "
        f"{machine()}."
    )
    print(text)
    for kind, number in crashes.items():
        print(f"  crash: {kind}: {number}")
    if given.write:
        write_block("hostile replies", text)
    sys.exit(0 if same and accepted == 0 and not crashes else 1)


def play(folder: Path, replies: int, seed: int, answer: bool = True) -> tuple[int, Counter[str]]:
    """Execute the run; return the number of rejected replies, and the crashes by type of error."""
    dice, kinds = random.Random(seed), endless()
    settings = compose_settings(
        [
            "experiment=quick",
            f"rounds={-(-replies // A_ROUND)}",
            "adapters.hidden_width=16",
            "finetune.first_steps=2",
            "finetune.steps=2",
            "generator=none",
            "federation.evaluate_before=false",
        ]
    )
    rejected, crashes, left = 0, Counter[str](), replies
    with Path(os.devnull).open("w") as nowhere, Trainer(settings, folder, Console(file=nowhere)) as run:
        manager = SimpleClientManager()
        for number in range(settings.partition.sites):
            manager.register(InProcessClient(f"{number:06d}", A2VClient({}).to_client()))
        strategy = run.strategy
        parameters = strategy.initialize_parameters(manager)
        for round_number in range(1, settings.rounds + 1):
            asked = strategy.configure_fit(round_number, parameters, manager)
            (first, message), others = asked[0], asked[1:]
            results = [(first, first.fit(message, None, None))]
            # Not through the intake, which takes the arrays: the forgeries are made of them.
            nodes = [(proxy.inner, with_prototypes(ins)) for proxy, ins in others if answer]
            models = [(node, node.fit(ins, None, None)) for node, ins in nodes]
            for number in range(min(A_ROUND, left) if answer else 0):
                proxy, model = models[number % len(models)]
                draft = Draft(model, dice)
                next(kinds)(draft)
                results.append((proxy, draft.packed()))
            before = len(results) - 1
            try:
                strategy.aggregate_fit(round_number, results, [])
            except Exception as error:
                crashes[type(error).__name__] += before
            left -= before
            rejected += run.strategy._row["rejected"]
            scores, failures = evaluate_clients(
                strategy.configure_evaluate(round_number, parameters, manager), 1, None, 0
            )
            strategy.aggregate_evaluate(round_number, sorted(scores, key=lambda score: score[0].cid), failures)
    return rejected, crashes


def with_prototypes(message: FitIns) -> FitIns:
    """The message of a server without stored prototypes, so that the reply has some to corrupt."""
    return FitIns(message.parameters, message.config | {"held": ""})


def endless() -> Iterator[Callable[[Draft], Any]]:
    """All kinds in turn, repeatedly."""
    while True:
        yield from KINDS.values()


def names(folder: Path) -> set[str]:
    """The files of a run."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def equal(left: Any, right: Any) -> bool:
    """Whether two nested structures are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


if __name__ == "__main__":
    main()
