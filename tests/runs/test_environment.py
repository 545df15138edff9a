"""What a run records of its code and of the installed versions."""

import os
import subprocess

import pytest

from fed_a2v.runs import environment as module
from fed_a2v.runs.environment import commit, environment


@pytest.fixture
def working_copy(tmp_path):
    """A Git working copy with one committed file."""

    def git(*words):
        author = {f"GIT_{role}_{what}": "someone" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *words],
            env=os.environ | author | {"GIT_CONFIG_GLOBAL": os.devnull},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "one")
    return tmp_path, git("rev-parse", "HEAD")


def test_the_commit_and_whether_files_differ_from_it(working_copy):
    folder, head = working_copy
    (folder / "untracked").write_text("")
    assert commit(folder) == {"commit": head, "uncommitted_changes": False}
    (folder / "code.py").write_text("x = 2\n")
    assert commit(folder) == {"commit": head, "uncommitted_changes": True}


def test_a_folder_that_is_no_working_copy_has_no_commit(working_copy):
    folder, _ = working_copy
    (folder / "installed").mkdir()
    assert commit(folder / "installed") == {}
    assert commit(folder / "missing") == {}


def test_git_is_never_run_in_the_folder_of_another_user(working_copy, monkeypatch):
    folder, _ = working_copy
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: pytest.fail("ran git"))
    assert commit(folder) == {}


def test_without_git_there_is_no_commit(working_copy, monkeypatch):
    folder, _ = working_copy
    monkeypatch.setenv("PATH", "")
    assert commit(folder) == {}


def test_a_repository_of_the_environment_is_not_taken_for_that_of_the_code(working_copy, tmp_path, monkeypatch):
    folder, head = working_copy
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit(folder)["commit"] == head


def test_packages_in_other_versions_than_the_constraints_are_named(tmp_path, monkeypatch):
    installed = module.installed_version("numpy")
    (tmp_path / "constraints.txt").write_text(f"# tested\nnumpy=={installed}\nPyYAML==0.1\nnot-installed==1.0\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module._lock.cache_clear()
    found = environment()
    module._lock.cache_clear()
    assert found["not_as_in_constraints"] == [f"PyYAML {module.installed_version('PyYAML')}"]
    assert len(found["constraints_sha256"]) == len(found["packages_sha256"]) == 64
    assert "commit" not in found
