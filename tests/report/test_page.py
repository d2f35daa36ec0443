"""The page's template: every name in it is defined."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from jinja2 import UndefinedError

from hiar.report import page


def test_an_undefined_name_in_the_template_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every report would silently lack a misspelt part."""
    known = cast(Any, SimpleNamespace(title="<HiAR>", __dataclass_fields__={"title": None}))
    for template, shown in (("{{ title }}", "&lt;HiAR&gt;"), ("{{ titel }}", None)):
        monkeypatch.setattr(page, "resource", {"page.html.jinja": template}.get)
        if shown is None:
            with pytest.raises(UndefinedError, match="titel"):
                page.render(known)
        else:
            assert page.render(known) == shown
