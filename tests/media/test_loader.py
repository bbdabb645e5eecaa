"""Images of requests become pictures: once, within limits, whatever happens to the processes."""

from __future__ import annotations

import asyncio
import gc
import hashlib

import pytest
from PIL import Image

from sophserve.errors import CheckpointError, RequestError, ServerBusy
from sophserve.link.images import read_pixels
from sophserve.media import loader as loading
from sophserve.media.limits import MediaLimits
from sophserve.media.loader import ImageLoader, image_loader
from tests.media.conftest import MakeLoader, decoded, decoders, encoded, seen, soon, source


def picture(size: tuple[int, int] = (20, 10), seed: int = 0) -> Image.Image:
    """One whose pixels all differ."""
    return Image.frombytes("RGB", size, hashlib.shake_256(bytes([seed])).digest(3 * size[0] * size[1]))


async def test_a_picture_reaches_the_workers(loader: ImageLoader) -> None:
    [found] = await loader.load([source(encoded(picture()))])
    assert found.shape.pixels == (10, 20, 3) and found.shape.tokens == 200 and found.pixels.size == 600
    assert bytes(read_pixels(found.pixels.path, found.shape)) == picture().tobytes()


async def test_pictures_come_in_order(loader: ImageLoader) -> None:
    images = [picture((5, 5 + number), number) for number in range(16)]
    found = await loader.load([source(encoded(image)) for image in images])
    assert [seen(each).tobytes() for each in found] == [image.tobytes() for image in images]


async def test_digests_are_of_what_is_seen(loader: ImageLoader, make_loader: MakeLoader) -> None:
    async def digest(data: bytes, by: ImageLoader = loader, detail: str = "auto") -> bytes:
        [found] = await by.load([source(data, detail=detail)])
        return found.digest

    image = picture()
    one = await digest(encoded(image))
    # Equal pictures, in files of other forms.
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    for same in (
        encoded(image, compress_level=0),
        encoded(image, "BMP"),
        encoded(image, "WEBP", lossless=True),
        encoded(image.convert("RGBA")),
        encoded(turned, exif=exif),
    ):
        assert await digest(same) == one
    # And others.
    changed = image.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    different = {
        one,
        await digest(encoded(changed)),
        await digest(encoded(Image.frombytes("RGB", (10, 20), image.tobytes()))),
        await digest(encoded(image), detail="high"),
        await digest(encoded(image), make_loader(preprocessor={"shade": 4})),
    }
    assert len(different) == 5


async def test_equal_images_are_decoded_once(loader: ImageLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    run = loader._process.run

    async def counted(content: bytes):  # type: ignore[no-untyped-def]
        begun.append(content)
        return await run(content)

    monkeypatch.setattr(loader._process, "run", counted)
    data = encoded(picture())
    found = await asyncio.gather(*(loader.load([source(data), source(data)]) for _ in range(5)))
    assert len(begun) == 1 and len({id(each) for pair in found for each in pair}) == 1
    await loader.load([source(data)])
    assert len(begun) == 1
    await loader.load([source(data, detail="low")])
    assert len(begun) == 2


async def test_little_is_kept(loader: ImageLoader) -> None:
    loader._kept = loading.Kept(3, 2000)
    for number in range(5):
        await loader.load([source(encoded(picture(seed=number)))])
    assert len(loader._kept._pictures) == 3 and loader._kept._bytes == 1800
    await loader.load([source(encoded(picture((20, 20), 9)))])  # 1200 bytes
    assert len(loader._kept._pictures) == 2
    await loader.load([source(encoded(picture((40, 40), 9)))])  # more than all may have
    assert not loader._kept._pictures and loader._kept._bytes == 0


async def test_all_images_together_have_a_limit(make_loader: MakeLoader) -> None:
    """Of 30,000 bytes each, as files and as pixels."""
    loader = make_loader(memory=130_000)
    for number in range(8):  # what is only kept gives way
        await loader.load([source(encoded(picture((100, 100), number)))])
    assert 0 < loader._bytes <= 130_000 and len(loader._kept._pictures) < 8
    held = [await loader.load([source(encoded(picture((100, 100), number)))]) for number in (10, 11, 12)]
    with pytest.raises(ServerBusy, match=r"would take \d+ bytes, of 130000 that they may \(--image-memory\)"):
        await loader.load([source(encoded(picture((100, 100), 13)))])
    held.clear()
    gc.collect()
    assert await loader.load([source(encoded(picture((100, 100), 13)))])


async def test_limits_name_both_numbers(make_loader: MakeLoader) -> None:
    path = "messages[0].content[1]"
    data = encoded(picture())
    for limits, count, words in (
        ({"images": 2}, 3, "there are 3 images; a request may have 2"),
        ({"bytes": 100}, 1, f"the image has {len(data)} bytes; at most 100 are taken \\(--max-image-bytes\\)"),
        ({"pixels": 199}, 1, "the image has 20 x 10 = 200 pixels; at most 199 are decoded \\(--max-image-pixels\\)"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            await make_loader(**limits).load([source(data)] * count)
        assert caught.value.param == path and str(caught.value).startswith(path)
    with pytest.raises(RequestError, match="the image is 51 pixels wide and 1 high; at most 50 times"):
        await make_loader().load([source(encoded(picture((51, 1))))])


async def test_what_takes_too_long_or_too_much(make_loader: MakeLoader) -> None:
    data = encoded(picture())
    with pytest.raises(RequestError, match=r"takes more than 0.2 s to decode.*--image-timeout"):
        await make_loader(seconds=0.2, preprocessor={"mishap": "loop"}).load([source(data)])
    for mishap in ("memory", "signal"):
        with pytest.raises(RequestError, match="cannot be decoded; save it anew"):
            await make_loader(preprocessor={"mishap": mishap}).load([source(data)])


async def test_a_killed_process_is_replaced(make_loader: MakeLoader) -> None:
    loader = make_loader(preprocessor={"mishap": "sleep"})
    data = encoded(picture())
    for victim in (-1, 0):  # the decode, the process that forks them
        task = asyncio.create_task(loader.load([source(data)]))
        for _ in range(2):
            await soon(lambda: len(decoders()) == 2)
            killed = decoders()[victim]
            killed.kill()
            await soon(lambda killed=killed: killed not in decoders())
        with pytest.raises(ServerBusy, match="was killed; try again later"):
            await task
    await loader.close()
    await soon(lambda: not decoders())
    healthy = make_loader()
    assert (await decoded(healthy, data)).size == (20, 10)
    decoders()[0].kill()
    assert (await decoded(healthy, encoded(picture(seed=1)))).size == (20, 10)


async def test_decodes_that_nobody_waits_for_are_ended(make_loader: MakeLoader) -> None:
    loader = make_loader(preprocessor={"mishap": "sleep"})
    data = encoded(picture())
    tasks = [asyncio.create_task(loader.load([source(data)])) for _ in range(3)]
    await soon(lambda: len(decoders()) == 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    await asyncio.sleep(0.05)
    assert len(decoders()) == 2  # the others wait for it all the same
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await soon(lambda: len(decoders()) == 1)
    assert not loader._decoding


async def test_no_process_before_the_first_image(loader: ImageLoader) -> None:
    assert await loader.load([]) == [] and not decoders()
    assert loader.processor.placeholder_id == 7 and loader.processor.settings == "shade 3"


def test_only_models_that_see_have_a_loader(directory, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for config in ({}, {"architectures": []}, {"architectures": ["Qwen2ForCausalLM"]}, {"architectures": "x"}):
        assert image_loader(directory, config, MediaLimits()) is None
    config = {"architectures": ["PlainSightForConditionalGeneration"]}
    assert image_loader(directory, config, MediaLimits()) is not None
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        image_loader(tmp_path, config, MediaLimits())
