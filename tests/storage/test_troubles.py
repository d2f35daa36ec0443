"""What a store, its settings or the network refuse is one line, which holds no secret."""

import re
import sys

import pytest
from storage.conftest import SECRET

pytestmark = pytest.mark.long

NOBODY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}
TROUBLES = {
    "wrong secret": (["ls"], {"AWS_SECRET_ACCESS_KEY": "hidden-wrong"}, "secret key is not the access key's"),
    "unknown key": (["verify"], {"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key"),
    "nobody": (["gc"], NOBODY, "there are no credentials; set AWS_ACCESS_KEY_ID"),
    "no bucket": (["verify", "--remote", "nowhere"], {}, "s3://no-such-bucket/hiar: there is no such bucket"),
    "away": (["ls", "--remote", "away"], {}, "is the store up, and the network?"),
    "another kind": (["ls", "--remote", "disk"], {}, "url = /tmp: is not on S3"),
    "misspelt": (["ls", "--remote", "stoer"], {}, "names no such; did you mean 'store'?"),
    "no report": (["report"], {}, "reports/index.html: there is no report; `hiar run` first"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_it_is_a_line(lab, trouble):
    arguments, settings, line = TROUBLES[trouble]
    said = lab.storage(*arguments, code=2, **settings)
    assert re.fullmatch(r"error: [^\n]+\n", said), said
    assert line in said
    assert SECRET not in said
    assert "hidden" not in said


@pytest.mark.parametrize("settings", [{"AWS_SECRET_ACCESS_KEY": "hidden-wrong"}, NOBODY])
def test_a_push_that_is_refused(lab, settings):
    said = lab.command(sys.executable, "-m", "flows.remote", "push", code=1, **settings)
    assert re.fullmatch(r"remote 'store': [^\n]+; going on without it, the next run pushes[^\n]+\n", said), said
    assert SECRET not in said
    assert "hidden" not in said
