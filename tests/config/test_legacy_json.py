"""The guide's JSON: how it is read, the overrides of each key, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.cli import main
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.legacy_json import RULES, GuideFile
from tests.command import fed_a2v
from tests.refusals import refused

# The file of the original guide, word by word.
GUIDE = """\
{
  "feda2v": {
    // Abilita il generatore VAE
    "use_generator": true,
    "generator_type": "vae",  // o "gan"

    // Checkpoint management
    "generator_save_checkpoint": true,
    "generator_load_checkpoint": false,
    "generator_checkpoint_path": "checkpoints/vae_generator.pt",
    "generator_checkpoint_frequency": 10,  // salva ogni 10 round

    // Training configuration
    "generator_training_epochs": 5,
    "generator_augmentation": true,
    "generator_augmentation_noise": 0.1,  // std dev del rumore gaussiano
    "synthetic_samples_per_class": 5,     // campioni sintetici per classe
    "generator_validation_frequency": 5,   // valida ogni 5 round

    // Adapter training
    "global_model_train_from_nodes_adapters": true,
    "adapter_aggregation_mode": "avg"
  }
}
"""


@pytest.fixture
def file(tmp_path):
    """Write a file in the guide's format, and read it."""

    def write(content):
        path = tmp_path / "my_experiment.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return GuideFile(path)

    return write


def became(guide):
    return {parsed.key: (dict(parsed.overrides), parsed.note) for parsed in guide.parsed_keys}


# Reading the file


def test_line_and_column_of_a_mistake_are_those_of_the_file(file):
    with refused(ConfigError, "my_experiment.json", "line 4", "column 3", "','", "'\"b\": 2'"):
        file('{ // one\n  /* two\n  */ "a": 1\n  "b": 2\n}')


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ("line 1", "column 1")),
        ("[]", ("list", '{"feda2v"')),
        ('{"feda2v": {"use_generator": tru}}', ("line 1", "column 30")),
        ('{"feda2v": {"a": 1, "a": 2}}', ("'a'",)),
        ('{"feda2v": {"generator_augmentation_noise": NaN}}', ("NaN",)),
        ('{"a": 1 /* for ever', ("/*", "line 1", "*/")),
        ('{"feda2v": "vae"}', ("feda2v", "'vae'", "{...}")),
        ('{"nodes": {"0": "dog"}}', ("nodes.0", "'dog'", "{...}")),
        ("[" * 100_000, ("recursion",)),
    ],
)
def test_a_file_that_is_no_json_object_is_refused_with_the_place(file, text, named):
    with refused(ConfigError, "my_experiment.json", *named):
        file(text)


# Overrides of the keys


def test_the_guides_file_as_it_stands_gives_the_guides_values(file):
    made = compose_settings(file(GUIDE).overrides())
    generator = made.generator
    assert (generator.name, generator.training_epochs, generator.synthetic_samples_per_class) == ("vae", 5, 5)
    assert (generator.augmentation, generator.augmentation_noise, generator.validation_frequency) == (True, 0.1, 5)
    assert (generator.save_checkpoint, generator.load_checkpoint, generator.checkpoint_frequency) == (True, False, 10)
    assert generator.checkpoint_path == "checkpoints/vae_generator.pt"
    assert (made.finetune.from_nodes_adapters, made.aggregation.mode) == (True, "avg")


def test_every_key_of_the_guide_has_a_rule(file):
    guide = file(GUIDE)
    assert len(guide.parsed_keys) == 13
    assert all(overrides or note for overrides, note in became(guide).values())


@pytest.mark.parametrize(
    ("section", "overrides"),
    [
        ({"use_generator": False, "generator_type": "gan"}, {"generator": "none"}),
        ({"use_generator": True}, {"generator": "vae"}),
        ({"use_generator": True, "generator_type": "gan"}, {"generator": "gan"}),
        ({"generator_granularity": "per_class"}, {"generator.granularity": "per_class"}),
        ({"generator_granularity": "unified", "generator_class_groups": None}, {}),
        ({"synthetic_samples_per_class": "auto"}, {}),
        ({"adapter_aggregation_mode": "weighted_avg"}, {"aggregation.mode": "weighted"}),
        ({"adapter_aggregation_method": "kd"}, {"aggregation.mode": "kd"}),
        (
            {"generator_checkpoint_dir": "saved", "generator_checkpoint_base_name": "mine"},
            {"generator.checkpoint_path": "saved/mine.pt"},
        ),
        ({"_comment_generator": "=== SETTINGS ==="}, {}),
    ],
)
def test_keys_of_the_section_feda2v(file, section, overrides):
    found = {}
    for made, _ in became(file({"feda2v": section})).values():
        found |= made
    assert found == overrides


def test_the_other_sections_of_an_experiment(file):
    guide = file(
        {
            "experiment": {"seed": 42, "device": "cuda", "device_id": "1", "optimize_memory_usage": True, "runs": 1},
            "federation": {"global_rounds": 40, "local_epochs": 5, "join_ratio": 0.5, "diffusion_type": "flux"},
            "training": {"learning_rate": 0.01, "batch_size": 8, "weight_decay": 0.0001, "optimizer": "AdamW"},
            "feda2v": {"adapters_learning_rate": 0.001, "global_model_train": False},
            "wandb": {"disabled": True},
        }
    )
    made = compose_settings(["device=cpu", *guide.overrides(["device=cpu"])])
    assert (made.seed, made.rounds, made.optimize_memory_usage, made.wandb.mode) == (42, 40, True, "disabled")
    assert (made.site.epochs, made.site.batch_size, made.site.learning_rate) == (5, 8, 0.001)
    assert (made.adapters.name, made.federation.sites_per_round, made.finetune.enabled) == ("flux", 0.5, False)
    assert became(file({"experiment": {"device": "cuda", "device_id": "1"}}))["experiment.device"][0] == {
        "device": "cuda:1"
    }


def test_pictures_take_the_image_model_that_the_file_names(file):
    section = {"generate_global_images_frequency": 10, "generate_nodes_images_frequency": 0}
    made = compose_settings(file({"federation": {"diffusion_type": "sd"}, "feda2v": section}).overrides())
    assert (made.images.name, made.generate_global_images_frequency, made.generate_nodes_images_frequency) == (
        "sd",
        10,
        0,
    )


def test_the_audio_model_is_an_encoder(file):
    made = compose_settings(
        file({"feda2v": {"audio_model_name": "MIT/ast-finetuned-audioset-16-16-0.442"}}).overrides()
    )
    assert (made.encoder.name, made.encoder.model) == ("ast", "MIT/ast-finetuned-audioset-16-16-0.442")
    assert became(file({"feda2v": {"audio_model_name": "wav2vec"}}))["feda2v.audio_model_name"][0] == {}


def test_the_nodes_become_a_partition(file):
    nodes = {
        "0": {"dataset": "ESC50", "selected_classes": ["dog", "cat"], "train_folds": [0, 1, 2, 3], "test_folds": [4]},
        "1": {"dataset": "ESC50", "selected_classes": ["rain", "wind"], "train_folds": [0, 1, 2, 3], "test_folds": [4]},
    }
    guide = file(
        {"federation": {"num_clients": 11}, "dataset": {"name": "VEGAS", "path": "/data/ESC-50"}, "nodes": nodes}
    )
    made = compose_settings(guide.overrides())
    assert (made.dataset.name, made.dataset.root) == ("esc50", "/data/ESC-50")
    assert made.dataset.classes == ["dog", "cat", "rain", "wind"]
    assert (made.partition.kind, made.partition.sites, made.partition.classes_per_site) == ("classes", 2, 2)
    assert (made.dataset.train_folds, made.dataset.test_folds) == ([1, 2, 3, 4], [5])
    assert became(guide)["federation.num_clients"][0] == {}


def test_what_differs_between_nodes_is_named(file):
    nodes = {"0": {"dataset": "ESC50", "node_split_id": 0}, "1": {"dataset": "VEGAS", "node_split_id": 1}}
    told = became(file({"nodes": nodes}))
    assert told["nodes.*.dataset"][0] == {}
    assert "dataset=mixed" in told["nodes.*.dataset"][1]
    assert told["nodes.*.node_split_id"][0] == {}


def test_misspellings_of_the_guide_are_accepted(file):
    told = became(
        file({"experiment": {"use_balooning": True}, "feda2v": {"generate_low_memomy_footprint": True}, "other": 1})
    )
    right = became(
        file({"experiment": {"use_ballooning": True}, "feda2v": {"generate_low_memory_footprint": True}, "other": 1})
    )
    assert list(told.values()) == list(right.values())
    assert told["other"][0] == {}


def test_unknown_keys_are_named(file):
    told = became(file({"feda2v": {"wavelet_family": "haar"}, "rewind": {"epochs": 3}}))
    assert told["feda2v.wavelet_family"][0] == told["rewind"][0] == {}


@pytest.mark.parametrize("key", [key for key in RULES if key.startswith("feda2v.")])
def test_a_misspelt_key_is_refused_with_the_nearest_known_key(file, key):
    name = key.removeprefix("feda2v.")
    slip = f"{name[:-1]}x{name[-1]}"
    with refused(ConfigError, "my_experiment.json", f"feda2v.{slip}", key):
        file({"feda2v": {slip: 1}})


def test_a_misspelt_section_is_refused(file):
    with refused(ConfigError, "my_experiment.json", "fed2av", "feda2v"):
        file({"fed2av": {}})


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20))
def test_text_values_are_unchanged_by_the_conversion(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps({"feda2v": {"project": text}}))
    assert compose_settings(GuideFile(path).overrides()).wandb.project == text


def test_groups_of_classes_are_unchanged_by_the_conversion(file):
    groups = {"animals": ["dog", "crying, baby"], "the rest": ["rain"]}
    guide = file({"feda2v": {"generator_granularity": "per_group", "generator_class_groups": groups}})
    assert compose_settings(guide.overrides()).generator.arguments["groups"] == groups


# With the command


def test_overrides_take_precedence_over_the_file_and_are_named(file):
    guide = file(GUIDE)
    typed = ["generator=gaussian", "generator.training_epochs=3"]
    made = compose_settings([*guide.overrides(typed), *typed])
    assert (made.generator.name, made.generator.training_epochs) == ("gaussian", 3)
    assert became(guide)["feda2v.generator_type"] == ({}, "generator=gaussian wins")
    assert became(guide)["feda2v.generator_training_epochs"] == ({}, "generator.training_epochs=3 wins")


def test_a_key_of_the_files_generator_is_dropped_with_another_generator(file):
    guide = file({"feda2v": {"generator_type": "vae", "generator_granularity": "per_class"}})
    assert guide.overrides(["generator=gaussian"]) == []
    assert became(guide)["feda2v.generator_granularity"] == ({}, "generator=gaussian has no generator.granularity")
    assert guide.overrides(["generator=vae,gaussian"]) == []


def test_train_prints_the_overrides_of_the_file_and_names_both_keys_of_a_wrong_value(
    file, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file({"feda2v": {"generator_training_epochs": 0, "use_balooning": True}})
    with pytest.raises(SystemExit):
        main(["train", "--config", "my_experiment.json"])
    said = capsys.readouterr().err
    assert "  feda2v.generator_training_epochs = 0 -> generator.training_epochs=0\n" in said
    assert "(my_experiment.json: feda2v.generator_training_epochs)" in said.splitlines()[-1]
    assert "feda2v.use_balooning = true -> (no meaning here" in said
    assert not list(tmp_path.glob("outputs"))


def test_train_combines_the_file_with_overrides(file, tmp_path):
    file(
        {"feda2v": {"generator_type": "gaussian", "synthetic_samples_per_class": 5}, "federation": {"global_rounds": 7}}
    )
    fast = ["adapters.hidden_width=32", "finetune.first_steps=5", "dataset.clips_per_class=4", "share.min_clips=1"]
    words = ["experiment=quick", "rounds=1", "report=false", *fast, "hydra.run.dir=run"]
    done = fed_a2v("train", "--config=my_experiment.json", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: gaussian" in saved
    assert "synthetic_samples_per_class: 5" in saved
    assert "rounds: 1\n" in saved
    assert "federation.global_rounds = 7 -> (rounds=1 wins)" in done.stderr


def test_the_guides_file_with_loading_on_loads_the_generator_of_the_earlier_run_in_its_dated_folder(file, tmp_path):
    fast = ["adapters.hidden_width=32", "finetune.first_steps=5", "dataset.clips_per_class=4", "share.min_clips=1"]
    words = ["--config=my_experiment.json", "experiment=quick", "rounds=1", "report=false", *fast]
    file(GUIDE)
    first = fed_a2v("train", *words, "hydra.run.dir=outputs/2025-01-01/23-59-59", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    saved = tmp_path / "outputs/2025-01-01/23-59-59/checkpoints/vae_generator_round_1.pt"
    content = saved.read_bytes()
    file(GUIDE.replace('"generator_load_checkpoint": false', '"generator_load_checkpoint": true'))
    second = fed_a2v("train", *words, "hydra.run.dir=outputs/2025-01-02/00-00-01", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert f"Loaded generator checkpoint from {saved} (round 1)" in second.stderr
    assert saved.read_bytes() == content
    own = tmp_path / "outputs/2025-01-02/00-00-01/checkpoints/vae_generator_round_1.pt"
    assert own.read_bytes() != content


def test_the_trial_run_of_the_guide_is_validated_on_one_average_of_each_class(file, tmp_path):
    """Nine clips of a class are three averages; the guide's metrics have values in the rounds with validation."""
    file(GUIDE)
    fast = ["adapters.hidden_width=32", "finetune.first_steps=5", "finetune.steps=5", "report=false"]
    words = ["experiment=quick", "rounds=5", *fast, "hydra.run.dir=run"]
    done = fed_a2v("train", "--config=my_experiment.json", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for measure in ("similarity", "mse", "l1"):
        name = f"server/generator_validation_{measure}"
        assert [row[name] is not None for row in rows] == [False] * 4 + [True]
        assert {f"{name}_real", f"{name}_blind"} <= rows[-1].keys()
    assert len(rows[-1]["generator_validation_per_class"]) == rows[-1]["server/generator_validation_rows"] == 10
    assert rows[-1]["generator_quality/rows"] == 10
    assert [row["finetune/held_out_rows"] for row in rows] == [10] * 5


@pytest.mark.parametrize("words", [["--config"], ["--config="], ["--config", "a.json", "--config", "b.json"]])
def test_the_option_takes_one_file(words, capsys):
    with pytest.raises(SystemExit):
        main(["train", *words])
    assert "--config" in capsys.readouterr().err
