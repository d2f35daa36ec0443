"""What a stage needs of others that were run on another machine: found by their records, fetched from the remote.

A record (DVC's run cache) says by which hashes of inputs a stage has made which outputs. From the code and parameters
here follow the records of the first stages, from theirs those of the next, so that of all outputs only those are
fetched that the stage itself reads.

This takes functions of DVC's that are not public. What is public (`dvc status`, `dvc data status`, `dvc repro --dry`,
`dvc.api`, and ``restore`` of the records itself) looks a record up by the inputs that lie on the disk, or that dvc.lock
names; here these are of other machines, and nobody has them yet. DVC's version is pinned, and the tests run this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fetch_needed(repo: Any, stage: Any) -> None:
    """Bring what ``stage`` reads of other stages into the workspace, as their present inputs make it.

    What is there already, or was never recorded, stays as it is. Works on the records that are in the local cache.
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
                    break  # so nobody has run this stage
                dependency.save()
            else:
                dependency.hash_info, dependency.meta = output.hash_info, output.meta
        else:
            if one != stage and (record := _record(repo.stage_cache, one)) is not None:
                outputs = repo.stage_cache._create_stage(record, wdir=one.wdir).outs
                made |= {output.fs_path: output for output in outputs}


def recorded(repo: Any) -> set[str]:
    """The stages that were run before on their present inputs, and whose outputs are in the local cache.

    Of a stage that reads a folder of others' outputs it cannot be told before these are there.
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
            # What another stage has to compute, or to bring here, is not what lies here now.
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
    """The newest record of a stage whose inputs have hashes; DVC's own way to it reads them from the disk."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    found = sorted(Path(records.cache_dir, key[:2], key).glob("*"), key=lambda path: path.stat().st_mtime)
    return records._load_cache(key, found[-1].name) if found else None


def _bring(repo: Any, output: Any) -> None:
    """Make a recorded output what is in the workspace."""
    if output.exists and not output.changed_checksum():
        return
    for objects in output.get_used_objs().values():
        repo.cloud.pull(objects)
    output.checkout(force=True)
