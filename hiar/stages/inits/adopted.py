"""Another project's transformer, of the base's size, in any format that `hiar import` reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from hiar.config import Adopted, CausalTeacher
from hiar.io.fingerprints import require_content
from hiar.stages.common import Stage
from hiar.worlds.interface import TRANSFORMER, open_world


def bring_in(work: Stage, spec: Adopted | CausalTeacher, field: str, folder: Path) -> Path:
    """Write the transformer that ``spec`` names into ``folder``, replacing what an interrupted start left there.

    field: the parameter that holds ``spec``. Returns the transformer's folder. Raises UserError if the source is no
    transformer or incomplete, or does not have the hash in the parameters.
    """
    assert spec.source is not None
    require_content(spec.source, spec.source_sha256, f"{field}.source_sha256")
    shutil.rmtree(folder / TRANSFORMER, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    open_world(work.params.world).bring_in(spec.source, spec.weights, folder / TRANSFORMER)
    return folder / TRANSFORMER
