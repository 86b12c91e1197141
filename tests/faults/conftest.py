"""The models of the end-to-end tests, for the tests of faults."""

from __future__ import annotations

from tests.e2e.conftest import models as models
