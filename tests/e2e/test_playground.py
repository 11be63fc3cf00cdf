"""The playground in a real browser: desktop and phone, by keyboard, with and without denoising events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from dlm_sglang.api.playground import PAGE
from tests.e2e.browser import CHROMIUM, Page, opened_page
from tests.e2e.server import Server

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (install chromium)")
DESKTOP, PHONE = (1280, 800), (390, 844)
IDLE = "document.getElementById('send').hidden === false"
NUM_COSTS = "document.querySelectorAll('.cost').length"
ENTER, ESCAPE, TAB = ("Enter", 13), ("Escape", 27), ("Tab", 9)
# What the server streams with `stream_denoising`, held in between: a block at two steps, then its text.
DENOISING = """
window.fetch = async () => {
  const block = (tokens, final, step) => 'data: ' + JSON.stringify({ choices: [{ index: 0, delta: {} }],
    dlm_denoising: { positions: [3, 4, 5], tokens, is_final: final, step } }) + '\\n\\n';
  const encoder = new TextEncoder();
  const body = new ReadableStream({ async start(controller) {
    controller.enqueue(encoder.encode(block(['The', null, null], [true, false, false], 1)));
    controller.enqueue(encoder.encode(block(['The', ' cat', ' sat'], [true, true, false], 2)));
    await new Promise((done) => { window.goOn = done; });
    controller.enqueue(encoder.encode('data: ' + JSON.stringify({ choices: [{ delta: { content: 'The cat sat' },
      finish_reason: 'stop' }], dlm: { tokens_per_forward: 1.5, num_forwards: 2 } }) + '\\n\\n'));
    controller.enqueue(encoder.encode('data: ' + JSON.stringify({ choices: [], usage: { completion_tokens: 3 } })
      + '\\n\\ndata: [DONE]\\n\\n'));
    controller.close();
  } });
  return { ok: true, body };
};
"""


def on_page(server: Server, size: tuple[int, int], steps: Callable[[Page], Awaitable[None]]) -> None:
    """Open the page, do the steps, and see that nothing went wrong and nobody else was asked."""

    async def run() -> None:
        async with opened_page() as page:
            await page.open(f"{server.url}/playground", *size)
            await page.wait_for("document.getElementById('model').textContent === 'nld'")
            await steps(page)
            assert page.problems == []
            assert [url for url in page.requested if not url.startswith((server.url, "data:"))] == []

    asyncio.run(run())


def test_three_modes_answer_side_by_side_and_are_plotted(front_server: Server) -> None:
    async def steps(page: Page) -> None:
        for count in (3, 6):
            await page.type("What is 15 + 69?")
            await page.press(*ENTER)
            await page.wait_for(f"{IDLE} && {NUM_COSTS} === {count}")
        answers = await page.value("[...document.querySelectorAll('.answer')].map((part) => part.textContent)")
        assert len(answers) == 6
        assert all(answers)
        # Self-speculation gives what autoregressive decoding gives.
        assert answers[2:4] == answers[4:6]
        plotted = await page.value("document.getElementById('plot-tpf').getAttribute('aria-label')")
        assert plotted.count("Autoregressive 1.00") == 2
        assert await page.value("document.querySelectorAll('#plot-rate rect').length") == 6
        assert "Answered." in await page.value("document.getElementById('news').textContent")

    on_page(front_server, DESKTOP, steps)


def test_it_works_at_phone_width_and_shows_errors(front_server: Server) -> None:
    async def steps(page: Page) -> None:
        assert await page.value("document.querySelectorAll('.lane').length") == 1
        await page.value("document.querySelector('.block_length').value = '99'")
        await page.type("What is 15 + 69?")
        await page.press(*ENTER)
        await page.wait_for(f"{IDLE} && document.querySelectorAll('.wrong').length === 1")
        assert "block_length must be in 2..32" in await page.value("document.querySelector('.wrong').textContent")
        await page.value("document.getElementById('compare').click()")
        assert await page.value("document.querySelectorAll('.lane').length") == 2
        assert await page.value("document.documentElement.scrollWidth") == PHONE[0]
        small = (
            "[...document.querySelectorAll('button')].filter((one) => one.offsetHeight && one.offsetHeight < 32).length"
        )
        assert await page.value(small) == 0

    on_page(front_server, PHONE, steps)


def test_every_control_has_a_name_and_is_reached_by_keyboard(front_server: Server) -> None:
    async def steps(page: Page) -> None:
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "textbox", "spinbutton", "combobox", "checkbox"}
        controls = [node for node in tree if node.get("role", {}).get("value") in roles and not node.get("ignored")]
        assert len(controls) > 12
        assert all(node["name"]["value"] for node in controls), controls
        reached = set()
        for _ in range(40):
            await page.press(*TAB)
            reached.add(await page.value("document.activeElement.id || document.activeElement.className"))
        wanted = {"prompt", "send", "temperature", "max-tokens", "remember", "clear", "mode", "drop", "talk"}
        assert wanted | {"block_length", "max_denoising_steps", "confidence_threshold"} <= reached

    on_page(front_server, DESKTOP, steps)


def test_escape_stops_an_answer(front_server: Server) -> None:
    async def steps(page: Page) -> None:
        await page.value("document.getElementById('max-tokens').value = '3000'")
        # Hot sampling hardly ever ends an answer.
        await page.value("document.getElementById('temperature').value = '2'")
        await page.value("document.getElementById('prompt').focus()")
        await page.type("Count.")
        await page.press(*ENTER)
        await page.wait_for("document.querySelector('.answer')?.textContent.length > 3")
        await page.press(*ESCAPE)
        await page.wait_for(IDLE, 15)

    on_page(front_server, DESKTOP, steps)
    front_server.wait_idle()


def test_a_block_is_shown_while_it_is_denoised_and_gone_afterwards(front_server: Server) -> None:
    async def steps(page: Page) -> None:
        await page.value(DENOISING)
        await page.type("Go")
        await page.press(*ENTER)
        slots = "[...document.querySelectorAll('.slot')].map((slot) => [slot.textContent, slot.className])"
        await page.wait_for("window.goOn && document.querySelectorAll('.slot.final').length === 2")
        assert await page.value(slots) == [["The", "slot final"], [" cat", "slot final"], [" sat", "slot draft"]]
        await page.value("window.goOn()")
        await page.wait_for("document.querySelector('.answer').textContent === 'The cat sat'")
        assert await page.value("document.querySelectorAll('.slot').length") == 0

    on_page(front_server, PHONE, steps)


def test_the_real_server_shows_its_blocks_where_they_are_asked_for(front_server: Server) -> None:
    """What was shown is counted while it is shown: on a small model it is gone in milliseconds."""
    count = """
      window.shown = [];
      const denoise = Answer.prototype.denoise;
      Answer.prototype.denoise = function (block) {
        denoise.call(this, block);
        const slots = [...document.querySelectorAll('.slot')].map((slot) => slot.className);
        window.shown.push([this.lane.mode, block.step, ...slots]);
      };
    """

    async def steps(page: Page) -> None:
        await page.wait_for("!document.getElementById('denoising-field').hidden")
        await page.value(count)
        await page.value("document.querySelector('.confidence_threshold').value = '1'")
        await page.value("document.getElementById('remember').checked = false")
        await page.type("What is 15 + 69?")
        await page.press(*ENTER)
        await page.wait_for(f"{IDLE} && {NUM_COSTS} === 3")
        shown = await page.value("window.shown")
        diffusion = [told[1:] for told in shown if told[0] == "diffusion"]
        assert [step for step, *_ in diffusion[:2]] == [1, 2]
        assert diffusion[0].count("slot mask") > diffusion[1].count("slot mask") > 0
        assert diffusion[0].count("slot final") >= 2
        drafts = [told[2:] for told in shown if told[0] == "self_speculation"]
        assert drafts[0][0] == "slot final"
        assert set(drafts[0][1:]) == {"slot draft"}
        assert "autoregressive" not in {mode for mode, *_ in shown}
        answers = await page.value("[...document.querySelectorAll('.answer')].map((part) => part.textContent)")
        assert all(answers)
        assert answers[1] == answers[2]
        assert await page.value("document.querySelectorAll('.slot').length") == 0
        await page.value("window.shown = []; document.getElementById('denoising').click()")
        await page.type("What is 15 + 69?")
        await page.press(*ENTER)
        await page.wait_for(f"{IDLE} && {NUM_COSTS} === 6")
        assert await page.value("window.shown") == []
        again = await page.value("[...document.querySelectorAll('.answer')].map((part) => part.textContent)")
        assert again[3:] == again[:3]

    on_page(front_server, DESKTOP, steps)


def test_the_page_may_load_nothing_from_elsewhere(front_server: Server) -> None:
    response = front_server.get("/playground")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", PAGE.read_text()))
    assert addresses == {"http://www.w3.org/2000/svg"}
