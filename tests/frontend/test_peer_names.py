"""Which names of a client's certificate count as its own."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.frontend.peer_names import names_of

CN = "commonName"


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (None, ()),
        ({}, ()),
        ({"subject": ((("organizationName", "o"),), ((CN, "a"),))}, ("cn:a",)),
        ({"subject": (((CN, "a"),), ((CN, "b"),))}, ()),
        ({"subject": (((CN, "a"), (CN, "b")),)}, ()),
        ({"subject": (((CN, "a"),), ((CN, "a"),))}, ()),
        (
            {"subject": (((CN, "a"),), ((CN, "b"),)), "subjectAltName": (("DNS", "x"), ("DNS", "y"))},
            ("dns:x", "dns:y"),
        ),
        (
            {"subject": (((CN, "a"),),), "subjectAltName": (("URI", "u:v"), ("email", "e@f"), ("IP Address", "::1"))},
            ("uri:u:v", "email:e@f", "ip:::1", "cn:a"),
        ),
        ({"subjectAltName": (("DirName", "a"), ("othername", "b"))}, ()),
    ],
)
def test_names(certificate: Any, names: tuple[str, ...]) -> None:
    assert names_of(certificate) == names
