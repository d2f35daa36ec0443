"""`infra/at-commit`: a command runs in a clone of the given commit, with that commit's code, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from infra_files import INFRA, execute

NAMES = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository and the hashes of its two commits, which differ in their module `told`."""
    folder = tmp_path_factory.mktemp("repository")
    hashes = []
    git("init", "--quiet", folder=folder)
    for number in (1, 2):
        (folder / "told.py").write_text(f"COMMIT = {number}\n")
        (folder / "runs").mkdir(exist_ok=True)
        (folder / "runs" / "kept").write_text("")
        git("add", ".", folder=folder)
        git("commit", "--quiet", "--message", str(number), folder=folder)
        hashes.append(git("rev-parse", "HEAD", folder=folder).strip())
    return folder, hashes


def git(*words: str, folder: Path) -> str:
    command = ["git", *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **NAMES}, check=True, capture_output=True, text=True
    ).stdout


def at_commit(work: Path, repository: object, commit: str, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {"HIAR_WORK": str(work), "HIAR_REPOSITORY": str(repository), "HIAR_COMMIT": commit}
    return execute([str(INFRA / "at-commit"), *words], env={**os.environ, **settings})


def print_commit(folder: str = "") -> list[str]:
    """A command that prints the number of the commit whose code it runs, and its working folder."""
    program = "import os, told; print(told.COMMIT, os.path.basename(os.getcwd()))"
    return [*(["-C", folder] if folder else []), sys.executable, "-c", program]


def test_each_commit_runs_its_own_code(tmp_path: Path, repository: tuple[Path, list[str]]) -> None:
    folder, hashes = repository
    for number, commit in enumerate(hashes, 1):
        assert at_commit(tmp_path, folder, commit, *print_commit()).stdout == f"{number} {commit}\n"
    assert at_commit(tmp_path, folder, hashes[0], *print_commit("runs")).stdout == "1 runs\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(hashes)


def test_a_clone_is_reused_with_the_files_of_earlier_runs(tmp_path: Path, repository: tuple[Path, list[str]]) -> None:
    folder, (commit, _) = repository
    at_commit(tmp_path, folder, commit, "sh", "-c", "echo half > state")
    assert at_commit(tmp_path, "/nowhere", commit, "cat", "state").stdout == "half\n"
    assert at_commit(tmp_path, folder, commit, "sh", "-c", "exit 7").returncode == 7


def test_nodes_that_begin_at_once_share_one_clone(tmp_path: Path, repository: tuple[Path, list[str]]) -> None:
    folder, (commit, _) = repository
    settings = {"HIAR_WORK": str(tmp_path), "HIAR_REPOSITORY": str(folder), "HIAR_COMMIT": commit}
    nodes = [
        subprocess.Popen(
            [INFRA / "at-commit", *print_commit()], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert {node.communicate()[0] for node in nodes} == {f"1 {commit}\n"}
    assert [path.name for path in tmp_path.iterdir()] == [commit]


def test_a_clone_has_the_base_models_which_are_not_in_the_repository(
    tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    folder, (commit, _) = repository
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "prompts.txt").write_text("a fox\n")
    settings = {"HIAR_WORK": str(tmp_path / "work"), "HIAR_REPOSITORY": str(folder), "HIAR_COMMIT": commit}
    for models, code in (("nowhere", 2), ("base", 0), ("base", 0)):
        own = {**os.environ, **settings, "HIAR_MODELS": models}
        read = execute([str(INFRA / "at-commit"), "cat", "models/prompts.txt"], env=own, cwd=tmp_path)
        assert (read.returncode, read.stdout) == (code, "" if code else "a fox\n")
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("repository_name", "commit", "words", "line"),
    [
        (None, "main", ["true"], "error: HIAR_COMMIT = main: is no commit's hash; give all of it (git rev-parse HEAD)"),
        (None, "abc123", ["true"], "error: HIAR_COMMIT = abc123: is not the whole hash; give all 40 digits"),
        (None, "0" * 40, ["true"], f"error: HIAR_COMMIT = {'0' * 40}: is not in the repository; push it first"),
        ("", "0" * 40, ["true"], "error: HIAR_REPOSITORY: is not set; name the repository that has the commit"),
        ("/nowhere", "0" * 40, ["true"], "error: HIAR_REPOSITORY: cannot be cloned; see git's line above"),
        (None, "0" * 40, [], "error: at-commit: names no command; give one"),
        (None, "0" * 40, ["-C"], "error: at-commit -C: names no folder; give one"),
    ],
)
def test_a_mistake_is_a_line_and_leaves_nothing(
    tmp_path: Path,
    repository: tuple[Path, list[str]],
    repository_name: str | None,
    commit: str,
    words: list[str],
    line: str,
) -> None:
    result = at_commit(tmp_path, repository[0] if repository_name is None else repository_name, commit, *words)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith(line)
    assert not list(tmp_path.iterdir())
