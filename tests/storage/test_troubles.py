"""What a store, its settings or the network refuse is one line without secrets."""

import os
import re
import sys

import pytest
from commands import ROOT
from storage.conftest import SECRET

pytestmark = pytest.mark.long

NOBODY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}
# Sets the clock by which requests are signed back by an hour.
LATE = """
import datetime
import botocore.compat
now = botocore.compat.get_current_datetime
botocore.compat.get_current_datetime = lambda *given, **named: now(*given, **named) - datetime.timedelta(hours=1)
"""
LATELY = {"PYTHONPATH": f"late{os.pathsep}{ROOT}"}
NOWHERE = "s3://no-such-bucket/hiar: there is no such bucket"
CLOCKS = "the clocks of this machine and of the store differ; set this machine's"
TROUBLES = {
    "wrong secret": (["ls"], {"AWS_SECRET_ACCESS_KEY": "hidden-wrong"}, "secret key does not match the access key"),
    "unknown key": (["verify"], {"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key"),
    "nobody": (["gc"], NOBODY, "there are no credentials; set AWS_ACCESS_KEY_ID"),
    "no bucket to list": (["ls", "--remote", "nowhere"], {}, NOWHERE),
    "no bucket to clear": (["gc", "--delete", "--remote", "nowhere"], {}, NOWHERE),
    "no bucket to verify": (["verify", "--remote", "nowhere"], {}, NOWHERE),
    "no bucket for a report": (["report", "shown", "--remote", "nowhere"], {}, NOWHERE),
    "another time": (["ls"], LATELY, CLOCKS),
    "another time for a report": (["report", "shown"], LATELY, CLOCKS),
    "away": (["ls", "--remote", "away"], {}, "check that the store and the network are up"),
    "another kind": (["ls", "--remote", "disk"], {}, "url = /tmp: is not on S3"),
    "misspelt": (["ls", "--remote", "stoer"], {}, "has no such remote; did you mean 'store'?"),
    "no report": (["report"], {}, "reports/index.html: there is no report; run `hiar run` first"),
}


@pytest.fixture
def lab_with_report(lab, monkeypatch):
    """The lab, with a report to share and a sitecustomize that sets the clock back."""
    report = lab.folder / "runs" / "shown" / "reports" / "index.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<html></html>")
    (lab.folder / "late").mkdir(exist_ok=True)
    (lab.folder / "late" / "sitecustomize.py").write_text(LATE)
    return lab


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_is_one_line_without_secrets(lab_with_report, trouble):
    arguments, settings, line = TROUBLES[trouble]
    output = lab_with_report.storage(*arguments, code=2, **settings)
    assert re.fullmatch(r"error: [^\n]+\n", output), output
    assert line in output
    assert SECRET not in output
    assert "hidden" not in output


@pytest.mark.parametrize("settings", [{"AWS_SECRET_ACCESS_KEY": "hidden-wrong"}, NOBODY])
def test_a_refused_push_is_one_line_without_secrets(lab, settings):
    output = lab.command(sys.executable, "-m", "flows.remote", "push", code=1, **settings)
    assert re.fullmatch(r"remote 'store': [^\n]+; going on without it, the next run pushes[^\n]+\n", output), output
    assert SECRET not in output
    assert "hidden" not in output
