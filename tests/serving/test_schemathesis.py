"""Requests made from /openapi.json: no answer is a 5xx, or other than described there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_no_answer_breaks_the_schema(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Any], examples: int
) -> None:
    load_all_checks()
    server = start_server(make_checkpoint("qwen2"))
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for found in schema.exclude(path_regex="_profile$").get_all_operations():  # which write files
        operation = found.ok()

        @seed(1)
        @settings(
            max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            if isinstance(case.body, dict):
                case.body.pop("model", None)  # any name but one is a 404
            case.call_and_validate(checks=CHECKS, timeout=60)

        ask()
    assert tried > 20 * examples / 2
    assert server.process.poll() is None and "Traceback" not in "".join(server.log)
