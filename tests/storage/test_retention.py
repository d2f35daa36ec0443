"""`hiar storage ls`, `gc` and `report`."""

import re
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(lab):
    """The lab with four more runs, of which the first is the best."""
    for level in (0.5, 2, 3, 4):
        lab.run(level)
    return lab


def test_gc_deletes_only_runs_that_nothing_keeps(runs, client):
    """The committed run is level 1; level 0.5 is the best, 4 the last and in the working tree."""
    before = runs.stored(client)
    rows = runs.storage("ls", "--last", "1", "--days", "0").splitlines()
    assert [re.split("  +", row)[-1] for row in rows if row.startswith("default")].count("- (gc deletes it)") == 2
    assert re.search(r" 0 objects, .* would be deleted", runs.storage("gc", "--last", "1"))  # everything is recent
    output = runs.storage("gc", "--last", "1", "--days", "0")
    assert runs.stored(client) == before
    # Levels 2 and 3 have 30 files, manifest, .dir, summary, record and lock each; a commit references level 1.
    assert f" {2 * 35} objects" in output
    assert f" {2 * 35} objects" in runs.storage("gc", "--last", "1", "--days", "0", "--delete")
    assert len(runs.stored(client)) == len(before) - 2 * 35
    assert "0 damaged" in runs.storage("verify")
    assert " 0 objects" in runs.storage("gc", "--last", "1", "--days", "0")


def test_a_report_has_a_link_that_opens(runs, client):
    reports = runs.folder / "reports"
    reports.mkdir()
    (reports / "index.html").write_text("<p>of a run")
    links = [runs.storage("report", "--days", "0.01") for _ in range(2)]  # the second finds the first one's upload
    link = re.search(r"index\.html: (\S+)", links[1])[1]
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"<p>of a run"
        assert answer.headers["Content-Type"].startswith("text/html")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(link.split("?")[0])
    assert len([key for key in runs.stored(client) if key.startswith("reports/")]) == 1
    assert "0 damaged" in runs.storage("verify")
