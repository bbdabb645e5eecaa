"""docs/models.md says what the code does today."""

from __future__ import annotations

from benchmarks import models_page


def test_the_page_is_up_to_date() -> None:
    expected, found = models_page.PAGE.read_text(encoding="utf-8"), models_page.page()
    assert found == expected, "run python benchmarks/models_page.py"


def test_sizes_are_those_of_the_parameters() -> None:
    lines = models_page.PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| Llama2-7B | FP16")]
    # 6.74 billion parameters of two bytes; 32 layers of 32 heads of 128 channels, keys and values.
    assert len(rows) == 1 and "| 12.55 GiB | 512.00 KiB | 4096 | 1 | 1 | served |" in rows[0]
