"""Images by URL: from allowed hosts at public addresses alone. Loopback servers stand for public ones."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

from sophserve.errors import ConfigError, RequestError
from sophserve.media.fetch import CannotFetch, ImageFetcher, PublicResolver, is_public
from sophserve.media.limits import MediaLimits
from sophserve.media.source import ImageSource
from sophserve.media_domains import MediaDomain, read_domains
from tests.media.conftest import MakeLoader, encoded, seen

PUBLIC = "93.184.215.14"


class Internet(AbstractResolver):
    """Finds hosts as the real one does, among addresses of the test; what is at a public address is on loopback."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lookups: list[str] = []
        self.addresses: dict[str, list[str]] = {}
        self._resolver = PublicResolver(self._lookup)

    async def _lookup(self, host: str, port: int) -> Sequence[tuple[int, str]]:
        self.lookups.append(host)
        found = self.addresses.get(host, [PUBLIC])
        return [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in found]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        for found in await self._resolver.resolve(host, port, family):
            assert is_public(found["host"])
        here = ResolveResult(hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0)
        return [here]

    async def close(self) -> None:
        await self._resolver.close()


class Site:
    """A server that stands for all hosts, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[web.Request], Any]] = {}
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        found = self.answers[request.path](request)
        return await found if asyncio.iscoroutine(found) else found


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
async def internet(site: Site) -> AsyncIterator[Internet]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Internet(runner.addresses[0][1])
    await runner.cleanup()


Make = Callable[..., ImageFetcher]


@pytest.fixture
async def make(internet: Internet) -> AsyncIterator[Make]:
    made = []

    def fetcher(*domains: str, **limits: Any) -> ImageFetcher:
        read = tuple(read_domains(domains or ["pictures.example"]))
        made.append(ImageFetcher(MediaLimits(domains=read, **limits), internet))
        return made[-1]

    yield fetcher
    for each in made:
        await each.close()


async def test_an_image_is_fetched(make: Make, site: Site, internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    data = encoded(Image.new("RGB", (3, 3), "red"))
    site.answers["/a b.png"] = lambda request: web.Response(body=data, headers={"Set-Cookie": "a=b; Path=/"})
    fetcher = make()
    for host in ("pictures.example", "www.Pictures.EXAMPLE", "pictures.example."):
        assert await fetcher.fetch(f"http://{host}/a%20b.png#part") == data
    asked = site.requests[1]
    assert asked.path_qs == "/a%20b.png" and asked.host == "www.pictures.example"
    assert not {"Cookie", "Authorization", "Referer"} & asked.headers.keys()
    assert internet.lookups[1] == "www.pictures.example"


async def test_it_becomes_a_picture(make: Make, site: Site, make_loader: MakeLoader) -> None:
    image = Image.effect_noise((6, 4), 90).convert("RGB")
    site.answers["/a.png"] = lambda request: web.Response(body=encoded(image), content_type="text/plain")
    site.answers["/none.png"] = lambda request: web.Response(status=404)
    loader = make_loader(domains=tuple(read_domains(["pictures.example"])))
    loader._fetcher = make()
    [found] = await loader.load([ImageSource("input[0]", url="http://pictures.example/a.png")])
    assert seen(found).tobytes() == image.tobytes()
    for limits, words in (({}, "only with --allowed-media-domains"), (None, "cannot be fetched from pictures.example")):
        refusing = loader if limits is None else make_loader()
        with pytest.raises(RequestError, match=f"input.0.: .*{words}") as caught:
            await refusing.load([ImageSource("input[0]", url="http://pictures.example/none.png")])
        assert caught.value.param == "input[0]"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://other.example/a.png", "is at other.example, from where images are not fetched"),
        ("http://badpictures.example/", "is at badpictures.example, from"),
        ("http://pictures.example.evil.example/", "from where images are not fetched"),
        ("http://pictures.example@evil.example/", "user or password"),
        ("http://me:secret@pictures.example/", "user or password"),
        ("http://pictures.example:8080/", "is at pictures.example:8080, from"),
        ("http://pictures.example:22/", "is at pictures.example:22, from"),
        ("http://port.example/", "is at port.example, from"),
        ("ftp://pictures.example/", "none of http or https"),
        ("http:///a.png", "none of http or https"),
        ("http://pictures.example:99999/", "none of http or https"),
        ("http://127.0.0.1/", "from where images are not fetched"),
        ("http://2130706433/", "from where images are not fetched"),
        ("http://10.1.2.3/", "is at 10.1.2.3, which is not a public address"),
        ("http://[::1]/", "is at ::1, which is not a public address"),
    ],
)
async def test_other_urls_are_refused(url: str, words: str, make: Make, site: Site, internet: Internet) -> None:
    fetcher = make("pictures.example", "port.example:8443", "10.1.2.3", "[::1]")
    with pytest.raises(CannotFetch, match=words):
        await fetcher.fetch(url)
    assert not site.requests and not internet.lookups


async def test_an_entry_may_name_a_port(make: Make, site: Site) -> None:
    site.answers["/"] = lambda request: web.Response(body=b"x")
    assert await make("port.example:8443").fetch("http://sub.port.example:8443/") == b"x"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
        [PUBLIC, "192.168.0.1"],
    ],
)
async def test_closed_places(addresses: list[str], make: Make, site: Site, internet: Internet) -> None:
    internet.addresses["pictures.example"] = addresses
    with pytest.raises(CannotFetch, match=r"cannot be fetched from pictures\.example: that is not at a public address"):
        await make().fetch("http://pictures.example/")
    assert not site.requests


async def test_a_host_that_moves_is_looked_at_each_time(make: Make, site: Site, internet: Internet) -> None:
    """DNS rebinding: the address that is connected to is the one that was checked."""
    site.answers["/"] = lambda request: web.Response(body=b"x")
    fetcher = make()
    assert await fetcher.fetch("http://pictures.example/") == b"x"
    assert len(internet.lookups) == 1
    internet.addresses["pictures.example"] = ["127.0.0.1"]
    with pytest.raises(CannotFetch, match="not at a public address"):
        await fetcher.fetch("http://pictures.example/")
    assert len(internet.lookups) == 2 and len(site.requests) == 1


async def test_redirects(make: Make, site: Site, internet: Internet) -> None:
    def to(target: str) -> Callable[[web.Request], web.Response]:
        return lambda request: web.Response(status=302, headers={"Location": target})

    internet.addresses["inside.example"] = ["10.0.0.1"]
    site.answers |= {
        "/": lambda request: web.Response(body=b"x"),
        "/1": to("/"),
        "/2": to("http://b.example/1"),
        "/3": to("//pictures.example/2"),
        "/4": to("/3"),
        "/out": to("http://other.example/"),
        "/in": to("http://inside.example/"),
        "/file": to("file:///etc/passwd"),
        "/secret": to("http://a:b@b.example/"),
        "/port": to("http://b.example:25/"),
        "/nowhere": lambda request: web.Response(status=302),
        "/loop": to("/loop"),
    }
    fetcher = make("pictures.example", "b.example", "inside.example")
    for path in ("1", "2", "3"):
        assert await fetcher.fetch(f"http://pictures.example/{path}") == b"x"
    for path, words in (
        ("4", "behind more than 3 redirects"),
        ("loop", "behind more than 3 redirects"),
        ("nowhere", "behind more than 3 redirects"),
        ("out", "is at other.example, from where"),
        ("in", "not at a public address"),
        ("file", "none of http or https"),
        ("secret", "user or password"),
        ("port", "is at b.example:25, from where"),
    ):
        with pytest.raises(CannotFetch, match=words):
            await fetcher.fetch(f"http://pictures.example/{path}")


async def test_what_is_too_large_is_not_read(make: Make, site: Site) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(100_000):
            await answer.write(bytes(1 << 16))
            sent += 1 << 16
        return answer

    site.answers |= {
        "/declared": lambda request: web.Response(body=bytes(1001)),
        "/endless": endless,
        "/zipped": lambda request: web.Response(body=gzip.compress(b"x"), headers={"Content-Encoding": "gzip"}),
        "/fits": lambda request: web.Response(body=bytes(1000)),
    }
    fetcher = make(bytes=1000)
    assert await fetcher.fetch("http://pictures.example/fits") == bytes(1000)
    for path, words in (
        ("declared", r"has 1001 bytes; at most 1000 are taken \(--max-image-bytes\)"),
        ("endless", r"has more than 1000 bytes; at most 1000 are taken"),
        ("zipped", "answers with a Content-Encoding"),
    ):
        with pytest.raises(CannotFetch, match=words):
            await fetcher.fetch(f"http://pictures.example/{path}")
    assert sent < 1 << 26


async def test_it_may_not_take_for_ever(make: Make, site: Site) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x")
            await asyncio.sleep(0.01)

    site.answers["/"] = slow
    with pytest.raises(CannotFetch, match=r"did not come from pictures.example within the 0.3 s .*--image-fetch-timeo"):
        await make(fetch_seconds=0.3).fetch("http://pictures.example/")


async def test_nobody_there(make: Make, internet: Internet) -> None:
    internet.port = 1
    with pytest.raises(CannotFetch, match=r"cannot be fetched from pictures\.example: connection refused"):
        await make().fetch("http://pictures.example/")

    async def unknown(host: str, port: int) -> Sequence[tuple[int, str]]:
        raise socket.gaierror(-2, "Name or service not known")

    internet._resolver = PublicResolver(unknown)
    with pytest.raises(CannotFetch, match=r"cannot be fetched from pictures\.example: "):
        await make().fetch("http://pictures.example/")


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.255.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::ffff:8.8.8.8", "::7f00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1"),
        *("2001:db8::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b::a00:1", "64:ff9b:1::1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_domains_are_read() -> None:
    assert read_domains(
        ["Example.org", "a.b:8443", "bücher.example", "93.184.215.14", "x.example.", "[2606::1]:80"]
    ) == [
        MediaDomain("example.org", None),
        MediaDomain("a.b", 8443),
        MediaDomain("xn--bcher-kva.example", None),
        MediaDomain("93.184.215.14", None),
        MediaDomain("x.example", None),
        MediaDomain("2606::1", 80),
    ]
    for wrong in (
        "",
        "http://a.b",
        "a.b/c",
        "*.a.b",
        "*",
        "me@a.b",
        "a.b:0",
        "a.b:99999",
        "127.1",
        "0x7f.1",
        "a b",
    ):
        with pytest.raises(ConfigError, match="--allowed-media-domains must name hosts like"):
            read_domains([wrong])
