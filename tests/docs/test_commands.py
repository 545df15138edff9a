"""The commands in the documentation do what it says: every block is run, in a copy of the repository."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from fed_a2v.commands import COMMANDS
from fed_a2v.config.compose import ConfigError, compose_settings, conf_dir
from fed_a2v.config.schema import Settings
from tests.config.test_compose import NEEDS
from tests.docs import fork_server
from tests.docs.blocks import FENCE, PAGES, REPOSITORY, Workplace, blocks_of, name_of

RUNNABLE = ("bash", "python")
QUICK_PAGES = [page for page in PAGES if any(not block.slow for block in blocks_of(page, *RUNNABLE))]
# The block of docs/deployment.md is run by tests/deployment/test_local.py, which looks at what it leaves.
SLOW_PAGES = [
    page
    for page in PAGES
    if any(block.slow for block in blocks_of(page, *RUNNABLE)) and name_of(page) != "docs/deployment.md"
]


@pytest.fixture(scope="module")
def command():
    """`fed-a2v` without the seconds that it takes to import: most blocks need less."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        path = f"{folder}/socket"
        with subprocess.Popen([sys.executable, fork_server.__file__, path], stdout=subprocess.PIPE) as server:
            assert server.stdout.readline() == b"ready\n"
            yield fork_server.CLIENT.format(python=sys.executable, socket=path)
            server.kill()


@pytest.fixture(scope="module")
def running(request, tmp_path_factory, command):
    """Run the requested pages, each in a separate workplace, as many at a time as there are cores."""
    wanted = {
        item.callspec.params["page"]
        for item in request.session.items
        if item.path == request.path and "running" in item.fixturenames
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            page: pool.submit(run_page, page, False, tmp_path_factory.mktemp("docs"), command)
            for page in sorted(wanted)
        }


def run_page(page, slow, folder, *command):
    """Run the blocks of a page from top to bottom: the slow ones, which stand on their own, or the others."""
    workplace = Workplace(folder, *command)
    try:
        for block in blocks_of(page, *RUNNABLE):
            if slow == block.slow:
                workplace.run(block, timeout=900)
    finally:
        workplace.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", QUICK_PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, running):
    running[page].result()


@pytest.mark.deployment
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name_of)
def test_the_slow_blocks_of_a_page_run(page, tmp_path):
    """The sixteen runs of `make run` in the README are shorter here."""
    run_page(page, True, tmp_path, None, "experiment=quick rounds=1" if name_of(page) == "README.md" else "")


def commands_of(block):
    """The commands of a block, a list of words each; continued lines are joined, comments and output left out."""
    for line in block.body.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
            del words[0]
        if words and words[0] in ("fed-a2v", "make", "python", "python3", "bash", "flwr"):
            yield words


CONSOLE = [(block, words) for page in PAGES for block in blocks_of(page, "console") for words in commands_of(block)]


@pytest.mark.parametrize(
    ("block", "words"), CONSOLE, ids=lambda value: str(value) if not isinstance(value, list) else ""
)
def test_what_cannot_run_here_names_what_there_is(block, words):
    """Commands that need other data, other machines or hours only have options that exist."""
    program, *rest = words
    if program == "fed-a2v":
        assert rest[0] in (*COMMANDS, "--help", "--version"), f"{block}: no command {rest[0]}"
        if rest[0] in ("train", "compare"):
            compose_settings(overrides_of(rest[1:]))
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"{block}: no target among {rest}"
    elif rest and re.search(r"\.(py|sh)$", rest[0]):
        assert (REPOSITORY / rest[0]).is_file(), f"{block}: no file {rest[0]}"


def overrides_of(words):
    """The overrides among the words of `fed-a2v train`: of values to sweep over, the first."""
    return [
        word.split(",")[0] if "[" not in word else word
        for word in words
        if "=" in word and not word.startswith(("-", "hydra", "+hydra"))
    ]


# Keys and options in the text

PLACEHOLDER = re.compile(r"[A-Z]{3,}|\.\.\.|MODULE|/")


def inline(page):
    """The inline code of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return sorted(set(re.findall(r"`([^`\n]+)`", text)))


def is_key(word):
    if re.search(r"\.(py|md|ya?ml|toml|jsonl?|npz|pt|csv|html|log|sh|crt|key|pem|png|wav)$", word):
        return False  # a file
    section = word.lstrip("+").split(".")[0]
    return re.fullmatch(r"\+?[a-z]\w*(\.\w+)+", word) is not None and section in Settings.model_fields


def is_override(word):
    name = word.split("=")[0].lstrip("+").split(".")[0]
    return re.fullmatch(r"\+?[\w.]+=\S+", word) is not None and name in (*Settings.model_fields, "experiment")


def allowed_somewhere(word):
    """Whether an override composes alone, or together with some option of its group."""
    options = [f"{path.parent.name}={path.stem}" for path in conf_dir().glob(f"{word.split('.')[0]}/*.yaml")]
    for option in ([], *([option, *NEEDS.get(option, [])] for option in sorted(options))):
        with contextlib.suppress(ConfigError):
            compose_settings([*option, word, *NEEDS.get(word, [])])
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_key_in_the_text_exists_and_every_value_is_allowed(page, settings_reference):
    known = settings_reference.reference()
    for word in inline(page):
        if is_key(word):
            assert f"`{word}`" in known or f"`+{word}`" in known, f"{page.name}: no key {word}"
        elif is_override(word) and not PLACEHOLDER.search(word.split("=", 1)[1]):
            assert allowed_somewhere(word), f"{page.name}: {word} is never allowed"
