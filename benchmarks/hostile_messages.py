"""Check on 20,000 manipulated messages that none makes a site run code, read or write elsewhere, or crash.

    python benchmarks/hostile_messages.py [--messages 20000] [--seed 0] [--write]

A node on a separate machine, whose owner requires at least four clips in every average, receives the messages of a real
run with one of the changes below. Every import, command, opened file and written file of the node is recorded. A
message may be answered if its change has no effect on a site. Faults are: an answer where the change must be refused,
an error that is not a refusal, and an error that quotes the site's files.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, write_block
from flwr.common import parameters_to_ndarrays
from flwr.server import SimpleClientManager
from hostile_folders import CANARY, LARGEST_GROWTH, SECRET, code, odd_value, places
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.message_handler import REPORTED_ERRORS, SiteError
from fed_a2v.federation.memory import peak_memory
from fed_a2v.federation.protocol import SUMS_TASKS, join_arrays, split_arrays
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.federation.simulation import InProcessClient

LEAST = 4
# Limit in seconds, longer than any message needs; a message that takes longer is a fault.
SECONDS = 30.0

Message = dict[str, Any]


class Draft:
    """A message to manipulate: its task, settings, further values and arrays."""

    def __init__(self, task: str, message: Message, arrays: list[Any], dice: random.Random) -> None:
        self.task = task
        self.settings: dict[str, Any] = json.loads(message["settings"])
        self.message = dict(message)
        self.arrays = list(arrays)
        self.dice = dice
        self.text: Callable[[str], Any] = lambda text: text

    def packed(self) -> Message:
        """The message as it is received."""
        if "settings" in self.message:
            self.message["settings"] = self.text(json.dumps(self.settings))
        return self.message


def foreign_code(draft: Draft) -> bool:
    """An import path in place of the encoder or the data set, or nested in its arguments."""
    section = draft.dice.choice(["encoder", "dataset"])
    values = draft.settings[section]
    found = code(draft.dice)
    target = found.pop("_target_")
    for key in ("model", "tokens", "batch_size", "device", "precision") if section == "encoder" else ():
        values[key] = None
    match draft.dice.randrange(3):
        case 0:
            values |= {"name": "custom", "_target_": target, "arguments": found}
        case 1:
            values |= {"name": "custom", "_target_": f"{CANARY}.Boom", "arguments": {"deep": [code(draft.dice)]}}
        case _:
            values.pop("_target_", None)
            values |= {"name": "custom", "target": target, "arguments": found}
    return True


def foreign_places(draft: Draft) -> bool:
    """Files and folders of the site's machine, in all settings with paths."""
    outside = draft.dice.choice(["OUTSIDE", "/etc", "~", "../../outside", "/etc/passwd", "OUTSIDE/secret.txt"])
    settings = draft.settings
    settings["dataset"] |= {"root": outside, "path": f"{outside}/clips.npz"}
    settings |= {"cache_dir": outside, "resume": outside}
    settings["generator"]["checkpoint_path"] = outside
    if draft.dice.random() < 0.5:
        return False
    model = {"model": "openai/clip", "revision": None, "subfolder": "", "precision": "float32"}
    clip = {"name": "clip", "templates": ["{}"], "device": "cpu", "clip": model}
    match draft.dice.randrange(4):
        case 0:
            settings["targets"] |= {"name": "file", "path": outside}
        case 1:
            settings["targets"] |= clip | {"captions": outside}
        case 2:
            settings["targets"] |= clip
            model[draft.dice.choice(["model", "revision", "subfolder"])] = outside
        case _:
            settings["encoder"] |= {"name": "ast", "model": outside, "tokens": "cls", "batch_size": 1}
            settings["encoder"] |= {"device": "cpu", "precision": "float32"}
    return True


def few_clips(draft: Draft) -> bool:
    """Averages of few clips, directly or by the difference from another message."""
    dataset, share = draft.settings["dataset"], draft.settings["share"]
    match draft.dice.randrange(5):
        case 0:
            share["min_clips"] = draft.dice.randrange(1, LEAST)
        case 1:
            share["kind"] = "samples"
        case 2:  # of 12 clips for training, 4 for the test
            dataset["max_clips_per_class"] = draft.dice.randrange(1, 5)
        case 3:
            share["prototypes"] = 2
            return draft.task not in ("evaluate", *SUMS_TASKS)  # a sum has no groups
        case _:  # 13 of 16: training loses two or three
            dataset |= {"max_clips_per_class": 13}
            dataset |= draft.dice.choice([{}, {"aliases": {"dog": "rain", "rain": "dog"}}])
            return draft.task != "evaluate"
    return True


def limits(draft: Draft) -> bool:
    """More time, epochs, threads or memory than the owner allows."""
    settings = draft.settings
    match draft.dice.randrange(5):
        case 0:
            settings["site"]["epochs"] = draft.dice.choice([6, 10**9])
            return True
        case 1:
            settings["federation"] |= {"round_timeout": 1e9, "site_timeout": 1e8}
        case 2:
            settings["threads"] = draft.dice.choice([3, 64])
        case 3:
            settings["adapters"]["hidden_width"] = 10**8
            return draft.task in ("train", "evaluate")
        case _:
            settings["adapters"]["clip_width"] = 10**9
            return True
    return False


def odd_values(draft: Draft) -> bool:
    """Unexpected values, missing keys and new keys, anywhere in the settings or next to them."""
    tree = draft.dice.choice([draft.settings, draft.message])
    container, key = draft.dice.choice(places(tree))
    match draft.dice.randrange(4):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[str(odd_value(draft.dice))[:40]] = container[key]
        case _:
            container[key] = odd_value(draft.dice)
    return False


def texts(draft: Draft) -> bool:
    """Settings, classes or prompts that are not JSON, too large, or of another type."""
    key = draft.dice.choice(["settings", "classes", "prompts", "models"] if draft.task == "evaluate" else ["settings"])
    broken = draft.dice.choice(
        [
            *("", "{", "[", "null", "[]", "1e999", "NaN", '"text"', "\x00", "\ud800", "[" * 50_000, '{"a":' * 20_000),
            *("x" * 2**24, '{"rounds": 1, "rounds": 2}', "!!python/object/apply:os.system [true]"),
        ]
    )
    if key == "settings":
        draft.text = lambda text: draft.dice.choice([broken, text[: len(text) // 2], text + "}", text.encode()])
    else:
        draft.message[key] = broken
    return True


def arrays(draft: Draft) -> bool:
    """Corrupt bytes in place of the adapters' weights."""
    if draft.task == "register":
        draft.message["held"] = "x" * 10**6
        return True
    whole = draft.arrays[0]
    draft.arrays = draft.dice.choice(
        [
            [],
            [whole[: draft.dice.randrange(whole.size)]],
            [whole, whole],
            [np.zeros(3)],
            [np.array(["x", None], dtype=object)],
            [np.full_like(whole, 255)],
            [np.random.default_rng(draft.dice.randrange(100)).integers(0, 255, 1000, np.uint8)],
            [np.zeros(0, np.uint8)] * 1000,
        ]
    )
    return True


def spaces(draft: Draft) -> bool:
    """A public space that gives some clips more weight than others, or has no such columns."""
    if draft.task not in SUMS_TASKS:
        return False
    matrix, *centre = split_arrays(draft.arrays, 2)
    match draft.dice.randrange(5):
        case 0:
            with np.errstate(invalid="ignore"):
                matrix = matrix * draft.dice.choice([0, 2, -1.1, np.nan, np.inf, 1e30])
        case 1:
            matrix = draft.dice.choice([matrix[:, :-1], matrix[:-1], matrix.T, matrix[None], np.repeat(matrix, 2, 0)])
        case 2:
            matrix[:, 0] = matrix[:, 1]
        case 3:
            draft.settings["projection"]["columns"] = draft.dice.choice([3, 17, 10**9])
        case _:
            centre = draft.dice.choice([[], centre * 2]) if draft.task == "sums" else [np.zeros(4, np.float32)]
            if draft.dice.random() < 0.5:
                centre = [np.full(4, draft.dice.choice([np.nan, np.inf, 1e30, 1.0]), np.float32)]
    draft.arrays = [join_arrays([np.ascontiguousarray(array) for array in (matrix, *centre)])]
    return True


CHANGES: dict[str, Callable[[Draft], bool]] = {
    "code": foreign_code,
    "places": foreign_places,
    "few clips": few_clips,
    "limits": limits,
    "odd values": odd_values,
    "texts": texts,
    "arrays": arrays,
    "spaces": spaces,
}


class Watch:
    """Forbidden actions of the process since `begin`."""

    def __init__(self, site: Path, outside: Path) -> None:
        self.site, self.outside = site, outside
        self.faults: list[str] = []
        self.watching = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "import" and str(arguments[0]).startswith(CANARY):
            self.faults.append(f"imports {arguments[0]}")
        elif event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "pickle.", "socket.connect")):
            self.faults.append(f"{event} {str(arguments)[:80]}")
        elif event == "open" and isinstance(arguments[0], str):
            place = Path(arguments[0]).resolve()
            writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if place.is_relative_to(self.outside) or str(place).startswith("/etc/"):
                self.faults.append(f"reads {place}")
            elif writes and not place.is_relative_to(self.site) and not str(place).startswith("/dev/"):
                self.faults.append(f"writes {place}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as temporary:
        counts, faults = send_all(Path(temporary).resolve(), given.messages, given.seed)
    text = table(counts, faults)
    print(text)
    if given.write:
        write_block("hostile messages", text)
    if faults:
        raise SystemExit(1)


def send_all(root: Path, number: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Send the given number of messages; return the outcome of each kind, and every fault."""
    own = site_of_its_own(root)
    honest = messages(root, own)
    own |= {"min-clips": LEAST, "ledger": str(root / "site" / "ledger.json"), "max-seconds": SECONDS}
    own |= {"max-epochs": 5, "max-threads": 1, "max-memory": 0.5}
    for task, (message, parameters) in honest.items():
        answer(own, task, message, parameters)  # import late imports before recording starts
    watch, counts, faults = Watch(root / "site", root / "outside"), Counter[tuple[str, str]](), list[str]()
    before = peak_memory()
    for index in range(number):
        kind, task = list(CHANGES)[index % len(CHANGES)], list(honest)[index // len(CHANGES) % len(honest)]
        draft = Draft(task, *honest[task], random.Random(f"{seed} {index}"))
        must_refuse = CHANGES[kind](draft)
        message = json.loads(json.dumps(draft.packed(), default=str).replace("OUTSIDE", str(root / "outside")))
        message |= {key: value for key, value in draft.message.items() if isinstance(value, bytes)}
        start = time.monotonic()
        watch.faults.clear()
        watch.watching = True
        ended, reason = answer(own, task, message, draft.arrays)
        watch.watching = False
        counts[kind, ended] += 1
        found = [f"{ended}: {reason}"] if ended == "crashed" or SECRET in reason or str(root / "site") in reason else []
        found += ["answered"] if must_refuse and ended == "answered" else []
        found += [f"takes {time.monotonic() - start:.0f} s"] if time.monotonic() - start > SECONDS / 2 else []
        faults += [f"{kind} {index}, {task}: {'; '.join([*found, *watch.faults[:2]])}"] if found + watch.faults else []
        if index % 1000 == 999:
            print(f"{index + 1} of {number}, {len(faults)} faults", file=sys.stderr, flush=True)
    grown = peak_memory() - before
    if grown > LARGEST_GROWTH:
        faults.append(f"the process has grown by {grown / 1e9:.1f} GB")
    return counts, faults


def site_of_its_own(root: Path) -> dict[str, Any]:
    """A site's files, private files next to them, and the node's configuration."""
    (root / "site").mkdir()
    (root / "outside").mkdir()
    (root / "outside" / "secret.txt").write_text(f"category,caption\n{SECRET},{SECRET}\n")
    (root / f"{CANARY}.py").write_text("raise SystemExit('the canary was imported')\n")
    sys.path.append(str(root))
    labels = np.repeat(["dog", "rain", "siren"], 16)
    for folder in ("site", "outside"):
        rows = np.random.default_rng(0).normal(size=(len(labels), 16)).astype(np.float32)
        np.savez(root / folder / "clips.npz", embeddings=rows, category=labels, fold=np.tile([1, 2, 3, 4], 12))
    return {
        "site": "lab",
        "data-dir": str(root / "site" / "clips.npz"),
        "cache-dir": str(root / "site" / "cache"),
    }


def messages(root: Path, own: dict[str, Any]) -> dict[str, tuple[Message, list[Any]]]:
    """The messages that real runs send to the site, by task, with their arrays: with prototypes, and with sums."""
    np.save(root / "outside" / "matrix.npy", np.eye(16, 4, dtype=np.float32))
    sums = ["share=statistics", "projection=file", f"projection.path={root / 'outside' / 'matrix.npy'}"]
    of_sums = run_messages(root / "sums", own, [*sums, "projection.columns=4"])
    of_sums = {task: message for task, message in of_sums.items() if task in SUMS_TASKS}
    return run_messages(root / "run", own, ["share.prototypes=3"]) | of_sums


def run_messages(folder: Path, own: dict[str, Any], more: list[str]) -> dict[str, tuple[Message, list[Any]]]:
    """The messages of one run to the site, by task."""
    words = ["experiment=quick", "adapters.hidden_width=16", "partition=own", "dataset=embeddings", "rounds=1"]
    words += ["dataset.classes=[dog,rain,siren]", f"share.min_clips={LEAST}", "report=false"]
    settings = compose_settings([*words, *more, "generator=none", "finetune.first_steps=1"])
    sent: dict[str, tuple[Message, list[Any]]] = {}

    class Recorder(InProcessClient):
        def fit(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            sent[str(ins.config["task"])] = (dict(ins.config), parameters_to_ndarrays(ins.parameters))
            return super().fit(ins, timeout, group_id)

        def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
            sent["evaluate"] = (dict(ins.config), parameters_to_ndarrays(ins.parameters))
            return super().evaluate(ins, timeout, group_id)

    log_path = folder.with_suffix(".txt")
    with log_path.open("w") as log_file, Trainer(settings, folder, Console(file=log_file)) as run:
        from flwr.server import Server

        manager = SimpleClientManager()
        manager.register(Recorder("000000", A2VClient(own).to_client()))
        server = Server(client_manager=manager, strategy=run.strategy)
        server.set_max_workers(1)
        server.fit(1, None)
    return sent


def answer(own: dict[str, Any], task: str, message: Message, parameters: list[Any]) -> tuple[str, str]:
    """Outcome of a message, and its reason."""
    client = A2VClient(own, deployed=True)
    try:
        (client.evaluate if task == "evaluate" else client.fit)(parameters, message)
    except (*REPORTED_ERRORS, SiteError) as error:
        return "refused", str(error)
    except BaseException as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:200]}"
    return "answered", ""


def table(counts: Counter[tuple[str, str]], faults: list[str]) -> str:
    """Outcomes of the messages by kind, and the first faults."""
    lines = ["| changed | messages | refused | answered | faults |", "|---|---|---|---|---|"]
    for kind in CHANGES:
        ends = {ended: counts[kind, ended] for ended in ("refused", "answered", "crashed")}
        own = sum(fault.startswith(f"{kind} ") for fault in faults)
        lines.append(f"| {kind} | {sum(ends.values())} | {ends['refused']} | {ends['answered']} | {own} |")
    words = (
        "Answered: the change has no effect on the site, which has its own folders and limits. Faults: code that is "
        "run, a file elsewhere that is read or written, an answer to a message that must be refused, a traceback, a "
        f"reason that quotes the site's files or paths, or a gigabyte of memory. {machine()}."
    )
    return "\n".join([*lines, "", words, *([""] if faults else []), *(f"* {fault}" for fault in faults[:20])])


if __name__ == "__main__":
    main()
