"""A deployed site: no message can name a file or code there, and the owner's limits apply."""

import json

import numpy as np
import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.data.datasets.synth import write_wavs
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.message_handler import SiteError
from fed_a2v.federation.client.node_config import NodeConfigError
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from fed_a2v.federation.client.time_limit import DeadlineError
from fed_a2v.federation.protocol.instruction import InvalidInstructionError
from tests.federation.helpers import Federation
from tests.refusals import refused

CLASSES = ["dog", "rain"]
OWN = ("dataset=folder", "partition=own", f"dataset.classes=[{','.join(CLASSES)}]")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "sounds"
    write_wavs(folder, 8, 0, CLASSES)
    return folder


@pytest.fixture
def own(sounds, tmp_path):
    """The configuration of a deployed node."""
    return {"site": "lab", "dataset": "esc50", "data-dir": str(sounds), "cache-dir": str(tmp_path / "cache")}


@pytest.fixture
def message(sounds, tmp_path):
    """The message that asks a site to register; `change` is made to its settings as JSON."""
    settings = compose_settings(["experiment=quick", "adapters.hidden_width=16", *OWN])
    node = {"dataset": "esc50", "data-dir": str(sounds), "cache-dir": str(tmp_path / "servers")}
    strategy = Federation("adapters.hidden_width=16", *OWN, node_configs=[node]).strategy

    def make(change=lambda settings: None, **more):
        tree = json.loads(settings.model_dump_json(by_alias=True))
        change(tree)
        asked = strategy._message("register", 0, "site-x", 0) | {"settings": json.dumps(tree), "held": ""}
        return asked | more

    return make


def register(own, asked):
    return A2VClient(own, deployed=True).fit([], asked)


def test_with_data_and_cache_of_its_own_it_works(own, message):
    assert register(own, message())[1] == 12


@pytest.mark.parametrize("missing", ["data-dir", "cache-dir"])
def test_data_and_cache_are_its_own_or_it_does_not_work(own, message, missing):
    del own[missing]
    with refused(NodeConfigError, missing):
        register(own, message())


def test_folders_in_a_message_are_not_read_and_not_written(own, message, sounds, tmp_path):
    def change(settings):
        settings["dataset"] |= {"root": str(tmp_path / "secret"), "path": str(tmp_path / "secret.npz")}
        settings["cache_dir"] = str(tmp_path / "elsewhere")

    assert register(own, message(change))[1] == 12
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "cache").is_dir()


def test_of_a_file_of_embeddings_no_more_than_its_name_is_taken(own, message, tmp_path):
    labels = np.repeat(CLASSES, 8)
    table = {"category": labels, "fold": np.tile([1, 2, 3, 4], 4)}
    for name, width in (("inside", 20), ("outside", 24)):
        folder = tmp_path / name
        folder.mkdir()
        rows = np.random.default_rng(0).normal(size=(len(labels), width)).astype(np.float32)
        np.savez(folder / "clips.npz", embeddings=rows, **table)
    own |= {"dataset": "embeddings", "data-dir": str(tmp_path / "inside")}

    def at(path):
        return message(lambda settings: settings["dataset"].update(path=path))

    inside = register(own, at("clips.npz"))
    for path in (str(tmp_path / "outside" / "clips.npz"), "../outside/clips.npz"):
        assert np.array_equal(register(own, at(path))[0][0], inside[0][0])
    with refused(SiteError, "DataError"):
        register(own, at(".."))


@pytest.mark.parametrize(
    "section",
    [
        {"encoder": {"name": "custom", "_target_": "subprocess.Popen", "arguments": {"args": ["true"]}}},
        {"dataset": {"name": "custom", "_target_": "os.system", "arguments": {"command": "true"}}},
        {"dataset": {"name": "custom", "target": "os.system", "arguments": {}}},
        {"encoder": {"name": "custom", "target": "fed_a2v.storage.files.write_text"}},
    ],
)
def test_code_in_a_message_is_not_imported_unless_the_owner_has_named_it(own, message, section):
    ((key, values),) = section.items()
    del own["dataset"]
    target = values.get("_target_", values.get("target"))

    def change(settings):
        if key == "encoder":
            settings["encoder"] |= dict.fromkeys(("model", "tokens", "batch_size", "device", "precision"))
        kept = {name: value for name, value in settings[key].items() if name != "_target_"}
        settings[key] = kept | values

    with refused(PolicyViolationError, target, "allow-code"):
        register(own, message(change))


def test_what_the_owner_has_named_is_executed_and_given_no_path(own, message, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_encoder.py").write_text(
        "import numpy as np\n"
        "class Loudness:\n"
        "    name, sample_rate, tokens, width, fingerprint = 'loudness', 16000, 1, 3, 'loudness-1'\n"
        "    def __init__(self, label='x'): pass\n"
        "    def encode(self, waveforms): return np.abs(waveforms).mean(1)[:, None, None].repeat(3, 2).astype('f4')\n"
    )
    own["allow-code"] = "some.Other their_encoder.Loudness"

    def named(**arguments):
        def change(settings):
            settings["encoder"] |= {"name": "custom", "_target_": "their_encoder.Loudness", "arguments": arguments}

        return message(change)

    assert register(own, named())[1] == 12
    assert register(own, named(label="owner/name"))[1] == 12
    for path in ("/etc/passwd", "~/x", "../x", "a/../../x", "C:\\x", str(tmp_path)):
        with refused(PolicyViolationError, "label"):
            register(own, named(label=path))


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("path", "/etc/passwd", "targets"),
        ("captions", "/etc/passwd", "targets"),
        ("model", "/models/clip", "targets"),
        ("model", "../clip", "targets"),
        ("revision", "../../../etc", "targets"),
        ("subfolder", "..", "targets"),
    ],
)
def test_class_prompts_come_from_no_file_that_a_message_names(own, message, key, value, remedy):
    def change(settings):
        if key == "path":
            settings["targets"] |= {"name": "file", "path": value}
            return
        model = {"model": "openai/clip", "revision": None, "subfolder": "", "precision": "float32"}
        settings["targets"] |= {"name": "clip", "templates": ["{}"], "device": "cpu", "clip": model}
        (settings["targets"] if key == "captions" else model)[key] = value

    with refused(NodeConfigError, f"targets.{'' if key in ('path', 'captions') else 'clip.'}{key}", remedy):
        register(own, message(change))


@pytest.mark.parametrize("model", ["/models/ast", "~/ast", "./ast", "a/b/c", "here/model"])
def test_the_encoder_comes_from_no_folder_that_a_message_names(own, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)

    def change(settings):
        settings["encoder"] |= {"name": "ast", "model": model, "tokens": "cls", "batch_size": 1, "device": "cpu"}
        settings["encoder"]["precision"] = "float32"

    with refused(NodeConfigError, model, "encoder-model"):
        register(own, message(change))


def test_errors_to_the_server_contain_no_paths_and_no_content_of_files(own, message, sounds, tmp_path):
    own["data-dir"] = str(tmp_path / "patients")
    (tmp_path / "patients" / "meta").mkdir(parents=True)
    (tmp_path / "patients" / "meta" / "esc50.csv").write_text("filename,fold,category\nMiller.wav,one,cough\n")
    with refused(SiteError, "data", "DataError") as caught:
        register(own, message())
    told = str(caught.value)
    assert not [word for word in ("Miller", "cough", "patients", str(tmp_path)) if word in told]
    assert str(tmp_path) in str(caught.value.__cause__), "the owner's own log has all of it"


def test_a_node_on_the_servers_machine_needs_no_cache_dir(own, message, sounds):
    own.pop("cache-dir")
    assert A2VClient(own).fit([], message())[1] == 12


# Limits


def test_a_run_with_more_epochs_than_the_owner_allows_is_refused(own, message):
    own["max-epochs"] = 2

    def epochs(number):
        return message(lambda settings: settings["site"].update(epochs=number))

    assert register(own, epochs(2))[1] == 12
    with refused(PolicyViolationError, "max-epochs=2", "site.epochs=3"):
        register(own, epochs(3))


def test_a_site_that_requires_secure_sums_sends_nothing_else(own, message):
    own["require-secure-sums"] = True
    with refused(PolicyViolationError, "require-secure-sums", "share=prototypes", "secure_sums=none"):
        register(own, message())

    def sums(settings):
        settings["share"].update(kind="statistics")

    with refused(PolicyViolationError, "require-secure-sums", "share=statistics", "secure_sums=none"):
        register(own, message(sums, task="sums"))

    def hidden(settings):
        sums(settings)
        settings["secure_sums"].update(name="secagg")

    assert register(own, message(hidden, task="counts"))[:2] == ([], 12)


def test_the_owners_time_counts_where_it_is_shorter(own, message):
    own["max-seconds"] = 0.001
    with refused(DeadlineError, "max-seconds=0.001"):
        register(own, message())
    own["max-seconds"] = 10**6
    with refused(DeadlineError, "federation.site_timeout=0.001"):
        register(own, message(lambda settings: settings["federation"].update(site_timeout=0.001)))


def test_threads_are_no_more_than_the_owner_allows(own, message, monkeypatch):
    used = []
    monkeypatch.setattr("torch.set_num_threads", used.append)
    own["max-threads"] = 2
    for asked in (1, 64):
        register(own, message(lambda settings, asked=asked: settings.update(threads=asked)))
    assert used == [1, 2]


# Invalid messages


@pytest.mark.parametrize(
    "change",
    [
        {"task": "evaluate"},
        {"task": "delete"},
        {"round": -1},
        {"round": "1"},
        {"number": 2**40},
        {"settings": "{"},
        {"settings": "[" * 100_000},
        {"settings": "{}"},
        {"classes": '["dog"'},
        {"classes": "[1, 2]"},
        {"more": 1},
        {"held": "x" * 10_000},
    ],
)
def test_an_invalid_message_is_refused_by_its_key_without_its_text(own, message, change):
    (key,) = change
    with refused(InvalidInstructionError, "task" if key == "task" else key) as caught:
        register(own, message(**change))
    assert len(str(caught.value)) < 200


def test_settings_of_another_version_are_refused_by_key(own, message):
    with refused(InvalidInstructionError, "settings.site.epoch"):
        register(own, message(lambda settings: settings["site"].update(epoch=1)))
