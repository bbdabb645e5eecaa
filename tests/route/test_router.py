"""What the router does between a client and its replicas."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from yarl import URL

from sophserve.route import replicas as replicas_module
from sophserve.route.passing import _whole_events
from tests.route.conftest import EVENTS, Cluster, StartCluster

LONG = "A long beginning. " * 100


def chat(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_answers_pass_as_they_are(start_cluster: StartCluster) -> None:
    cluster = await start_cluster()
    headers = {"Authorization": "Bearer key", "X-Odd": "1", "Connection": "X-Hop", "X-Hop": "2", "TE": "trailers"}
    async with cluster.http.post(
        URL("/v1/chat/completions?a=%2F&b", encoded=True), json=chat(), headers=headers
    ) as answer:
        assert answer.status == 200 and answer.headers["X-Own"] == "yes" and answer.headers["X-Request-Id"] == "req-7"
        who = (await answer.json())["who"]
    [replica] = [each for each in cluster.replicas if each.url == who]
    assert replica.paths == ["/v1/chat/completions?a=%2F&b"] and replica.bodies == [chat()]
    [seen] = replica.headers
    assert seen["Authorization"] == "Bearer key" and seen["X-Odd"] == "1"
    assert not {"X-Hop", "TE"} & set(seen) and seen["X-Forwarded-For"] == "127.0.0.1"
    assert seen["X-Forwarded-Host"] == f"127.0.0.1:{cluster.port}"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_every_endpoint_passes(start_cluster: StartCluster, method: str) -> None:
    cluster = await start_cluster(1)
    async with cluster.http.request(method, "/v1/whatever") as answer:
        assert answer.status == 200
        assert bool(await answer.read()) == (method != "HEAD")
    assert cluster.replicas[0].paths == ["/v1/whatever"]


async def test_streams_pass_byte_for_byte_and_unbuffered(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        async with asyncio.timeout(10):
            assert await answer.content.readany() == EVENTS[0]
        replica.gate.set()
        assert await answer.read() == b"".join(EVENTS[1:])


async def test_a_client_that_goes_ends_its_request(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        await answer.content.readany()
        answer.close()
    await until(lambda: replica.ended == ["cancelled"])
    await until(lambda: not any(each.running for each in cluster.router.replicas.all))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_replica_that_dies_ends_its_streams_with_an_error(start_cluster: StartCluster, path: str) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.events = [b'event: a\ndata: {"n": 0}\n\nevent: b\ndata: {"ha', b"never"]
    replica.gate.clear()
    async with cluster.http.post(path, json={"input": "Hi", **chat(stream=True)}) as answer:
        first = await answer.content.readany()
        await cluster.stop(0)
        rest = await answer.read()
    assert first == b'event: a\ndata: {"n": 0}\n\n', "half an event waits for its end"
    event = dict(line.split(": ", 1) for line in rest.decode().strip().splitlines())
    body = json.loads(event["data"])
    assert rest.endswith(b"\n\n") and "replica" in body["error"]["message"]
    if path == "/v1/messages":
        assert event["event"] == body["type"] == "error" and body["error"]["type"] == "api_error"
    elif path == "/v1/responses":
        assert body["type"] == "error" and body["sequence_number"] == 1
    else:
        assert body["error"]["code"] == "replica_lost"


async def test_official_clients_see_the_loss(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.events = [b'data: {"id": "1", "choices": []}\n\n', b""]
    replica.gate.clear()
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{cluster.port}/v1", api_key="x", max_retries=0)
    stream = await client.chat.completions.create(model="m", messages=[], stream=True)
    with pytest.raises(openai.APIError, match="replica"):
        async for _ in stream:
            await cluster.stop(0)
    await client.close()
    async with anthropic.AsyncAnthropic(
        base_url=f"http://127.0.0.1:{cluster.port}", api_key="x", max_retries=0
    ) as other:
        with pytest.raises(anthropic.InternalServerError, match="replica"):
            await other.messages.create(model="m", max_tokens=1, messages=[])


async def test_another_replica_is_asked_where_none_began(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(3)
    await cluster.stop(0)
    cluster.replicas[1].status = 503
    for _ in range(6):
        assert (await cluster.post(**chat()))["who"] == cluster.replicas[2].url
    assert not cluster.router.replicas.all[0].up, "it is not asked again until it was looked at"
    cluster.replicas[2].status = 503
    async with cluster.http.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 503 and (await answer.json()) == {"error": {"message": "no"}}


async def test_a_request_that_began_is_not_sent_again(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    for replica in cluster.replicas:
        replica.status = 500
    async with cluster.http.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 500
    assert sum(cluster.asked()) == 1


async def test_a_replica_that_dies_before_its_answer_is_an_error(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    for replica in cluster.replicas:
        replica.drops = True
    async with cluster.http.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 502 and (await answer.json())["error"]["code"] == "replica_lost"
    assert sum(cluster.asked()) == 1, "it may have begun"


async def test_health(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    for health, status in (((200, 503), 200), ((503, 503), 503), ((404, 503), 503)):
        for replica, code in zip(cluster.replicas, health, strict=True):
            replica.health = code
        await cluster.router.replicas.look()
        async with cluster.http.get("/health") as answer:
            assert answer.status == (200 if health[0] == 404 else status)
        async with cluster.http.get("/live") as answer:
            assert answer.status == 200
    assert cluster.router.replicas.all[1].why_not == "/health answers 503, loading"
    cluster.replicas[0].health = 503
    await cluster.router.replicas.look()
    async with cluster.http.post("/v1/messages", json=chat()) as answer:
        assert answer.status == 503 and answer.headers["Retry-After"] == "1"
        assert (await answer.json())["error"]["type"] == "overloaded_error"
    assert cluster.asked() == [0, 0]


async def test_a_replica_that_falls_silent_gives_up_its_requests(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas_module, "LOST_AFTER", 0.0)
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        await answer.content.readany()
        [known] = cluster.router.replicas.all
        known.note("it does not answer in time", silent=True)
        await asyncio.sleep(0.01)
        known.note("it does not answer in time", silent=True)
        assert b"replica_lost" in await answer.read()
    replica.gate.set()


async def test_a_replica_taken_out_finishes_its_streams(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replicas = cluster.router.replicas
    addresses = [[replica.url], []]

    async def found(host: str, port: int, type: int) -> Any:
        return [(0, 0, 0, "", ("127.0.0.1", port))] * len(addresses[0])

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    name = replica.url.replace("127.0.0.1", "replicas.test")
    replicas._given, replicas._find = [], lambda: replicas_module.addresses_of(name)
    await replicas.look()
    assert [each.name for each in replicas.all] == [replica.url]
    replica.gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        await answer.content.readany()
        del addresses[0]
        await replicas.look()
        assert replicas.ready == [] and len(replicas.known) == 1
        replica.gate.set()
        assert await answer.read() == b"".join(EVENTS[1:])
    await until(lambda: replicas.known == [])


async def test_stopping_finishes_streams(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.replicas
    replica.gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        await answer.content.readany()
        drain = asyncio.create_task(cluster.router.drain(10))
        await asyncio.sleep(0)
        async with cluster.http.post("/v1/chat/completions", json=chat()) as refused:
            assert refused.status == 503 and (await refused.json())["error"]["code"] == "stopping"
        replica.gate.set()
        assert await answer.read() == b"".join(EVENTS[1:])
        await drain


async def test_stopping_ends_what_takes_too_long(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    cluster.replicas[0].gate.clear()
    async with cluster.http.post("/v1/chat/completions", json=chat(stream=True)) as answer:
        await answer.content.readany()
        await cluster.router.drain(0.01)
        assert b'"code":"stopping"' in await answer.read()
    await until(lambda: cluster.replicas[0].ended == ["cancelled"])


async def test_keys_are_asked_for(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1, api_key=["secret"])
    async with cluster.http.post("/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 401
    async with cluster.http.get("/health") as answer:
        assert answer.status == 200
    assert cluster.asked() == [0]
    async with cluster.http.post("/v1/messages", json=chat(), headers={"x-api-key": "secret"}) as answer:
        assert answer.status == 200
    assert cluster.replicas[0].headers[0]["x-api-key"] == "secret"


async def test_pages_of_others_may_not_ask(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    async with cluster.http.post("/v1/chat/completions", json=chat(), headers={"Origin": "http://evil.test"}) as answer:
        assert answer.status == 403
    assert cluster.asked() == [0]


async def test_bodies_are_bounded(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1, max_file_size="1MB")
    async with cluster.http.post("/v1/chat/completions", data=b"x" * (33 << 20)) as answer:
        assert answer.status == 413
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b"y" * 2_000_000, filename="a.jsonl")
    async with cluster.http.post("/v1/files", data=form) as answer:
        assert answer.status == 413
    assert cluster.asked() == [0]


async def test_files_pass_through(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(3)
    content = b"z" * 3_000_000
    for key in ("a", "a", "b", "b"):
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename="a.jsonl")
        async with cluster.http.post("/v1/files", data=form, headers={"Authorization": f"Bearer {key}"}) as answer:
            assert answer.status == 200
    assert sorted(cluster.asked()) in ([0, 0, 4], [0, 2, 2]), "a client's files are at one replica"
    [first, *_] = [replica for replica in cluster.replicas if replica.bodies]
    assert content in first.bodies[0]


async def test_large_bodies_pass_whole(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    cluster.replicas[0].status = 503
    text = "x" * 3_000_000
    for _ in range(2):
        assert (await cluster.post(**chat(text)))["who"] == cluster.replicas[1].url
    assert [body == chat(text) for body in cluster.replicas[1].bodies] == [True, True]


async def test_equal_beginnings_meet_and_conversations_stay(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(4)
    who = {(await cluster.post(**chat(LONG + str(number))))["who"] for number in range(8)}
    assert len(who) == 1
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    who = set()
    for number in range(8):
        turns.append({"role": "user", "content": f"{number}" * 300})
        who.add((await cluster.post(messages=turns))["who"])
    assert len(who) == 1


async def test_sessions_stay(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(4)
    who: set[tuple[str, str]] = set()
    for session in "abcdefgh" * 2:
        async with cluster.http.post(
            "/v1/completions", json={"prompt": "x"}, headers={"X-Session-Id": session}
        ) as answer:
            who.add((session, (await answer.json())["who"]))
    assert len(who) == 8 and len({replica for _, replica in who}) > 1


async def other_router(cluster: Cluster, start_cluster: StartCluster) -> Cluster:
    """A second one over the same replicas, which has seen nothing."""
    other = await start_cluster(0)
    other.router.replicas._all |= {each.name: type(each)(each.name) for each in cluster.router.replicas.all}
    await other.router.replicas.look()
    return other


async def test_what_is_kept_is_found(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(4)
    made = [await cluster.post("/v1/responses", input=f"{number}{LONG}") for number in range(6)]
    assert len({answer["who"] for answer in made}) > 1
    for router in (cluster, await other_router(cluster, start_cluster)):
        for answer in made:
            async with router.http.get(f"/v1/responses/{answer['id']}") as found:
                assert found.status == 200 and (await found.json())["who"] == answer["who"]
            further = await router.post("/v1/responses", input="And?", previous_response_id=answer["id"])
            assert further["who"] == answer["who"]
        async with router.http.get("/v1/responses/resp_unknown") as found:
            assert found.status == 404
        assert (await router.post("/v1/responses", input="?", previous_response_id="resp_unknown"))["who"]


async def test_what_is_kept_at_a_replica_that_is_away(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    made = await cluster.post("/v1/responses", input="Hi")
    [place] = [place for place, replica in enumerate(cluster.replicas) if replica.url == made["who"]]
    cluster.replicas[place].health = 503
    await cluster.router.replicas.look()
    async with cluster.http.post("/v1/responses", json={"previous_response_id": made["id"]}) as answer:
        assert answer.status == 503 and "keeps" in (await answer.json())["error"]["message"]


async def test_operators_ask_all(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(3)
    await cluster.stop(2)
    async with cluster.http.post("/reset_prefix_cache") as answer:
        found = (await answer.json())["replicas"]
        assert answer.status == 502 and set(found) == {replica.url for replica in cluster.replicas}
    assert cluster.asked() == [1, 1, 0]


async def test_metrics(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(2)
    await cluster.post(**chat(LONG))
    async with cluster.http.get("/metrics") as answer:
        text = await answer.text()
    [replica] = [each.url for each in cluster.replicas if each.paths]
    assert f'sophserve:router_requests_total{{by="prefix",replica="{replica}"}} 1.0' in text
    assert f'sophserve:router_replica_up{{replica="{replica}"}} 1.0' in text
    assert f'sophserve:router_requests_running{{replica="{replica}"}} 0.0' in text
    assert "sophserve:router_first_byte_seconds_count 1.0" in text
    assert "sophserve:connections_open" in text


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_events_are_cut_at_their_ends(end: bytes) -> None:
    assert _whole_events(b"data: a" + end) == (b"data: a" + end, b"")
    assert _whole_events(b"data: a" + end + b"da") == (b"data: a" + end, b"da")
    assert _whole_events(b"data: a") == (b"", b"data: a")
    long = b"data: " + b"x" * 100_000
    assert _whole_events(long) == (long, b"")


async def test_a_request_waits_for_a_replica_where_that_is_wanted(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    [replica] = cluster.router.replicas.all
    cluster.router._patience = 30
    replica.note("it stops")
    asked = asyncio.create_task(cluster.post(**chat()))
    await asyncio.sleep(0.3)
    assert not asked.done() and cluster.asked() == [0]
    replica.note(None)
    assert (await asked)["who"] == replica.name


@pytest.mark.parametrize("how", ["stops", "gone"])
async def test_a_request_waits_for_the_successor_of_the_only_replica(start_cluster: StartCluster, how: str) -> None:
    cluster = await start_cluster(2)
    old, new = cluster.replicas
    cluster.router._patience = 30
    cluster.router.replicas.all[1].note("it loads")
    if how == "gone":
        await cluster.stop(0)
    else:
        old.status, old.stops = 503, True
    asked = asyncio.create_task(cluster.post(**chat()))
    await asyncio.sleep(0.3)
    assert not asked.done()
    cluster.router.replicas.all[1].note(None)
    assert (await asked)["who"] == new.url


async def test_what_a_busy_replica_says_is_said(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(1)
    cluster.router._patience = 30
    cluster.replicas[0].status = 503
    assert (await cluster.post(**chat()))["error"]["message"] == "no"
