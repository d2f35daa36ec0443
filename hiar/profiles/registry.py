"""The profiles by name, for `hiar score --profile` and `score.profiles`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hiar.errors import UserError, suggest
from hiar.judges.interface import Judge
from hiar.profiles import drift, lite
from hiar.profiles.profile import Profile, made_by
from hiar.vbench.dimensions import PROTOCOLS

WORLDLESS = {lite.NAME: lite.open_profile, drift.NAME: drift.open_profile}  # for any videos


def open_profiles(
    names: Sequence[str], judge: Judge | None, protocol: Mapping[str, Any] | None = None
) -> list[Profile]:
    """The profiles of these names; none: the world's judge. ``protocol``: what the judge measures by, for its record.

    Raises UserError for names that are unknown, given twice, or of a profile that cannot run here.
    """

    def judging() -> Profile:
        assert judge is not None
        return Profile(judge.name, judge, {"protocol": protocol} | made_by(judge.name, 1), captioned=True)

    known = ({judge.name: judging} if judge else {}) | WORLDLESS
    for place, name in enumerate(names):
        if name not in known:
            world = "" if judge else ", as no params.yaml names the world of the videos"
            raise UserError(f"--profile = {name}: unknown here{world}; {suggest(name, [*known, *PROTOCOLS])}")
        if name in names[:place]:
            raise UserError(f"--profile = {name}: is given twice; give it once")
    return [known[name]() for name in names] if names else [judging()]


def needs_world(names: Sequence[str]) -> bool:
    """Whether one of these profiles may be a world's judge, which is also the default."""
    return not names or not set(names) <= WORLDLESS.keys()
