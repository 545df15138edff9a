"""Settings: what composes, what is refused, and their conversion to JSON and YAML."""

import contextlib
import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import ValidationError

from fed_a2v.cli import main
from fed_a2v.config.compose import (
    ConfigError,
    _composed,
    as_overrides,
    compose_settings,
    conf_dir,
    sources,
    to_yaml,
)
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.config.tree import options, required_keys
from fed_a2v.data.aliases import ClassNames
from tests.refusals import refused

# Overrides that an option needs in addition to its name.
NEEDS = {
    "prior=labels": ["share=statistics"],
    **{
        f"dataset={name}": [f"dataset.{key}=/data" for key in required_keys("dataset", name)]
        for name in options("dataset")
    },
    "dataset=mixed": ["dataset.sets=[{name: synth}]"],
    "projection=file": ["projection.path=/data/matrix.npy"],
    "targets=file": ["targets.path=/data/targets.npz"],
    "dataset=custom": ["dataset._target_=my.DataSet"],
    "encoder=custom": ["encoder._target_=my.Encoder"],
    "images=sd": ["adapters=sd"],
    "images=flux": ["adapters=flux"],
    "generator=custom": ["generator._target_=my.Generator"],
    "aggregation=custom": ["aggregation._target_=my.Rule"],
    "experiment=flux": ["dataset.root=/data/ESC-50"],
    "experiment=sd": ["dataset.root=/data/ESC-50"],
    "experiment=vegas_10x1": ["dataset.root=/data/VEGAS"],
    "experiment=esc50_5x10": ["dataset.root=/data/ESC-50"],
    "experiment=class_incremental": ["dataset.root=/data/ESC-50"],
    "experiment=esc50_50x1": ["dataset.root=/data/ESC-50"],
    "privacy=dp": ["share=statistics", "site.epochs=0", "dataset.square_root=never"],
    "secure_sums=secagg": ["share=statistics"],
}
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(conf_dir().glob("*/[!_]*.yaml"))]


def composed(option, *more):
    return compose_settings([option, *NEEDS.get(option, []), *more])


@pytest.fixture(scope="module")
def defaults():
    return compose_settings()


# What composes


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if not option.startswith(("experiment", "metrics", "callbacks"))]
)
def test_every_option_of_every_group_composes_to_that_option(option):
    group, name = option.split("=")
    section = getattr(composed(option), group)
    assert getattr(section, {"partition": "kind", "share": "kind", "aggregation": "mode"}.get(group, "name")) == name


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("experiment")])
def test_every_experiment_composes_with_its_own_values(option):
    told = yaml.safe_load((conf_dir() / "experiment" / f"{option.split('=')[1]}.yaml").read_text())
    told.pop("defaults", None)
    made = composed(option).model_dump(by_alias=True)

    def check(wanted, got, where):
        for key, value in wanted.items():
            if isinstance(value, dict):
                check(value, got[key], f"{where}.{key}")
            else:
                assert got[key] == value, f"{where}.{key}"

    assert told
    check(told, made, option)


@pytest.mark.parametrize(("name", "sites", "classes"), [("esc50_5x10", 5, 10), ("esc50_50x1", 50, 1)])
def test_the_esc50_experiments_have_the_sites_and_classes_that_their_names_say(name, sites, classes):
    made = composed(f"experiment={name}")
    assert (made.partition.kind, made.partition.sites, made.partition.classes_per_site) == ("classes", sites, classes)
    assert (made.dataset.name, made.rounds, made.site.epochs) == ("esc50", 5, 5)


def test_the_experiments_that_the_documentation_promises_are_there():
    promised = "guide esc50_5x10 esc50_50x1 vegas_10x1 flux sd class_incremental quick"
    assert {f"experiment={name}" for name in promised.split()} <= set(OPTIONS)


@pytest.mark.parametrize(("name", "targets"), [("flux", "t5"), ("sd", "clip")])
def test_the_experiments_for_image_models_have_the_adapters_and_prompts_of_their_name(name, targets):
    made = composed(f"experiment={name}")
    assert (made.adapters.name, made.targets.name, made.encoder.name) == (name, targets, "ast")


def test_an_experiment_on_embeddings_takes_the_file_in_place_of_the_folder():
    made = compose_settings("experiment=esc50_50x1 dataset=embeddings dataset.path=/x.npz")
    assert (made.dataset.name, made.dataset.path, made.partition.sites) == ("embeddings", "/x.npz", 50)


def test_the_guide_experiment_has_the_values_of_the_guide():
    made = compose_settings("experiment=guide")
    generator = made.generator
    assert (made.rounds, made.aggregation.mode, made.finetune.from_nodes_adapters) == (10, "avg", True)
    assert (generator.name, generator.training_epochs) == ("vae", 5)
    assert (generator.augmentation, generator.augmentation_noise) == (True, 0.1)
    assert generator.synthetic_samples_per_class == 5
    assert (generator.validation_frequency, generator.checkpoint_frequency) == (5, 10)
    assert (generator.save_checkpoint, generator.load_checkpoint) == (True, False)
    assert generator.checkpoint_path == "checkpoints/vae_generator.pt"
    assert made.optimize_memory_usage is False


def test_the_default_experiment_is_five_sites_with_two_classes_each(defaults):
    assert (defaults.dataset.name, defaults.partition.kind, defaults.partition.sites) == ("synth", "classes", 5)


def test_a_later_override_wins():
    assert compose_settings("rounds=2 rounds=3").rounds == 3


def test_an_override_takes_precedence_over_the_experiments_value():
    assert compose_settings("rounds=7 experiment=quick").rounds == 7


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["rounds=3", "generator=gaussian"],
        ["dataset=esc50", "dataset.root=/data/my sounds/ESC-50"],
        ["dataset.classes=[dog, crying baby]", "wandb.project='a, b'"],
    ],
)
def test_a_shell_string_and_a_list_of_words_give_the_same_settings(words):
    assert compose_settings(shlex.join(words)) == compose_settings(words)


def test_a_path_with_spaces_is_kept_whole():
    made = compose_settings("dataset=esc50 'dataset.root=/my sounds/ESC-50'")
    assert made.dataset.root == "/my sounds/ESC-50"


# What is refused


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("rouns=3", "rounds"),
        ("generator.latent_dmi=3", "generator.latent_dim"),
        ("generator.trainingepochs=3", "generator.training_epochs"),
        ("adapters.t5_toknes=3", "adapters.t5_tokens"),
        ("+dataset.rot=/data", "dataset.root"),
        ("generatr=vae", "generator"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_is_named(override, nearest):
    with refused(ConfigError, override.lstrip("+").split("=")[0], nearest):
        compose_settings([override])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("dataset=sinth", "synth"), ("generator=vea", "vae"), ("experiment=esc50_5x01", "esc50_5x10")],
)
def test_an_unknown_option_is_refused_and_the_nearest_is_named(override, nearest):
    with refused(ConfigError, override) as caught:
        compose_settings([override])
    assert re.findall(r"\w+", str(caught.value)).count(nearest) == 2, "among all that there are, and as the nearest"


def test_the_error_for_a_wrong_option_lists_all_options():
    with refused(ConfigError, "dataset=radio", *(path.stem for path in (conf_dir() / "dataset").glob("[!_]*.yaml"))):
        compose_settings("dataset=radio")


@pytest.mark.parametrize(
    ("override", "named", "fault"),
    [
        ("rounds=many", ("rounds", "'many'"), "int_parsing"),
        ("rounds=2.5", ("rounds", "2.5"), "int_from_float"),
        ("rounds=null", ("rounds", "None"), "int_type"),
        ("finetune.enabled=perhaps", ("finetune.enabled", "'perhaps'"), "bool_parsing"),
        ("dataset.train_folds=3", ("dataset.train_folds", "3"), "list_type"),
        ("aggregation.mode=mean", ("aggregation.mode", "'mean'", *options("aggregation")), "value_error"),
        ("wandb.mode=of", ("wandb.mode", "'of'", "'offline'", "'online'", "'disabled'"), "literal_error"),
        ("rounds=0", ("rounds", "0", "1"), "greater_than_equal"),
        ("seed=-1", ("seed", "-1", "0"), "greater_than_equal"),
        ("loss.temperature=0", ("loss.temperature", "0"), "greater_than"),
        ("federation.sites_per_round=1.5", ("federation.sites_per_round", "1.5"), "less_than_equal"),
        ("finetune.synthetic_share=-0.1", ("finetune.synthetic_share", "-0.1"), "greater_than_equal"),
        ("generator.training_epochs=0", ("generator.training_epochs", "0", "1"), "greater_than_equal"),
        ("site.learning_rate=inf", ("site.learning_rate", "inf"), "finite_number"),
        ("loss.mse=nan", ("loss.mse", "nan"), "finite_number"),
        ("~loss.mse", ("loss.mse",), "missing"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_with_key_and_value(override, named, fault):
    with refused(ConfigError, *named) as caught:
        compose_settings([override])
    assert [error["type"] for error in caught.value.__cause__.errors()] == [fault]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            "dataset.train_folds=[2,3] dataset.test_folds=[3]",
            ("fold 3", "dataset.train_folds", "dataset.test_folds"),
        ),
        (
            "dataset.validation_folds=[4] dataset.test_fold=4",
            ("fold 4", "dataset.validation_folds", "dataset.test_fold"),
        ),
        ("dataset.test_fold=3 dataset.test_folds=[4]", ("dataset.test_fold=3", "dataset.test_folds=[4]")),
        ("dataset.train_folds=[1,1]", ("fold 1", "dataset.train_folds")),
        ("dataset.test_folds=[]", ("dataset.test_folds",)),
        ("dataset=esc50", ("dataset=esc50", "dataset.root=FOLDER")),
        ("experiment=esc50_50x1", ("dataset=esc50", "dataset.root=FOLDER")),
        ("dataset=embeddings", ("dataset=embeddings", "dataset.path=FILE.npz")),
        ("targets=file", ("targets=file", "targets.path=FILE.npz")),
        ("loss.mse=0 loss.cosine=0 loss.contrastive=0", ("loss.mse", "loss.cosine", "loss.contrastive")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, named):
    with refused(ConfigError, *named):
        compose_settings(overrides)


def test_sites_with_their_own_data_need_no_folder_at_the_server_once_the_classes_are_named():
    made = compose_settings("partition=own dataset=esc50 dataset.classes=[dog,rain]")
    assert made.dataset.root is None
    with refused(ConfigError, "dataset=esc50", "dataset.root=FOLDER"):
        compose_settings("partition=own dataset=esc50")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("[0,1,10]", ["0", "1", "10"]),
        ("[-3,dog]", ["-3", "dog"]),
        ('["true","1.50","null"]', ["true", "1.50", "null"]),
        ('["cafe\u0301","caf\u00e9"]', ["caf\u00e9", "caf\u00e9"]),
    ],
)
@pytest.mark.parametrize("key", ["classes", "unseen"])
def test_names_of_classes_are_text_however_they_are_written(key, given, names):
    made = compose_settings([f"dataset.{key}={given}"])
    assert getattr(made.dataset, key) == names


def test_aliases_in_a_file_are_names_however_they_are_written(tmp_path):
    (tmp_path / "aliases.yaml").write_text("0: dog\ncafe\u0301: bar\n")
    made = compose_settings([f"dataset.aliases={tmp_path / 'aliases.yaml'}"])
    assert made.dataset.aliases == {"0": "dog", "caf\u00e9": "bar"}


@pytest.mark.parametrize(("value", "quoted"), [("true", '["true"]'), ("1.5", '["1.5"]'), ("null", '["null"]')])
def test_a_name_that_reads_as_another_value_is_refused_with_how_to_quote_it(value, quoted):
    with refused(ConfigError, "dataset.classes.1", quoted):
        compose_settings([f"dataset.classes=[dog,{value}]"])
    with refused(ConfigError, "dataset.unseen.0", value):
        compose_settings([f"dataset.unseen=[{value}]"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset=folder", "dataset.root="],
        ["dataset=esc50", "dataset.root=' '"],
        ["dataset=embeddings", "dataset.path=''"],
        ["dataset=custom", "dataset._target_=my.DataSet", "dataset.root="],
        ["dataset=mixed", "dataset.sets=[{name: folder, root: ''}]"],
    ],
)
def test_an_empty_path_is_not_the_working_directory(overrides):
    key = "dataset.sets.0.root" if "dataset=mixed" in overrides else overrides[-1].partition("=")[0]
    with refused(ConfigError, key, "empty"):
        compose_settings(overrides)


@pytest.mark.parametrize(
    ("override", "limit"),
    [
        ("dataset.clip_seconds=100000", "600"),
        ("dataset.clip_seconds=5000", "600"),
        ("dataset.clip_seconds=0.0001", "0.01"),
        ("dataset.clips_per_class=1000000000", "100000"),
    ],
)
def test_clip_lengths_that_are_too_long_or_zero_are_refused(override, limit):
    key, _, value = override.partition("=")
    with refused(ConfigError, key, value, limit):
        compose_settings([override])


def test_all_errors_of_the_settings_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        compose_settings("rounds=0 seed=-1")
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["rounds", "seed"]
    with pytest.raises(ConfigError) as caught:
        compose_settings("+loss.msee=1 +site.epoch=1")
    for line, key in zip(str(caught.value).splitlines(), ("loss.msee", "site.epoch"), strict=True):
        assert key in re.findall(r"[\w.]+", line)


@pytest.mark.parametrize(
    "override",
    ["dataset.root='/data", "rounds", "=", "rounds=1=2", "rounds=1,2", "seed=${nowhere}", "dataset=null", "-m", "{}"],
)
def test_an_override_that_makes_no_sense_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as caught:
        compose_settings(override)
    assert len(str(caught.value).splitlines()) == 1


@given(
    st.one_of(
        st.text(max_size=12),
        st.builds(
            "{}{}={}".format,
            st.sampled_from(["", "+", "~", "++"]),
            st.sampled_from(
                ["rounds", "dataset", "generator", "loss.mse", "seed", "dataset.classes", "generator._target_"]
            ),
            st.text("0123456789.-+eEinfaux ,[]{}$:'\"\\\0\n", max_size=6),
        ),
    )
)
def test_any_override_gives_settings_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(compose_settings([text]), Settings)


# Conversion to JSON and YAML


@pytest.mark.parametrize("overrides", ["", "generator=gaussian adapters=flux", "generator=none", "experiment=guide"])
def test_settings_are_unchanged_by_json(overrides):
    made = compose_settings(overrides)
    assert Settings.model_validate_json(made.model_dump_json(by_alias=True)) == made


def test_arguments_of_the_generators_class_are_unchanged_by_json(defaults):
    sent = compose_settings("generator.latent_dim=7 generator.loss.beta_schedule=cyclical +generator.extra=[1,2]")
    back = Settings.model_validate_json(sent.model_dump_json(by_alias=True))
    assert back.generator.arguments == sent.generator.arguments
    assert back.generator.arguments["latent_dim"] == 7
    assert back.generator.arguments["loss"]["beta_schedule"] == "cyclical"
    assert back.generator.arguments["extra"] == [1, 2]
    assert back != defaults


def test_settings_with_unicode_and_spaces_are_unchanged_by_yaml():
    made = compose_settings(["dataset.classes=['Säge',crying baby]", "wandb.project=yes", "resume=007"])
    assert Settings.model_validate(yaml.safe_load(to_yaml(made.as_dict()))) == made


def test_yaml_of_a_strangers_settings_does_not_parse_their_values():
    settings = {"dataset": {"root": "${env:HOME", "name": "${"}, "seed": 7}
    assert yaml.safe_load(to_yaml(settings)) == settings


def test_settings_cannot_be_changed_afterwards(defaults):
    with refused(ValidationError, "rounds", "frozen_instance"):
        defaults.rounds = 3
    with refused(ValidationError, "training_epochs", "frozen_instance"):
        defaults.generator.training_epochs = 3


def test_composing_inside_a_hydra_job_leaves_the_job_as_it_was(defaults):
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="outer"):
        outer = GlobalHydra.instance().hydra
        assert compose_settings() == defaults
        assert GlobalHydra.instance().hydra is outer
        with pytest.raises(ConfigError):
            compose_settings("rouns=3")
        assert GlobalHydra.instance().hydra is outer
        assert compose("config", overrides=["rounds=9"]).rounds == 9
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "words",
    [
        ["rounds=7", "experiment=quick", "seed=1", "rounds=8"],
        ["seed=${rounds}", "dataset.classes=[dog,'Säge']", "dataset.aliases={a: b}", "wandb.project='yes'"],
        ["generator=gaussian", "site={epochs: 3}", "generator.validation_frequency=5"],
        ["dataset=esc50", "dataset.root=/a", "+dataset.more=1", "~site.epochs"],
    ],
)
def test_values_are_set_in_a_choice_of_options_as_hydra_sets_them(words):
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        tree = compose("config", overrides=words)
    assert OmegaConf.to_yaml(_composed(tuple(words))) == OmegaConf.to_yaml(tree)
    choice = tuple(word for word in words if options(word.split("=")[0]))
    assert OmegaConf.to_yaml(_composed(choice)) != OmegaConf.to_yaml(tree), "the choice itself stays as it is"


def test_composing_does_not_depend_on_the_working_directory(tmp_path, monkeypatch, defaults):
    monkeypatch.chdir(tmp_path)
    assert compose_settings() == defaults


def test_the_cache_is_where_the_settings_say_then_the_environment_then_the_users_cache(monkeypatch, tmp_path, defaults):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FED_A2V_CACHE", raising=False)
    assert cache_dir(defaults.cache_dir) == tmp_path / "xdg" / "fed_a2v"
    monkeypatch.setenv("FED_A2V_CACHE", str(tmp_path / "env"))
    assert cache_dir(defaults.cache_dir) == tmp_path / "env"
    assert cache_dir(compose_settings([f"cache_dir={tmp_path / 'set'}"]).cache_dir) == tmp_path / "set"


def test_no_default_lives_outside_conf():
    with refused(ValidationError, "rounds") as caught:
        Settings.model_validate(json.loads("{}"))
    assert len(caught.value.errors()) == len(Settings.model_fields)


def test_a_key_of_another_option_is_refused_with_the_options_that_have_it():
    with refused(ConfigError, "generator.latent_dim", "generator=gaussian", "generator=vae"):
        compose_settings("generator=gaussian generator.latent_dim=8")


def test_values_of_two_types_are_refused_in_one_line():
    with refused(ConfigError, "dataset.unseen", "-1") as caught:
        compose_settings("dataset.unseen=-1")
    assert len(caught.value.__cause__.errors()) == 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("aggregation.min_replies=6", ("aggregation.min_replies=6", "partition.sites=5")),
        (
            "aggregation.min_replies=3 federation.sites_per_round=0.4",
            ("aggregation.min_replies=3", "partition.sites=5", "federation.sites_per_round=0.4", 2),
        ),
        (
            "aggregation.mode=krum aggregation.malicious_sites=2",
            ("aggregation.mode=krum", 7, 5, "partition.sites", "aggregation.malicious_sites", "median"),
        ),
        ("generator=none generator.load_checkpoint=true", ("generator=none", "generator.load_checkpoint=true")),
        ("device=gpu", ("device", "'gpu'", "cpu", "cuda")),
        (
            "share=statistics privacy=dp site.epochs=0 finetune.from_nodes_adapters=true",
            ("site.epochs=0", "finetune.from_nodes_adapters=true"),
        ),
        (
            "share=statistics privacy=dp site.epochs=0 adapters=sd images=sd generate_nodes_images_frequency=1",
            ("privacy=dp", "generate_nodes_images_frequency"),
        ),
    ],
)
def test_sites_and_replies_that_do_not_go_together_are_refused_with_the_remedy(overrides, named):
    with refused(ConfigError, *named):
        compose_settings(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        "partition=own aggregation.min_replies=9",
        "aggregation.mode=krum",
        "device=cuda:1",
        "site.epochs=0 site.server_steps=true finetune.enabled=false",
        "share=statistics aggregation=kd",
        "share=statistics aggregation=none site.epochs=0",
    ],
)
def test_settings_that_only_look_contradictory_are_allowed(overrides):
    compose_settings(overrides)


# The wrong configurations of the benchmark


@pytest.fixture(scope="module")
def wrong_configs():
    path = Path(__file__).parents[2] / "benchmarks"
    sys.path.insert(0, str(path))
    try:
        yield import_module("wrong_configs")
    finally:
        sys.path.remove(str(path))


@pytest.mark.parametrize("number", range(35))
def test_a_wrong_configuration_gets_one_line_that_names_key_and_remedy(wrong_configs, number, tmp_path):
    case = wrong_configs.CASES[number]
    code, message = wrong_configs.said_to(case, tmp_path)
    assert wrong_configs.good(case, code, message), f"{case}: {code}, {message}"
    assert not list(tmp_path.glob("outputs")), "nothing was begun"


def test_all_wrong_configurations_are_tested(wrong_configs):
    assert len(wrong_configs.CASES) == 35


# Where a value comes from


def test_every_key_has_the_file_or_the_override_that_it_comes_from():
    found = sources(["experiment=quick", "generator=gaussian", "generator.shrinkage=0.5", "rounds=3"])
    assert found["rounds"] == "rounds=3"
    assert found["generator.shrinkage"] == "generator.shrinkage=0.5"
    assert found["generator.training_epochs"] == "conf/experiment/quick.yaml"
    assert found["generator.name"] == "conf/generator/gaussian.yaml"
    assert found["generator.holdout"] == "conf/generator/_base.yaml"
    assert found["partition.sites"] == "conf/partition/_base.yaml"
    assert found["loss.mse"] == "conf/config.yaml"


def test_the_later_of_two_overrides_is_the_source():
    assert sources(["rounds=2", "rounds=3"])["rounds"] == "rounds=3"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["bank.keep=generator", "generator=none"], ("bank.keep=generator", "generator=none")),
        (["bank.keep=nothing"], ("bank.keep", "'nothing'", "'prototypes'", "'generator'")),
        (["scenario=class_incremental", "partition.sites=3"], ("scenario.steps=5", "partition.sites=3")),
        (["scenario=class_incremental", "partition=own"], ("scenario=class_incremental", "partition=own")),
        (["dataset.unseen=-1"], ("dataset.unseen", "-1")),
        (["adapters=bilinear", "adapters.t5_tokens=17"], ("adapters.closed_form", "adapters.t5_tokens=0")),
        (["adapters=bilinear", "finetune.enabled=false"], ("adapters.closed_form", "finetune.enabled=true")),
        (["aggregation.trimmed_share=0.5"], ("aggregation.trimmed_share", "0.5")),
    ],
)
def test_banks_scenarios_and_unseen_classes_are_checked(overrides, named):
    with refused(ConfigError, *named):
        compose_settings(overrides)


# What users type


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("dataset.root=~/sounds", "~/sounds"),
        ("dataset.root=~", "~"),
        ("dataset.root='~/my sounds'", "~/my sounds"),
        ("dataset.root=/a~b/~c", "/a~b/~c"),
    ],
)
def test_the_home_folder_needs_no_quotes(typed, value):
    assert OverridesParser.create().parse_override(as_overrides([typed])[0]).value() == value


def test_the_home_folder_needs_no_quotes_in_lists_and_mixes_either():
    (word,) = as_overrides(["dataset.sets=[{name: folder, root: ~/one},{name: esc50, root: ~/two/b c }]"])
    sets = OverridesParser.create().parse_override(word).value()
    assert [part["root"] for part in sets] == ["~/one", "~/two/b c"]
    (word,) = as_overrides(["dataset.root=~/one,~/two"])
    assert list(OverridesParser.create().parse_override(word).sweep_string_iterator()) == ["'~/one'", "'~/two'"]
    assert compose_settings(["dataset=folder", "dataset.root=~/sounds"]).dataset.root == "~/sounds"


@pytest.mark.parametrize("word", ["~dataset", "--out=~/x", "seed=1", "-m", "+wandb.group=a"])
def test_other_words_stay_as_they_are(word):
    assert as_overrides([word]) == [word]


@pytest.mark.parametrize("typed", ["hydra.run.dir=~/run", "hydra.run.dir='~/run'", 'hydra.sweep.dir="~/run"'])
def test_hydra_does_not_make_a_folder_called_tilde(typed, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (word,) = as_overrides([typed])
    assert OverridesParser.create().parse_override(word).value() == str(tmp_path / "run")


@pytest.fixture
def own_conf(tmp_path):
    """A user's config folder with an experiment."""
    folder = tmp_path / "my conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - quick\nrounds: 7\n")
    return folder


@pytest.mark.parametrize("form", ["--config-dir={}", "--config-dir {}", "-cd {}"])
def test_an_experiment_in_the_users_config_dir_is_found(own_conf, form, capsys):
    words = form.split(" ")
    words[-1] = words[-1].format(own_conf)
    assert compose_settings([*words, "experiment=mine"]).rounds == 7
    main(["config", *words, "experiment=mine"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rounds:")]
    assert line.split("# ")[1] == str(own_conf / "experiment" / "mine.yaml")


@pytest.mark.parametrize("words", [["--config-dir"], ["--config-dir", "/nothing"], ["--config-dir="]])
def test_a_config_dir_that_does_not_exist_is_refused(words):
    with refused(ConfigError, "--config-dir", *words[1:]):
        compose_settings(words)


def test_class_names_that_yaml_parses_as_other_types_stay_names(tmp_path):
    file = tmp_path / "aliases.yaml"
    file.write_text("no: negative\noff: switched off\n010: ten\n1e3: 2024-01-01\n'yes': ~\n")
    aliases = compose_settings([f"dataset.aliases={file}"]).dataset.aliases
    assert aliases == {"no": "negative", "off": "switched off", "010": "ten", "1e3": "2024-01-01", "yes": "~"}
    assert ClassNames(aliases).common("No") == "negative"
    with refused(ConfigError, "dataset.classes.1", "True", '["true"]'):
        compose_settings(["dataset.classes=[dog,true]"])


@pytest.mark.parametrize(
    "text", ["", "dog", "- dog", "dog: [a]", "dog:", "a: b\na: c", "a: b: c", "? [a]\n: b", "\x00"]
)
def test_a_file_of_aliases_that_is_none_is_refused_by_name(tmp_path, text):
    file = tmp_path / "aliases.yaml"
    file.write_text(text)
    with refused(ConfigError, "dataset.aliases", file):
        compose_settings([f"dataset.aliases={file}"])


@pytest.mark.parametrize("value", ["", "relative/folder", None])
def test_a_cache_folder_of_the_user_that_is_no_absolute_path_does_not_count(monkeypatch, tmp_path, value):
    monkeypatch.delenv("FED_A2V_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_dir(compose_settings().cache_dir) == tmp_path / ".cache" / "fed_a2v"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert cache_dir(compose_settings().cache_dir) == tmp_path / "mine" / "fed_a2v"


def test_a_relative_path_has_the_same_meaning_wherever_the_run_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"my/sounds": str(tmp_path / "my" / "sounds"), "/my": "/my", "~/a": "~/a"}
    for typed, place in mine.items():
        assert compose_settings(["dataset=folder", f"dataset.root={typed}"]).dataset.root == place
    mix = compose_settings(["dataset=mixed", "dataset.sets=[{name: esc50, root: a}, {name: embeddings, path: b.npz}]"])
    assert [part.place for part in mix.dataset.sets] == [str(tmp_path / "a"), str(tmp_path / "b.npz")]
    own = compose_settings(["dataset=custom", "dataset._target_=my.DataSet", "dataset.root=anything"])
    assert own.dataset.root == "anything"


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("aggregation.patience=1", "aggregation.max_skipped_rounds"),
        ("+aggregation.patience=1", "aggregation.max_skipped_rounds"),
        ("targets=anchors", "targets=random"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(old, now):
    with refused(ConfigError, old.lstrip("+").partition("=1")[0], now):
        compose_settings([old])
