"""The device of docs/writing-a-device.md, run as the page shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

GENERATE = """
import json, sys
from sophserve import LLM, SamplingParams

if __name__ == "__main__":
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with LLM(sys.argv[1], device=sys.argv[2]) as llm:
        results = llm.generate([[5, 6, 7], [9] * 40], params, use_tqdm=False)
    print(json.dumps([list(result.outputs[0].token_ids) for result in results]))
"""


@pytest.mark.parametrize("kind", ["qwen2", "deepseek_v3", pytest.param("qwen2_moe", marks=pytest.mark.slow)])
def test_its_answers_are_those_of_the_cmodel(kind, make_checkpoint, write_page, tmp_path):
    write_page("docs/writing-a-device.md", tmp_path)
    installed = tmp_path / "plain-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[sophserve]\nplain = plain_plugin\n")
    script = tmp_path / "generate.py"
    script.write_text(GENERATE)
    paths = os.pathsep.join([str(tmp_path), *sys.path])

    def answers(device):
        command = [sys.executable, str(script), str(make_checkpoint(kind)), device]
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert answers("plain") == answers("cmodel")
