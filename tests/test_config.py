"""Settings: what composes, what is refused, and that they arrive elsewhere as they left."""

import contextlib
import json
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.config import ConfigError, compose_settings, conf_dir, sources, to_yaml
from fed_a2v.settings import Settings, cache_dir

# What an option needs beside its name.
NEEDS = {
    "dataset=esc50": ["dataset.root=/data/ESC-50"],
    "dataset=embeddings": ["dataset.path=/data/embeddings.npz"],
    "dataset=vegas": ["dataset.root=/data/VEGAS"],
    "dataset=vggsound": ["dataset.root=/data/VGGSound"],
    "dataset=folder": ["dataset.root=/data/recordings"],
    "dataset=mixed": ["dataset.sets=[{name: synth}]"],
    "targets=file": ["targets.path=/data/targets.npz"],
    "dataset=custom": ["dataset._target_=my.DataSet"],
    "encoder=custom": ["encoder._target_=my.Encoder"],
    "images=sd": ["adapters=sd"],
    "images=flux": ["adapters=flux"],
    "generator=custom": ["generator._target_=my.Generator"],
    "experiment=flux": ["dataset.root=/data/ESC-50"],
    "experiment=sd": ["dataset.root=/data/ESC-50"],
    "experiment=vegas_10x1": ["dataset.root=/data/VEGAS"],
    "experiment=esc50_5x10": ["dataset.root=/data/ESC-50"],
    "experiment=class_incremental": ["dataset.root=/data/ESC-50"],
    "experiment=esc50_50x1": ["dataset.root=/data/ESC-50"],
}
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(conf_dir().glob("*/*.yaml"))]


def composed(option, *more):
    return compose_settings([option, *NEEDS.get(option, []), *more])


@pytest.fixture(scope="module")
def defaults():
    return compose_settings()


# What composes


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith("experiment")])
def test_every_option_of_every_group_composes_and_is_the_one_asked_for(option):
    group, name = option.split("=")
    section = getattr(composed(option), group)
    assert (section.kind if group in ("partition", "share") else section.name) == name


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


def test_a_value_given_beats_the_experiments_value():
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


def test_a_path_with_blanks_arrives_whole():
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
        ("dataset=sinth", "synth"),
        ("generator=vea", "vae"),
        ("experiment=esc50_5x01", "esc50_5x10"),
    ],
)
def test_an_unknown_key_or_option_is_refused_and_the_nearest_is_named(override, nearest):
    with pytest.raises(ConfigError, match=rf"did you mean {nearest}\?") as caught:
        compose_settings([override])
    assert override.lstrip("+").split("=")[0].split(".")[-1] in str(caught.value)


def test_a_wrong_option_lists_all_that_there_are():
    with pytest.raises(ConfigError, match="embeddings, esc50, folder, mixed, synth, vegas, vggsound"):
        compose_settings("dataset=radio")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=many", "rounds = 'many': .*integer"),
        ("rounds=2.5", "rounds = 2.5: .*integer"),
        ("rounds=null", "rounds = None: .*integer"),
        ("finetune.enabled=perhaps", "finetune.enabled = 'perhaps': .*boolean"),
        ("dataset.train_folds=3", "dataset.train_folds = 3: .*list"),
        (
            "aggregation.mode=mean",
            "aggregation.mode = 'mean': .*'avg', 'weighted', 'median', 'trimmed', 'krum', 'kd' or 'none'",
        ),
        ("wandb.mode=of", "wandb.mode = 'of': .*'offline', 'online' or 'disabled'"),
        ("rounds=0", "rounds = 0: .*greater than or equal to 1"),
        ("seed=-1", "seed = -1: .*greater than or equal to 0"),
        ("loss.temperature=0", "loss.temperature = 0: .*greater than 0"),
        ("federation.sites_per_round=1.5", "federation.sites_per_round = 1.5: .*less than or equal to 1"),
        ("finetune.synthetic_share=-0.1", "finetune.synthetic_share = -0.1"),
        ("generator.training_epochs=0", "generator.training_epochs = 0"),
        ("site.learning_rate=inf", "site.learning_rate = inf: .*finite"),
        ("loss.mse=nan", "loss.mse = nan"),
        ("~loss.mse", "loss.mse: Field required"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_with_key_and_value(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings([override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("dataset.test_folds=[3]", "fold 3 is in dataset.train_folds and in dataset.test_folds"),
        ("dataset.validation_folds=[4]", "fold 4 is in dataset.validation_folds and in dataset.test_folds"),
        ("dataset.train_folds=[1,1]", "fold 1 is in dataset.train_folds and in dataset.train_folds"),
        ("dataset.test_folds=[]", "dataset.test_folds is empty"),
        ("dataset=esc50", "needs dataset.root=FOLDER"),
        ("experiment=esc50_50x1", "needs dataset.root=FOLDER"),
        ("dataset=embeddings", "needs dataset.path=FILE.npz"),
        ("targets=file", "needs targets.path=FILE.npz"),
        ("loss.mse=0 loss.cosine=0 loss.contrastive=0", "all 0; nothing would be learned"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings(overrides)


def test_sites_with_their_own_data_need_no_folder_at_the_server_once_the_classes_are_named():
    made = compose_settings("partition=own dataset=esc50 dataset.classes=[dog,rain]")
    assert made.dataset.root is None
    with pytest.raises(ConfigError, match=r"needs dataset\.root"):
        compose_settings("partition=own dataset=esc50")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        compose_settings("rounds=0 seed=-1")
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["rounds", "seed"]
    with pytest.raises(ConfigError) as caught:
        compose_settings("+loss.msee=1 +site.epoch=1")
    assert [line.split(";")[0] for line in str(caught.value).splitlines()] == [
        *("unknown key loss.msee", "unknown key site.epoch"),
    ]


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
def test_whatever_is_typed_gives_settings_or_one_kind_of_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(compose_settings([text]), Settings)


# What arrives elsewhere


@pytest.mark.parametrize("overrides", ["", "generator=gaussian adapters=flux", "generator=none", "experiment=guide"])
def test_settings_survive_the_way_to_a_site_as_json(overrides):
    made = compose_settings(overrides)
    assert Settings.model_validate_json(made.model_dump_json(by_alias=True)) == made


def test_the_arguments_of_the_generators_class_survive_as_well(defaults):
    sent = compose_settings("generator.latent_dim=7 generator.loss.beta_schedule=cyclical +generator.extra=[1,2]")
    back = Settings.model_validate_json(sent.model_dump_json(by_alias=True))
    assert back.generator.arguments == sent.generator.arguments
    assert back.generator.arguments["latent_dim"] == 7
    assert back.generator.arguments["loss"]["beta_schedule"] == "cyclical"
    assert back.generator.arguments["extra"] == [1, 2]
    assert back != defaults


def test_settings_survive_as_yaml_with_unicode_and_blanks():
    made = compose_settings(["dataset.classes=['Säge',crying baby]", "wandb.project=yes", "resume=007"])
    assert Settings.model_validate(yaml.safe_load(to_yaml(made))) == made


def test_settings_cannot_be_changed_afterwards(defaults):
    with pytest.raises(ValueError, match="frozen"):
        defaults.rounds = 3
    with pytest.raises(ValueError, match="frozen"):
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


def test_composing_does_not_depend_on_the_working_directory(tmp_path, monkeypatch, defaults):
    monkeypatch.chdir(tmp_path)
    assert compose_settings() == defaults


def test_the_cache_is_where_the_settings_say_then_the_environment_then_the_users_cache(monkeypatch, tmp_path, defaults):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FED_A2V_CACHE", raising=False)
    assert cache_dir(defaults) == tmp_path / "xdg" / "fed_a2v"
    monkeypatch.setenv("FED_A2V_CACHE", str(tmp_path / "env"))
    assert cache_dir(defaults) == tmp_path / "env"
    assert cache_dir(compose_settings([f"cache_dir={tmp_path / 'set'}"])) == tmp_path / "set"


def test_no_default_lives_outside_conf():
    with pytest.raises(ValueError, match="rounds") as caught:
        Settings.model_validate(json.loads("{}"))
    assert len(caught.value.errors()) == len(Settings.model_fields)


def test_a_key_of_another_option_is_refused_with_the_options_that_have_it():
    with pytest.raises(ConfigError, match=r"generator=gaussian has none; .*generator=vae, .* have it"):
        compose_settings("generator=gaussian generator.latent_dim=8")


def test_values_of_two_types_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^dataset\.unseen = -1: .* or .*valid list$"):
        compose_settings("dataset.unseen=-1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("aggregation.min_replies=6", "a round asks 5 sites .*: no round would count; lower it to 5"),
        ("aggregation.min_replies=3 federation.sites_per_round=0.4", "a round asks 2 sites"),
        ("aggregation.mode=krum aggregation.malicious_sites=2", "among 7 at least, a round asks 5"),
        ("generator=none generator.load_checkpoint=true", "generator=none has no checkpoint"),
        ("device=gpu", "device = 'gpu': choose cpu, cuda"),
    ],
)
def test_sites_and_replies_that_do_not_go_together_are_refused_with_the_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        "partition=own aggregation.min_replies=9",
        "aggregation.mode=krum",
        "device=cuda:1",
    ],
)
def test_what_only_looks_like_a_contradiction_is_allowed(overrides):
    compose_settings(overrides)


# The thirty wrong configurations of the benchmark


@pytest.fixture(scope="module")
def wrong_configs():
    path = Path(__file__).parent.parent / "benchmarks"
    sys.path.insert(0, str(path))
    try:
        yield import_module("wrong_configs")
    finally:
        sys.path.remove(str(path))


@pytest.mark.parametrize("number", range(30))
def test_a_wrong_configuration_gets_one_line_that_names_key_and_remedy(wrong_configs, number, tmp_path):
    case = wrong_configs.CASES[number]
    code, message = wrong_configs.said_to(case, tmp_path)
    assert wrong_configs.good(case, code, message), f"{case}: {code}, {message}"
    assert not list(tmp_path.glob("outputs")), "nothing was begun"


def test_there_are_thirty_wrong_configurations(wrong_configs):
    assert len(wrong_configs.CASES) == 30


# Where a value comes from


def test_every_key_has_the_file_or_the_override_that_it_comes_from():
    found = sources(["experiment=quick", "generator=gaussian", "generator.shrinkage=0.5", "rounds=3"])
    assert found["rounds"] == "rounds=3"
    assert found["generator.shrinkage"] == "generator.shrinkage=0.5"
    assert found["generator.training_epochs"] == "conf/experiment/quick.yaml"
    assert found["generator.holdout"] == "conf/generator/gaussian.yaml"
    assert found["partition.sites"] == "conf/partition/classes.yaml"
    assert found["loss.mse"] == "conf/config.yaml"


def test_the_later_of_two_overrides_is_the_source():
    assert sources(["rounds=2", "rounds=3"])["rounds"] == "rounds=3"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bank.keep=generator", "generator=none"], "bank.keep=generator needs a generator"),
        (["bank.keep=nothing"], "bank.keep = 'nothing': .*'prototypes' or 'generator'"),
        (["scenario=class_incremental", "partition.sites=3"], "scenario.steps=5 groups need as many sites"),
        (["scenario=class_incremental", "partition=own"], "needs a partition with numbered sites"),
        (["dataset.unseen=-1"], "dataset.unseen"),
        (["adapters=bilinear", "adapters.t5_tokens=17"], "closed_form has no T5 adapter"),
        (["adapters=bilinear", "finetune.enabled=false"], "solved in the server step"),
        (["aggregation.trimmed_share=0.5"], "aggregation.trimmed_share = 0.5"),
    ],
)
def test_banks_scenarios_and_unseen_classes_are_checked(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_settings(overrides)
