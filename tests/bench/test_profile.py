"""Profiles: what is recorded of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

import sophserve
from sophserve import LLM, AsyncLLM, SamplingParams
from sophserve.bench.profile_records import RankProfile, read_profile
from sophserve.engine.profile_session import Profiling
from sophserve.errors import ConfigError, RequestError, SophserveError
from sophserve.link.messages import Profiled, StartProfile, StopProfile

LAYERS = 3
# A layer has two norms, four products and attention; around them are gathering embeddings, cosines and sines, the last
# norm, the head and sampling.
STEP = Counter(
    {"rms_norm": 2 * LAYERS + 1, "linear": 4 * LAYERS + 1, "paged_attention": LAYERS, "embedding": 3, "sample": 1}
)
ANSWER = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    # An MLP of whole panels has its gate in the product.
    return make_checkpoint("qwen2", intermediate_size=128)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(str(checkpoint), enable_prefix_caching=False, speculation="off") as llm:
        yield llm


def take_profile(llm: LLM, directory: Path, **options: int) -> Path:
    """The folder of a profile of two prompts of 20 tokens, and 8 tokens each."""
    with sophserve.profile(llm, directory=directory, **options) as (folder,):
        llm.generate([[5] * 20, [9] * 20], ANSWER, use_tqdm=False)
    llm.generate("not in the profile", ANSWER, use_tqdm=False)
    return folder


def check_records(profile: RankProfile) -> None:
    """Every command lies within its step, and none overlaps another."""
    for step in profile.steps:
        assert step.commands
        ends = [
            step.start,
            *(at for command in step.commands for at in (command.start, command.start + command.duration)),
            step.start + step.duration,
        ]
        assert all(before <= after for before, after in pairwise(ends))
    assert all(before.start + before.duration <= after.start for before, after in pairwise(profile.steps))


@pytest.mark.parametrize("mode", [1, 2])
def test_every_command_of_every_step_is_recorded(llm: LLM, tmp_path: Path, mode: int) -> None:
    folder = take_profile(llm, tmp_path, mode=mode)
    assert folder == tmp_path / "cdm_profile_data_dev0-0"
    (profile,) = read_profile(folder)
    check_records(profile)
    assert not profile.torn and (profile.header.rank, profile.header.mode) == (0, mode)
    assert profile.header.bytes_per_second and profile.header.operations_per_second
    assert sum(step.tokens for step in profile.steps) == 2 * 20 + 2 * 7
    for step in profile.steps:
        commands = step.commands or []
        assert Counter(command.operator.split()[0] for command in commands) == STEP
        assert all(command.bytes > 0 and bool(command.detail) == (mode == 2) for command in commands)
    used, total = profile.steps[0].memory or (0, 0)
    assert 0 < used < total


def test_mode_0_counts(llm: LLM, tmp_path: Path) -> None:
    (profile,) = read_profile(take_profile(llm, tmp_path, mode=0))
    assert all(step.commands is None for step in profile.steps)
    counts: Counter[str] = Counter()
    for operator, sums in profile.sums().items():
        counts[operator.split()[0]] += sums.count
        assert sums.duration > 0 and sums.bytes > 0
    assert counts == {operator: count * len(profile.steps) for operator, count in STEP.items()}


def test_no_more_than_max_record_num(llm: LLM, tmp_path: Path) -> None:
    (profile,) = read_profile(take_profile(llm, tmp_path, max_record_num=3 * STEP.total() + 1))
    recorded = [len(step.commands or []) for step in profile.steps]
    assert recorded[:3] == [STEP.total()] * 3 and recorded[3:] == [0] * (len(profile.steps) - 3)
    assert len(profile.steps) >= 8


def test_what_cannot_be_profiled_is_refused(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no profile is being recorded"):
        llm.stop_profile()
    with pytest.raises(ConfigError, match=r"`int` <= 2 - at `\$\.mode`"):
        llm.start_profile(mode=3)
    with pytest.raises(RequestError, match=r"cannot write a profile to .*nowhere.*No such file"):
        llm.start_profile(directory=tmp_path / "nowhere")
    assert llm.start_profile(directory=tmp_path) == [tmp_path / "cdm_profile_data_dev0-0"]
    with pytest.raises(RequestError, match="already"):
        llm.start_profile(directory=tmp_path)
    llm.stop_profile()
    assert llm.start_profile(directory=str(tmp_path)) == [tmp_path / "cdm_profile_data_dev0-1"]
    llm.stop_profile()
    closed = LLM.__new__(LLM)
    closed._closed = True
    with pytest.raises(SophserveError, match="closed"):
        closed.start_profile()


async def test_an_engine_that_runs_in_the_same_loop(checkpoint: Path, tmp_path: Path) -> None:
    async with AsyncLLM(str(checkpoint)) as llm:
        (folder,) = await llm.start_profile(directory=tmp_path)
        async for _ in llm.generate([7] * 20, ANSWER):
            pass
        # It ends with the engine.
    (profile,) = read_profile(folder)
    assert sum(step.tokens for step in profile.steps) >= 20 + 7


def work(profile: RankProfile) -> Counter[str]:
    return Counter(
        f"{command.operator} {command.bytes} {command.operations}"
        for step in profile.steps
        for command in step.commands or []
    )


@pytest.mark.slow  # as of experts and latent attention below
def test_a_replayed_step_does_the_work_of_its_operators(llm: LLM, checkpoint: Path, tmp_path: Path) -> None:
    with LLM(str(checkpoint), enable_prefix_caching=False, speculation="off", enforce_eager=True) as eager:
        profiles = [read_profile(take_profile(which, tmp_path))[0] for which in (llm, eager)]
    check_records(profiles[1])
    assert work(profiles[0]) == work(profiles[1])


@pytest.mark.parametrize("kind", [pytest.param("qwen2_moe", marks=pytest.mark.slow), "deepseek_v3"])
def test_experts_and_latent_attention_have_names_and_what_is_active(
    kind: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Of experts those that have rows count, in recorded steps as in others."""
    directory = str(make_checkpoint(kind))
    profiles = []
    for eager in (False, True):
        with LLM(directory, enable_prefix_caching=False, speculation="off", enforce_eager=eager) as llm:
            profiles += read_profile(take_profile(llm, tmp_path))
    assert work(profiles[0]) == work(profiles[1])
    commands = [command for step in profiles[0].steps for command in step.commands or []]
    names = {command.operator.split()[0] for command in commands}
    assert {"route_experts", "fused_experts"} <= names
    assert ("paged_latent_attention" if kind == "deepseek_v3" else "paged_attention") in names
    expert = 3 * 64 * 32 * 4
    for step in profiles[0].steps:
        found = [each for each in step.commands or [] if each.operator == "fused_experts 8x32x64"]
        assert len(found) == 2
        for each in found:
            # Each token goes through 3 of 8; all but the weights is less than that of one.
            active = each.bytes // expert
            assert 3 <= active <= min(8, 3 * step.tokens) and each.operations == 2 * 3 * step.tokens * expert // 4


def test_two_ranks(checkpoint: Path, tmp_path: Path) -> None:
    with LLM(str(checkpoint), tensor_parallel_size=2) as llm:
        with sophserve.profile(llm, directory=tmp_path) as folders:
            llm.generate([[7] * 20], ANSWER, use_tqdm=False)
        assert [folder.name for folder in folders] == ["cdm_profile_data_dev0-0", "cdm_profile_data_dev1-0"]
    first, second = profiles = read_profile(tmp_path)
    for profile in profiles:
        check_records(profile)
    assert (first.header.rank, second.header.rank) == (0, 1)
    assert "sample" in first.sums() and "sample" not in second.sums()
    assert first.sums()["all_reduce"].count == second.sums()["all_reduce"].count > 0


def test_a_server_is_profiled_on_demand(checkpoint: Path, tmp_path: Path, start_server: Callable[..., Any]) -> None:
    server = start_server(checkpoint, "--api-key", "secret", cwd=tmp_path)
    body = {"model": "tiny", "prompt": [5] * 20, "max_tokens": 8, "ignore_eos": True}

    def post(path: str, key: str = "secret", **body: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        data = json.dumps(body).encode() if body else b""
        try:
            with urlopen(Request(server.url + path, data, headers)) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    assert post("/start_profile", key="wrong")[0] == 401
    for path, given, message in (
        ("/stop_profile", {}, "no profile is being recorded"),
        ("/start_profile", {"mode": 7}, "mode: must be int <= 2"),
        ("/start_profile", {"max_record_num": 0}, "max_record_num: must be int >= 1"),
    ):
        status, answer = post(path, **given)
        assert status == 400 and message in answer["error"]["message"]
    folder = tmp_path / "cdm_profile_data_dev0-0"
    assert post("/start_profile") == (200, {"folders": [str(folder)]})
    assert post("/start_profile", mode=2)[0] == 400
    assert post("/v1/completions", **body)[0] == 200
    assert post("/stop_profile") == (200, {"folders": [str(folder)], "problems": []})
    assert post("/v1/completions", **body)[0] == 200
    (profile,) = read_profile(folder)
    check_records(profile)
    # The next plan waits at the worker while a step runs, so one step more may have been under way.
    assert 8 <= len(profile.steps) <= 9


def test_a_profile_goes_on_with_the_worker_that_replaces_a_lost_one(
    checkpoint: Path, tmp_path: Path, start_server: Callable[..., Any]
) -> None:
    server = start_server(checkpoint, cwd=tmp_path, environment={"ENABLE_PROFILE": "1"})
    client = server.client()
    client.completions.create(model="tiny", prompt="One", max_tokens=4)
    (worker,) = server.workers
    worker.kill()
    client.completions.create(model="tiny", prompt="Two", max_tokens=4)
    assert server.stop() == 0
    found = [read_profile(tmp_path / f"cdm_profile_data_dev0-{index}")[0] for index in (0, 1)]
    for profile in found:
        check_records(profile)
    assert read_profile(tmp_path)[0].folder == found[1].folder


async def test_enable_profile_needs_a_place_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Workers:
        async def ask(self, message: object) -> list[Profiled]:
            asked.append(message)
            return [Profiled(error="cannot write a profile to /data: Permission denied")]

    monkeypatch.setenv("ENABLE_PROFILE", "1")
    profiling = Profiling()
    with pytest.raises(ConfigError, match="Permission denied, as ENABLE_PROFILE=1 asks"):
        await profiling.resume(Workers())  # type: ignore[arg-type]
    assert [type(message) for message in asked] == [StartProfile, StopProfile]
    monkeypatch.setenv("ENABLE_PROFILE", "0")
    await Profiling().resume(Workers())  # type: ignore[arg-type]
    assert len(asked) == 2


@pytest.mark.slow
def test_commands_take_up_their_steps(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """On a model of half a gigabyte all but a twentieth of a step is within commands, prefill or decode."""
    shape = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 12}
    directory = make_checkpoint("qwen2", dtype="bfloat16", **shape)
    with LLM(str(directory), max_model_len=256, enable_prefix_caching=False) as llm:
        prompts = [[token] * 100 for token in range(5, 9)]
        llm.generate(prompts, ANSWER, use_tqdm=False)
        with sophserve.profile(llm, directory=tmp_path) as (folder,):
            llm.generate(prompts, ANSWER, use_tqdm=False)
    (profile,) = read_profile(folder)
    check_records(profile)
    shares: dict[bool, list[float]] = {True: [], False: []}
    for step in profile.steps:
        busy = sum(command.duration for command in step.commands or [])
        shares[step.tokens == step.sequences].append(busy / step.duration)
    assert min(median(shares[True]), median(shares[False])) >= 0.95, shares
