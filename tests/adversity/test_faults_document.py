"""docs/faults.md tells what the tests met, all of it and nothing else."""

from __future__ import annotations

import pytest


def test_the_document_is_what_the_tests_recorded(faults_document: tuple[str, str] | None) -> None:
    if faults_document is None:
        pytest.skip("not every test that writes a row was run (and passed)")
    is_now, should_be = faults_document
    assert is_now == should_be
