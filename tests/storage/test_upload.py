"""Interrupted uploads are resumed; objects written by others are kept."""

import pytest

from hiar.storage.store import Store, unfinished_uploads
from hiar.storage.upload import upload

pytestmark = pytest.mark.long

PART = 5 << 20


@pytest.fixture
def store(bucket, client):
    return Store(client, bucket, "uploads/")


def test_an_interrupted_upload_resumes_with_the_missing_part(store, tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (12 << 12))  # 12 MB: three parts
    sent = []
    real = store.client.upload_part

    def upload_part(**options):
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(options["PartNumber"])
        return real(**options)

    monkeypatch.setattr(store.client, "upload_part", upload_part)
    with pytest.raises(KeyboardInterrupt):
        upload(store, path, "large", "application/x-test", part=PART)
    assert [one["Key"] for one in unfinished_uploads(store)] == ["uploads/large"]
    assert "Contents" not in store.client.list_objects_v2(Bucket=store.bucket, Prefix="uploads/large")
    sent.clear()
    assert upload(store, path, "large", "application/x-test", part=PART)
    assert sent == [3]
    assert store.client.get_object(**store.where("large"))["Body"].read() == path.read_bytes()
    assert unfinished_uploads(store) == []


@pytest.mark.parametrize("size", [10, PART + 10])
def test_an_existing_object_is_not_overwritten(store, tmp_path, size):
    path = tmp_path / "mine"
    path.write_bytes(b"m" * size)
    key = f"taken-{size}"
    store.client.put_object(**store.where(key), Body=b"theirs")
    assert not upload(store, path, key, "application/x-test", part=PART)
    assert store.client.get_object(**store.where(key))["Body"].read() == b"theirs"
