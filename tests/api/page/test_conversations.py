"""Conversations in the playground: branches, the list, files, several tabs, a browser that keeps nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from sophserve.chat.conversation import read, write

ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
OPEN = "#conversations .tools:not([hidden])"
SEND, DONE = (
    "document.querySelector('#send').checkVisibility()",
    "document.querySelector('.answer:last-child .numbers')",
)


async def ask(page: Any, text: str) -> None:
    """Ask, and wait for the answer."""
    before = await page.run("return document.querySelectorAll('.message').length")
    await page.click("#input")
    await page.type(text, ENTER)
    await answered(page, before + 2)


async def answered(page: Any, count: int) -> None:
    await page.until(f"document.querySelectorAll('.message').length === {count} && {DONE}?.textContent && {SEND}")


async def texts(page: Any) -> list[str]:
    """What the shown messages say."""
    return list(await page.run("return [...document.querySelectorAll('.message > .text')].map(e => e.innerText)"))


async def titles(page: Any) -> list[str]:
    return list(await page.run("return [...document.querySelectorAll('#conversations .name')].map(e => e.innerText)"))


async def ready(page: Any) -> Any:
    await page.until("document.querySelector('#state').className === 'state ready'")
    return page


async def reload(page: Any) -> None:
    await asyncio.to_thread(page.driver.refresh)
    await ready(page)


async def count_kept(page: Any) -> int:
    """How many messages the browser's database holds."""
    script = """const done = arguments[0]; const opening = indexedDB.open('sophserve');
    opening.onsuccess = () => {
      const all = opening.result.transaction('conversations').objectStore('conversations').getAll();
      all.onsuccess = () => done(all.result.reduce((sum, {messages}) => sum + messages.length, 0)); };"""
    return int(await asyncio.to_thread(page.driver.execute_async_script, script))


async def test_an_edit_loses_nothing(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    for text in ("One?", "Two?", "Three?"):
        await ask(page, text)
    said = await texts(page)
    assert said == ["One?", "Yes, of course.", "Two?", "Yes, of course.", "Three?", "Yes, of course."]
    await page.click(".user .do-edit")
    await page.type(" Or")
    assert len(await texts(page)) == 6
    await page.shot("editing")
    await page.type(ESCAPE)
    assert await texts(page) == said
    assert await page.run("return document.activeElement.textContent") == "Edit"
    await page.type(ENTER, " Or four?")
    await page.click("#input")
    await page.type("half a ques")
    await reload(page)
    await page.until("document.querySelector('.user textarea')?.value === 'One? Or four?'")
    assert await page.run("return document.querySelector('#input').value") == "half a ques"
    assert len(await texts(page)) == 6
    await page.click(".user .do-cancel")
    await page.click("#input")
    await page.run("location.reload()")
    await page.until("document.querySelectorAll('.message').length === 6")
    assert await texts(page) == said
    assert not await page.run("return document.querySelector('.user textarea')")


async def test_branches(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    await ask(page, "One?")
    await ask(page, "Two?")
    served.engine.text = "No."
    await page.click(".user .do-edit")
    await page.type(" Or", ENTER)
    await answered(page, 2)
    assert await texts(page) == ["One? Or", "No."]
    assert len(served.engine.prompts[-1]) < len(served.engine.prompts[-2])
    assert await page.text(".user .branches span") == "2/2"
    served.engine.text = "Perhaps."
    await page.click(".answer .do-again")
    await page.until("document.querySelector('.answer .branches')?.innerText.includes('2/2')")
    assert await texts(page) == ["One? Or", "Perhaps."]
    await page.click(".answer .do-before")
    assert await texts(page) == ["One? Or", "No."]
    assert await page.run("return document.activeElement.className") == "quiet do-after"
    await page.look("light", 360)
    await page.shot("branches-narrow")
    await page.look("light", 1360)
    await page.click(".user .do-before")
    first = ["One?", "Yes, of course.", "Two?", "Yes, of course."]
    assert await texts(page) == first
    await page.shot("branches")
    await reload(page)
    await page.until("document.querySelectorAll('.message').length === 4")
    assert await texts(page) == first
    # What is asked on a branch builds on that branch alone.
    await ask(page, "Three?")
    assert "Or" not in served.tokenizer.decode(served.engine.prompts[-1])
    await page.click(".user .do-after")
    assert await texts(page) == ["One? Or", "Perhaps."]
    assert await count_kept(page) == 9


async def test_the_list(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    await ask(page, "Why is the sea salty?")
    await page.click("#new")
    assert await texts(page) == []
    served.engine.text = "Because of *scattering*: blue light most of all."
    await ask(page, "And why is the sky blue?")
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    assert await titles(page) == ["And why is the sky blue?", "Why is the sea salty?"]
    await page.click("#conversations li:last-child .open")
    await page.until("document.querySelector('.user')?.innerText.includes('sea')")
    await page.click("#search")
    await page.type("LIGHT blue")
    await page.until("document.querySelectorAll('#conversations li').length === 1")
    assert await titles(page) == ["And why is the sky blue?"]
    assert await page.text("#conversations mark") == "light"
    await page.shot("search")
    await page.assert_readable()
    await page.type("\ue003" * 10 + "nowhere")
    await page.until("document.querySelector('#none').innerText === 'Nothing found.'")
    await page.type("\ue003" * 7)
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    await page.click(f"{OPEN} .do-rename")
    await page.type("Salt", ESCAPE)
    assert (await titles(page))[1] == "Why is the sea salty?"
    await page.click(f"{OPEN} .do-rename")
    await page.type("Salt", ENTER)
    await page.until("document.querySelectorAll('#conversations .name')[1].innerText === 'Salt'")
    await page.click("#input")
    await page.type("not yet sent")
    await page.click(f"{OPEN} .do-remove")
    await page.until("document.querySelectorAll('#conversations li').length === 1")
    assert await texts(page) == [] and "“Salt” was deleted." in await page.text("#notice")
    await page.click("#conversations .open")
    await page.until("document.querySelector('#conversations .tools:not([hidden])')")
    await page.click(f"{OPEN} .do-remove")
    await page.until("document.querySelectorAll('#conversations li').length === 0")
    assert "2 conversations were deleted." in await page.text("#notice")
    await page.shot("deleted")
    assert await page.run("return document.querySelector('#input').value") == ""
    await page.click("#notice .act")
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    await page.click("#conversations li:last-child .open")
    await page.until("document.querySelector('#input').value === 'not yet sent'")
    await reload(page)
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    assert await titles(page) == ["And why is the sky blue?", "Salt"]


async def test_an_answer_goes_on_while_another_conversation_is_open(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    await ask(page, "First")
    served.engine.gate.clear()
    await page.click("#input")
    await page.type("Slow", ENTER)
    await served.until_running(1)
    await page.click("#new")
    await page.until(SEND)
    served.engine.gate.set()
    await served.until_running(0)
    await page.click("#conversations .open")
    await answered(page, 4)
    assert (await texts(page))[-1] == "Yes, of course."
    await page.click("#input")
    served.engine.gate.clear()
    await page.type("Never", ENTER)
    await served.until_running(1)
    await page.click(f"{OPEN} .do-remove")
    await served.until_running(0)
    await page.until("document.querySelectorAll('#conversations li').length === 0")
    served.engine.gate.set()


async def import_file(page: Any, path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    field = await asyncio.to_thread(page.driver.find_element, "css selector", "#file")
    await asyncio.to_thread(field.send_keys, str(path))


async def test_files(served: Any, open_page: Any, tmp_path: Path) -> None:
    page = await ready(await open_page(served))
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    await asyncio.to_thread(page.driver.execute_cdp_cmd, "Browser.setDownloadBehavior", behaviour)
    await page.click("#system")
    await page.type("Be brief.")
    await ask(page, "One?")
    await page.click(".answer .do-again")
    await page.until("document.querySelector('.answer .branches')")
    await page.until(f"{DONE}?.textContent")
    await page.click(f"{OPEN} .do-save")
    file = tmp_path / "One.json"
    async with asyncio.timeout(8):
        while not file.exists():
            await asyncio.sleep(0.02)
    kept = json.loads(file.read_text())
    [conversation] = kept["conversations"]
    assert (kept["format"], kept["version"]) == ("sophserve.conversations", 1)
    assert conversation["system"] == "Be brief." and "secret" not in file.read_text()
    assert [(each["role"], each["content"]) for each in conversation["messages"]] == [
        ("user", "One?"),
        ("assistant", "Yes, of course."),
        ("assistant", "Yes, of course."),
    ]
    assert [each.get("parent") for each in conversation["messages"]] == [
        None,
        *[conversation["messages"][0]["id"]] * 2,
    ]
    # The chat in the terminal reads and writes the same files.
    [known] = read(file.read_bytes())
    assert (known.id, known.system, len(known.ends())) == (conversation["id"], "Be brief.", 2)
    kept = json.loads(write([known]))
    # One that is there already is a second one.
    await import_file(page, tmp_path / "again.json", kept)
    await page.until("document.querySelectorAll('#conversations li').length === 2")
    assert await page.text("#notice p") == "“One?” was imported."
    assert await texts(page) == ["One?", "Yes, of course."]
    # A request's messages are a conversation, too.
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    await import_file(page, tmp_path / "request.json", {"messages": messages})
    await page.until("document.querySelectorAll('#conversations li').length === 3")
    assert await texts(page) == ["user", "assistant"] and await page.text(".answer .numbers") == ""
    assert await page.run("return document.querySelector('#system').value") == "system"
    await check_wrong_files(page, tmp_path, kept)
    await page.shot("import-error")
    await page.assert_readable()


async def check_wrong_files(page: Any, folder: Path, kept: dict[str, Any]) -> None:
    """Files that are refused, with a word that says where they are wrong, and change nothing."""
    good = kept["conversations"][0]
    user = {"id": "a", "parent": None, "role": "user", "content": "x"}

    def holding(*conversations: Any) -> Any:
        return {**kept, "conversations": [good, *conversations]}

    wrong = [
        ("{", "JSON"),
        ([], "format"),
        ({**kept, "version": 2}, "version"),
        ({**kept, "conversations": []}, "holds no conversation."),
        (holding(7), "conversations[1].messages"),
        (holding({"messages": [{"role": "tool", "content": ""}]}), "conversations[1].messages[0].role"),
        (holding({"messages": [{**user, "content": ["x"]}]}), "conversations[1].messages[0].content"),
        (holding({"messages": [{**user, "parent": "a"}]}), "conversations[1].messages[0].parent"),
        (holding({"messages": [user, user]}), "conversations[1].messages[1].id"),
        (holding({"messages": [user], "leaf": "b"}), "conversations[1].leaf"),
        (holding({"messages": [user], "title": 1}), "conversations[1].title"),
        (holding({"messages": [user], "created": "then"}), "conversations[1].created"),
    ]
    for number, (content, words) in enumerate(wrong):
        await import_file(page, folder / f"wrong{number}.json", content)
        await page.until(f"document.querySelector('#notice p.error')?.innerText.includes('wrong{number}.json')")
        assert words in await page.text("#notice p"), content
        assert len(await titles(page)) == 3


async def test_two_tabs(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    await ask(page, "One?")
    driver = page.driver
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    await asyncio.to_thread(driver.get, page.url)
    await ready(page)
    second = driver.current_window_handle
    try:
        await page.until("document.querySelectorAll('#conversations li').length === 1")
        await page.click("#conversations .open")
        await page.until("document.querySelectorAll('.message').length === 2")
        await ask(page, "Two?")
        driver.switch_to.window(first)
        await page.until("document.querySelectorAll('.message').length === 4")
        assert (await texts(page))[2] == "Two?"
        # Both go on from the same place: two branches, and nothing lost.
        await page.click(".user .do-edit")
        await page.type(" From the first", ENTER)
        await answered(page, 2)
        driver.switch_to.window(second)
        await page.until("document.querySelector('.user .branches')?.innerText.includes('1/2')")
        await ask(page, "Three?")
        assert await count_kept(page) == 8
        await page.click(f"{OPEN} .do-remove")
        await page.until("document.querySelectorAll('#conversations li').length === 0")
        driver.switch_to.window(first)
        await page.until("document.querySelector('#notice').innerText.includes('another tab')")
        assert await texts(page) == []
    finally:
        driver.switch_to.window(second)
        driver.close()
        driver.switch_to.window(first)


async def test_a_browser_that_keeps_nothing(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    forbid = """
    for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
      Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
    }"""
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
    try:
        await reload(page)
        await ask(page, "One?")
        assert "This browser keeps nothing" in await page.text("#notice")
        await page.click("#new")
        await ask(page, "Two?")
        await page.click("#conversations li:last-child .open")
        await page.until("document.querySelector('.user')?.innerText.includes('One?')")
        await page.click(".user .do-edit")
        await page.type(" Or", ENTER)
        await page.until("document.querySelector('.user .branches')?.innerText.includes('2/2')")
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


async def test_a_full_browser_is_told_of(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    await page.run("IDBObjectStore.prototype.put = () => { throw new DOMException('no room', 'QuotaExceededError'); }")
    await ask(page, "One?")
    assert "no room left" in await page.text("#notice .error")
    assert await texts(page) == ["One?", "Yes, of course."]


async def test_the_conversation_of_version_0_1_0(served: Any, open_page: Any) -> None:
    page = await ready(await open_page(served))
    messages = [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "Old.", "finish": "stop"}]
    await page.run("localStorage.setItem('sophserve.conversation', arguments[0])", json.dumps(messages))
    await reload(page)
    await page.until("document.querySelectorAll('#conversations li').length === 1")
    await page.click("#conversations .open")
    await page.until("document.querySelectorAll('.message').length === 2")
    assert await texts(page) == ["Old?", "Old."]
    assert await page.run("return localStorage.getItem('sophserve.conversation')") is None
