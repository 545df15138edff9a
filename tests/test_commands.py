"""`fed-a2v config` and `fed-a2v completion`, as they are typed."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from fed_a2v.cli import main
from fed_a2v.commands import COMMANDS
from fed_a2v.commands.parser import resume_command
from fed_a2v.commands.subjects import _distinct_names, _split, class_list
from fed_a2v.commands.sweep_words import check_same, samples_of
from fed_a2v.commands.train import _output_folder, _parser, _run_folder
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.data.sounds import RunError, find_class
from fed_a2v.runs.checkpoint import Difference, check_same_experiment, load_state
from fed_a2v.runs.lock import hold
from tests.command import fed_a2v
from tests.refusals import refused

FOLDER = str(Path(sys.executable).parent)
TINY = ("experiment=quick", "report=false", "adapters.hidden_width=16", "generator=none", "wandb.mode=disabled")


def test_config_shows_yaml_that_is_the_settings_with_the_source_of_each_value(capsys):
    main(["config", "experiment=quick", "generator.latent_dim=3", "wandb.project='a: b'"])
    said = capsys.readouterr().out
    made = compose_settings("experiment=quick generator.latent_dim=3 \"wandb.project='a: b'\"")
    assert Settings.model_validate(yaml.safe_load(said)) == made
    origin = {line.split(":")[0].strip(): line.split("  # ")[-1] for line in said.splitlines() if "  # " in line}
    assert origin["rounds"] == "conf/experiment/quick.yaml"
    assert origin["latent_dim"] == "generator.latent_dim=3"
    assert origin["granularity"] == "conf/generator/vae.yaml"
    assert origin["temperature"] == "conf/config.yaml"
    assert "# ?" not in said


@pytest.mark.parametrize("option", ["generator=gmm", "scenario=class_incremental", "experiment=guide"])
def test_no_value_is_without_a_source(option, capsys):
    main(["config", option])
    assert "# ?" not in capsys.readouterr().out


def test_config_names_the_guides_file_and_key(capsys, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"feda2v": {"generator_training_epochs": 9, "generator_type": "gan"}}))
    main(["config", "--config", str(file), "seed=4"])
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line.startswith("  training_epochs"))
    assert line.split() == ["training_epochs:", "9", "#", f"{file}:", "feda2v.generator_training_epochs"]
    assert "  critic_steps: null" in said.out
    assert "feda2v.generator_type" in said.err


def test_config_refuses_what_train_refuses(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["config", "rouns=1"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "rouns=1" in said.err
    assert "rounds" in said.err


# Completion


@pytest.fixture(scope="module")
def completed():
    """What bash offers for a line, with the script of `fed-a2v completion bash` loaded."""
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("no bash here")

    def complete(line, breaks=""):
        script = f"""
COMP_WORDBREAKS={breaks!r}
eval "$(fed-a2v completion bash)"
[ "$COMP_WORDBREAKS" == {breaks!r} ] || echo "COMP_WORDBREAKS has changed" >&2
COMP_LINE={line!r}
COMP_WORDS=($COMP_LINE)
[ "${{COMP_LINE: -1}}" == " " ] && COMP_WORDS+=("")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_POINT=${{#COMP_LINE}}
$(complete -p fed-a2v | sed 's/.*-F \\([a-z0-9_]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        env = os.environ | {"PATH": f"{FOLDER}:{os.environ['PATH']}"}
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=env, timeout=120)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return complete


def test_bash_completes_the_commands(completed):
    assert completed("fed-a2v ") == list(COMMANDS)
    assert completed("fed-a2v tr") == ["train "]


def test_bash_completes_groups_options_and_keys(completed):
    assert completed("fed-a2v train generator=ga") == ["generator=gan", "generator=gaussian"]
    assert completed("fed-a2v train generator=gaussian generator.shr") == ["generator.shrinkage="]
    assert "experiment=quick" in completed("fed-a2v train experiment=")
    assert completed("fed-a2v config aggregation.mo") == ["aggregation.mode="]


def test_bash_gets_the_part_that_it_replaces_if_it_splits_words_at_the_equals_sign(completed):
    assert completed("fed-a2v train generator=ga", breaks=" =:") == ["gan", "gaussian"]
    assert completed("fed-a2v train generator=gaussian generator.shr", breaks=" =:") == ["generator.shrinkage="]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_with_every_command(shell, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert all(f" {command} " in script.replace("'", " ").replace("\n", " ") for command in COMMANDS)
    if found := shutil.which(shell):
        done = subprocess.run([found, "-n"], input=script, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")


# Ctrl-C, and what is typed for `generate` and sweeps


@pytest.mark.parametrize("when", ["composing", "saving"])
def test_ctrl_c_ends_a_command_in_one_line(when, monkeypatch, tmp_path, capsys):
    def interrupt(*given):
        try:
            raise KeyboardInterrupt
        finally:
            if when == "saving":
                raise RuntimeError("unexpected position")  # as torch ends a file that was not written

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fed_a2v.config.compose.sources", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["config"])
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "stopped" in line


def stopped(process):
    """What a process writes after Ctrl-C; as a user does, again if it goes on: Python loses one in a finalizer."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            continue


def test_ctrl_c_prints_the_command_that_resumes_the_run(tmp_path):
    words = ["train", *TINY, "rounds=500", "resume=never", "wandb.project='a b'", "--out", "my run"]
    with subprocess.Popen(
        [f"{FOLDER}/fed-a2v", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        seen = ""
        while "Round 2/500" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        last = stopped(process).splitlines()[-1]
    assert process.returncode == 130
    program, *resumed = shlex.split(last.partition(": ")[2])
    assert (program, resumed) == ("fed-a2v", [word for word in words if word != "resume=never"])
    given = _parser("").parse(resumed[1:])
    saved = load_state(tmp_path / given.out)
    assert saved["round"] >= 1
    assert check_same_experiment(saved["config"], compose_settings(given.overrides).as_dict()) == [
        Difference("resume", "never", "auto", harmless=True)
    ]


@pytest.mark.parametrize(
    ("words", "added"),
    [
        (["rounds=3"], ["--out", "/runs/a b"]),
        (["--out", "mine", "seed=1"], []),
        (["hydra.run.dir=mine"], []),
        (["-m", "seed=0,1", "hydra.sweep.dir=mine", "resume=never"], []),
    ],
)
def test_the_command_that_resumes_has_the_users_words_and_the_folder(words, added):
    kept = [word for word in words if word != "resume=never"]
    assert shlex.split(resume_command(["train", *words], Path("/runs/a b"))) == ["fed-a2v", "train", *kept, *added]


def test_ctrl_c_in_a_comparison_prints_its_folder(monkeypatch, tmp_path):
    def interrupt(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fed_a2v.compare.compare", interrupt)
    done = fed_a2v("compare", *TINY, cwd=tmp_path)
    (folder,) = (tmp_path / "outputs" / "compare").iterdir()
    last = shlex.split(done.stderr.splitlines()[-1].partition(": ")[2])
    assert (done.returncode, last) == (130, ["fed-a2v", "compare", *TINY, "--out", str(folder)])


def test_ctrl_c_while_a_run_saves_ends_it_in_one_line_that_says_how_to_go_on(monkeypatch, tmp_path):
    class Interrupted:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(self.file, name)

    save = torch.save
    monkeypatch.setattr("torch.save", lambda content, file: save(content, Interrupted(file)))
    done = fed_a2v("train", *TINY, "--quiet", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "run") in line
    assert not list((tmp_path / "run").rglob("*.tmp"))


CLASSES = ("rain, heavy", "rain", "a=b", "dog", "tick-tock")


@pytest.fixture
def run():
    """A run, as far as words about classes need one."""
    return SimpleNamespace(classes=CLASSES, class_name=lambda name: find_class(name, CLASSES))


@pytest.mark.parametrize(
    ("typed", "classes"),
    [
        ("dog,rain", ("dog", "rain")),
        ("Rain, heavy,dog", ("rain, heavy", "dog")),
        ("rain,rain, heavy", ("rain", "rain, heavy")),
        ("dog, tick tock,,dog", ("dog", "tick-tock")),
    ],
)
def test_commas_stand_between_classes_and_within_them(run, typed, classes):
    assert class_list(run, typed) == classes


def test_an_unknown_class_is_named(run):
    with refused(RunError, "heavy"):
        class_list(run, "rain,heavy,dog")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("dog=x.wav", ("dog", "x.wav")),
        ("a=b=x.wav", ("a=b", "x.wav")),
        ("A=B=y=z.wav", ("A=B", "y=z.wav")),
        ("dog=y=z.wav", ("dog", "y=z.wav")),
        ("x.wav", ("", "x.wav")),
        ("there=1.wav", ("", "there=1.wav")),
        ("cat=x.wav", ("cat", "x.wav")),
    ],
)
def test_the_equals_sign_stands_behind_the_class_and_within_names(typed, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there=1.wav").touch()
    assert _split(typed, CLASSES) == (found[0], Path(found[1]))


def test_files_of_one_name_are_distinct_names_by_their_folders():
    paths = [Path(path) for path in ("a/dog/1.wav", "a/rain/1.wav", "b/rain/1.wav", "a/rain/2.wav")]
    assert _distinct_names(paths) == ["dog/1.wav", "a/rain/1.wav", "b/rain/1.wav", "2.wav"]
    same = _distinct_names([Path("x.wav"), Path("x.wav").absolute()])
    assert same == ["x.wav", "x.wav"]


@pytest.mark.parametrize(
    ("word", "samples"),
    [
        ("generator=glob(ga*)", ["generator=gan", "generator=gaussian"]),
        ("generator=glob([vae*,gmm],exclude=*_t5)", ["generator=gmm", "generator=vae_per_class"]),
        ("experiment=glob(esc50*)", ["experiment=esc50_50x1", "experiment=esc50_5x10"]),
        ("generator=gan,vae", ["generator=gan", "generator=vae"]),
        ("site.learning_rate=tag(log,interval(0.001,0.01))", ["site.learning_rate=0.001", "site.learning_rate=0.01"]),
        ("site.epochs=int(interval(1,5))", ["site.epochs=1", "site.epochs=5"]),
    ],
)
def test_a_sweep_is_looked_at_by_its_first_value_and_its_last(word, samples):
    assert samples_of([word, "seed=1"]) == [[sample, "seed=1"] for sample in samples]


def test_a_sweep_over_no_option_or_one_that_cannot_run_is_refused(capsys):
    with refused(ConfigError, "generator=glob(x*)", "gaussian"):
        samples_of(["generator=glob(x*)"])
    with pytest.raises(SystemExit):
        main(["train", "-m", "generator=glob(*)"])
    said = capsys.readouterr().err
    assert "generator=custom" in said
    assert "exclude" in said


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    """Python refuses it by default, and a comparison would end with a traceback instead of its table."""
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    main(["--version"])
    terminal.write("1 ± 2")
    terminal.flush()
    assert terminal.buffer.getvalue().endswith(rb"1 \xb1 2")


@pytest.mark.parametrize("words", [["report"], ["train", *TINY, "--out"], ["export", "--to=x"]])
def test_the_home_of_nobody_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "~nobody-of-this-name/run"])
    assert ended.value.code == 2
    assert "~" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plain", "it's", 'q"', "a,b=c {x}", "'"])
def test_a_folder_of_any_name_is_found_again(name, tmp_path):
    """Otherwise a sweep with other settings would replace the jobs there."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "sweep.yaml").write_text("same: [rounds=1]\nvaried: ['seed=0,1']\n")
    words = _output_folder(_parser("").parse(["-m", "--out", str(folder)]))
    with refused(ConfigError, str(folder), "rounds=1"):
        check_same([*words, "seed=0", "rounds=2"], compose_settings(["seed=0", "rounds=2"]))
    assert _run_folder(_output_folder(_parser("").parse(["--out", str(folder)]))) == folder


@pytest.mark.parametrize("word", ["seed=range(0,0)", "seed=range(1,3,0)", "seed=range(5,2)"])
def test_a_sweep_over_no_value_is_refused(word):
    with refused(ConfigError, word):
        samples_of([word])


def test_the_value_of_an_option_of_hydras_is_no_override(tmp_path):
    shown = fed_a2v("train", "seed=7", "--cfg", "job", "--package", "seed", cwd=tmp_path)
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == (0, "7")


def test_the_words_of_a_run_that_is_going_on_stay_those_of_the_first(tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    with hold(folder):
        done = fed_a2v("train", "experiment=quick", "seed=2", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(folder) in line
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [".lock", "overrides.yaml"]
    assert (folder / ".hydra" / "overrides.yaml").read_text() == "- seed=1\n"


@pytest.mark.parametrize(
    ("words", "override"),
    [
        (["--out", "runs/mine"], ["hydra.run.dir='runs/mine'"]),
        (["--out=it's mine"], ["hydra.run.dir='it\\'s mine'"]),
        (["-m", "--out", "sweep", "seed=0,1"], ["hydra.sweep.dir='sweep'"]),
        (["hydra.run.dir=mine"], []),
    ],
)
def test_out_is_the_folder_of_hydra(words, override):
    assert _output_folder(_parser("").parse(words)) == override


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["synth", "sounds", "--clips-per-class", "0"], "--clips-per-class 0"),
        (["demo", "report.html"], "report.html"),
        (["generate", "report.html", "dog.wav"], "report.html"),
        (["demo"], "required: RUN;"),
        (["generate"], "required: RUN;"),
    ],
)
def test_what_is_no_run_and_what_is_missing_is_named(words, named, tmp_path):
    (tmp_path / "report.html").write_text("<html>")
    done = fed_a2v(*words, cwd=tmp_path)
    assert (done.returncode, named in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("command", ["synth", "targets"])
def test_what_is_written_is_named_by_the_first_word_or_by_out(command, tmp_path):
    name, rest = {"synth": ("sounds", ["--classes", "dog"]), "targets": ("prompts.npz", ["adapters=compact"])}[command]
    for words in ([f"a-{name}", *rest], [*rest, "--out", f"b-{name}"]):
        done = fed_a2v(command, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a-{name}", f"b-{name}"]
    both = fed_a2v(command, name, "--out", "other", cwd=tmp_path)
    assert (both.returncode, name in both.stderr, "--out=other" in both.stderr) == (2, True, True)
