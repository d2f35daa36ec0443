"""Reports in the store, with links that open in any browser until they expire."""

from __future__ import annotations

from pathlib import Path

from hiar.errors import UserError
from hiar.io.files import file_hash
from hiar.storage.runs import DEFAULT
from hiar.storage.store import Store, asking
from hiar.storage.upload import upload

KINDS = {"index.html": "text/html; charset=utf-8", "contact_sheet.png": "image/png", "run.json": "application/json"}


def share_report(store: Store, root: Path, experiment: str | None, days: float) -> list[tuple[str, str]]:
    """Upload an experiment's report (None: the default experiment's); return its files' names and links for ``days``.

    Raises UserError when there is no report, or the store refuses.
    """
    folder = (root if experiment is None else root / "runs" / experiment) / "reports"
    if not (folder / "index.html").is_file():
        raise UserError(
            f"{folder / 'index.html'}: there is no report; run `hiar run {experiment or ''}`".rstrip("` ") + "` first"
        )
    with asking(store):  # some stores make a bucket that is written to
        store.client.list_objects_v2(Bucket=store.bucket, Prefix=store.prefix, MaxKeys=1)
    links = []
    for name, kind in KINDS.items():
        path = folder / name
        if not path.is_file():
            continue
        key = f"reports/{experiment or DEFAULT}/{file_hash(path)}/{name}"
        upload(store, path, key, kind)  # False: the same bytes are there
        with asking(store):
            link = store.client.generate_presigned_url("get_object", store.where(key), ExpiresIn=round(days * 86400))
        links.append((name, link))
    return links
