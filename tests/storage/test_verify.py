"""`hiar storage verify` finds every damage and nothing else."""

import random
import re

import pytest

from hiar.storage.runs import LOCK, OBJECT, RECORD

pytestmark = pytest.mark.long

KINDS = ("missing", "truncated", "altered", "surplus", "unfinished")


def test_verify_accepts_an_undamaged_store(lab, client):
    keys = lab.stored(client)
    assert sum(bool(OBJECT.fullmatch(key)) for key in keys) == 33  # 30 files, their manifest and .dir, the summary
    assert sum(bool(RECORD.fullmatch(key)) for key in keys) == 1
    assert sum(bool(LOCK.fullmatch(key)) for key in keys) == 1
    assert f"s3://{lab.bucket}/hiar: 35 objects, 0 damaged" in lab.storage("verify")


@pytest.mark.parametrize("seed", range(2))
def test_every_one_of_25_damages_is_found(lab, client, seed):
    draw = random.Random(seed)
    keys = [key for key in lab.stored(client) if OBJECT.fullmatch(key)]
    victims = draw.sample(keys, 15)
    before = {key: client.get_object(Bucket=lab.bucket, Key=f"hiar/{key}")["Body"].read() for key in victims}
    expected, uploads = {}, []
    for number in range(25):
        kind = KINDS[number % 5]
        key = f"hiar/{victims[number // 5 * 3 + number % 5]}" if number % 5 < 3 else None
        where = {"Bucket": lab.bucket, "Key": key}
        data = before[key.removeprefix("hiar/")] if key else b""
        if kind == "missing":
            client.delete_object(**where)
        elif kind == "truncated":
            client.put_object(**where, Body=data[: draw.randrange(len(data))])
        elif kind == "altered":
            place = draw.randrange(len(data))
            client.put_object(**where, Body=data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        elif kind == "surplus":
            name = f"{draw.getrandbits(128):032x}"
            key = draw.choice([f"hiar/files/md5/{name[:2]}/{name[2:]}", f"hiar/notes/{name}.txt"])
            client.put_object(Bucket=lab.bucket, Key=key, Body=b"of nobody")
        else:
            name = f"{draw.getrandbits(128):032x}"
            key = f"hiar/files/md5/{name[:2]}/{name[2:]}"
            uploads.append((key, client.create_multipart_upload(Bucket=lab.bucket, Key=key)["UploadId"]))
        expected[key.removeprefix("hiar/")] = kind
    try:
        output = lab.storage("verify", code=1)
        found = {key: kind for kind, key in re.findall(rf"^({'|'.join(KINDS)}) +(\S+): ", output, re.MULTILINE)}
        assert found == expected
    finally:
        for key, data in before.items():
            client.put_object(Bucket=lab.bucket, Key=f"hiar/{key}", Body=data)
        for key, kind in expected.items():
            if kind == "surplus":
                client.delete_object(Bucket=lab.bucket, Key=f"hiar/{key}")
        for key, number in uploads:
            client.abort_multipart_upload(Bucket=lab.bucket, Key=key, UploadId=number)
    assert "0 damaged" in lab.storage("verify")
