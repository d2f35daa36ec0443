"""The inputs of a stage that were made on another machine: found by their stages' records, fetched from the remote.

A record (DVC's run cache) maps the hashes of a stage's inputs to its outputs. The code and parameters here determine
the records of the first stages, their outputs those of the next, and so on, so that only the outputs which the stage
itself reads have to be fetched.

This uses private functions of DVC. The public ones (`dvc status`, `dvc data status`, `dvc repro --dry`, `dvc.api`, and
``restore`` of the run cache) look a record up by inputs that are on the disk or in dvc.lock; here these were made on
other machines and are not on the disk yet. DVC's version is pinned, and the tests run this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fetch_needed(repo: Any, stage: Any) -> None:
    """Fetch the outputs of other stages that ``stage`` reads into the workspace, as made from their present inputs.

    Outputs that are already there, or were never recorded, stay as they are. Uses the records in the local cache.
    """
    import networkx as nx

    made: dict[str, Any] = {}  # outputs as their records have them, by path
    for one in nx.dfs_postorder_nodes(repo.index.graph, stage):  # a stage comes after those it needs
        for dependency in one.deps:
            output = made.get(dependency.fs_path)
            if one == stage and output is not None:
                _bring(repo, output)
            if output is None:  # a file, or a folder that holds outputs
                for path, inside in made.items():
                    if Path(path).is_relative_to(dependency.fs_path):
                        _bring(repo, inside)
                if not dependency.exists:
                    break  # an input is missing, so nobody has run this stage
                dependency.save()
            else:
                dependency.hash_info, dependency.meta = output.hash_info, output.meta
        else:
            if one != stage and (record := _record(repo.stage_cache, one)) is not None:
                outputs = repo.stage_cache._create_stage(record, wdir=one.wdir).outs
                made |= {output.fs_path: output for output in outputs}


def recorded(repo: Any) -> set[str]:
    """The stages that have run on their present inputs before, and whose outputs are in the local cache.

    For a stage that reads a folder of others' outputs this is unknown until these are in the workspace.
    """
    import networkx as nx

    made: dict[str, Any] = {}
    found = set()
    others = {output.fs_path for one in repo.index.graph for output in one.outs}
    for one in nx.dfs_postorder_nodes(repo.index.graph):
        for dependency in one.deps:
            output = made.get(dependency.fs_path)
            if output is not None:
                dependency.hash_info, dependency.meta = output.hash_info, output.meta
                continue
            inside = [path for path in others if Path(path).is_relative_to(dependency.fs_path)]
            # If another stage has yet to make or restore outputs in this folder, its present content does not count.
            if not dependency.exists or any(path not in made or made[path].changed_checksum() for path in inside):
                break
            dependency.save()
        else:
            if (record := _record(repo.stage_cache, one)) is None:
                continue
            outputs = repo.stage_cache._create_stage(record, wdir=one.wdir).outs
            if all(output.cache.exists(output.hash_info.value) for output in outputs):
                made |= {output.fs_path: output for output in outputs}
                found.add(one.addressing)
    return found


def _record(records: Any, stage: Any) -> dict[str, Any] | None:
    """The newest record of a stage, by the hashes set on its inputs; DVC's own lookup reads them from the disk."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    found = sorted(Path(records.cache_dir, key[:2], key).glob("*"), key=lambda path: path.stat().st_mtime)
    return records._load_cache(key, found[-1].name) if found else None


def _bring(repo: Any, output: Any) -> None:
    """Fetch a recorded output and check it out into the workspace."""
    if output.exists and not output.changed_checksum():
        return
    for objects in output.get_used_objs().values():
        repo.cloud.pull(objects)
    output.checkout(force=True)
