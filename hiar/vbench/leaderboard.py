"""The results in a folder, and the archive of them that VBench's leaderboard takes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import atomic_file
from hiar.vbench.dimensions import DIMENSIONS

# What all dimensions of one total must share.
_SHARED = ("protocol", "prompts", "generated_with")


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """The results of `score_folder` in a folder, by dimension, in VBench's order.

    Raises UserError when there are none, or they differ in protocol, prompts or `generated_with`.
    """
    results = {}
    for name in DIMENSIONS:
        path = out / f"{name}.json"
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                results[name] = {field: found[field] for field in ("value", "videos", "of", "by_video", *_SHARED)}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: is not a dimension's result ({error}); score it again") from None
    if not results:
        raise UserError(f"{out}: holds no result of VBench; name the --out of `hiar vbench score`")
    first = next(iter(results))
    for name, result in results.items():
        for field in _SHARED:
            if result[field] != results[first][field]:
                raise UserError(
                    f"{out}: {field} = {result[field]} of {name}, {results[first][field]} of {first}: they cannot be "
                    "totalled; score both with the same settings, or in separate folders"
                )
    return results


def write_archive(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the zip of ``DIMENSION_eval_results.json`` that the leaderboard takes; always the same bytes.

    Raises UserError for videos of other prompts than the suite's, and when it cannot be written.
    """
    for name, result in results.items():
        if result["prompts"] != "suite":
            raise UserError(f"{name}: its videos are not of VBench's prompts; the leaderboard takes only those")
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, result in results.items():
            videos = [{"video_path": video, "video_results": value} for video, value in result["by_video"].items()]
            member = zipfile.ZipInfo(f"{name}_eval_results.json")  # with a fixed date
            archive.writestr(member, json.dumps({name: [result["value"], videos]}, indent=4), zipfile.ZIP_DEFLATED)
