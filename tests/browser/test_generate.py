"""The page in a real browser: what a person sees and does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.live_app import running_app

pytestmark = pytest.mark.browser
PATIENCE_MS = 120_000
PROMPT_ZH = "一颗大红色的爱心，白色背景"


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page in a browser of its own, without any error in its console and without any request elsewhere."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    foreign: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: foreign.append(request.url) if not _ours(request.url, url) else None)
    page.goto(url)
    expect(page.locator("#zs-prompt textarea")).to_be_visible()
    yield page
    context.close()
    assert errors == []
    assert foreign == []


def _ours(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


def fill(page: Page, prompt: str, *, steps: int = 4) -> None:
    page.fill("#zs-steps input", str(steps))
    page.fill("#zs-prompt textarea", prompt)


def finished(page: Page) -> None:
    expect(page.locator("#zs-gallery .media-button img")).to_be_visible(timeout=PATIENCE_MS)


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_a_chinese_prompt_from_the_preview_to_history_after_a_restart(browser: Browser, tmp_path: Path):
    data = tmp_path / "data"
    with running_app(data) as url, opened(browser, url, locale="zh-CN") as page:
        assert page.url == url + "zh/"  # by the browser's language
        fill(page, PROMPT_ZH, steps=200)
        for side in ("宽度", "高度"):  # long enough to be stopped by a slow browser too
            page.get_by_label(side, exact=True).first.fill("256")
        page.click("#zs-generate")
        preview = page.locator("#zs-stage .zs-canvas img")
        expect(preview).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#zs-stage .zs-count")).to_contain_text(re.compile(r"第 \d+/200 步"))
        first = preview.get_attribute("src")
        expect(preview).not_to_have_attribute("src", str(first))  # it is forming
        page.click("#zs-stop")
        expect(page.locator("#zs-stage")).to_contain_text(re.compile(r"第 \d+/200 步停止"), timeout=PATIENCE_MS)
        page.fill("#zs-seed input", str(2**64 - 1))
        page.fill("#zs-steps input", "4")
        page.click("#zs-generate")
        finished(page)
        expect(page.locator("#zs-recipe")).to_contain_text(str(2**64 - 1))
        expect(page.locator("#zs-seed-note")).to_contain_text(str(2**64 - 1))
    with running_app(data) as url, opened(browser, url, locale="zh-CN") as page:
        page.get_by_role("tab", name="历史").click()
        images = page.locator("#zs-history-gallery .thumbnail-item img")
        expect(images).to_have_count(1, timeout=PATIENCE_MS)
        expect(images.first).to_have_attribute("alt", PROMPT_ZH)
        page.locator("#zs-history-gallery .thumbnail-item").first.click()
        expect(page.locator("#zs-history-image img")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator(".zs-detail")).to_contain_text(str(2**64 - 1))


def test_the_original_png_is_downloaded(browser: Browser, app_url: str):
    with opened(browser, app_url, accept_downloads=True) as page:
        fill(page, "a red fish")
        page.keyboard.press("Control+Enter")
        finished(page)
        with page.expect_download() as download:
            page.click("#zs-download")
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"zimage" in content.lower() or b"recipe" in content.lower()
        assert download.value.suggested_filename.endswith(".png")


@pytest.mark.parametrize("key", ["Control+Enter", "Meta+Enter"])
def test_the_keyboard_generates(browser: Browser, app_url: str, key: str):
    with opened(browser, app_url) as page:
        fill(page, "a blue house")
        page.press("#zs-prompt textarea", key)
        finished(page)


def test_several_images_can_be_looked_at_one_by_one(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a yellow star")
        page.fill("#zs-seed input", "7")
        page.fill("#zs-count input", "2")
        page.click("#zs-generate")
        expect(page.locator("#zs-gallery .thumbnail-small")).to_have_count(2, timeout=PATIENCE_MS)
        expect(page.locator("#zs-recipe .zs-seed")).to_have_text("7")
        page.locator("#zs-gallery .thumbnail-small").nth(1).click()
        expect(page.locator("#zs-recipe .zs-seed")).to_have_text("8", timeout=PATIENCE_MS)


def test_again_keeps_the_settings_and_draws_a_new_seed(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a green tree", steps=3)
        page.fill("#zs-seed input", "11")
        page.click("#zs-generate")
        finished(page)
        page.fill("#zs-prompt textarea", "something else")
        page.click("#zs-again")
        expect(page.locator("#zs-recipe .zs-seed")).not_to_have_text("11", timeout=PATIENCE_MS)
        finished(page)
        expect(page.locator("#zs-recipe .zs-prompt")).to_have_text("a green tree")
        expect(page.locator("#zs-seed input")).to_have_value("")


def test_a_refused_value_is_told_in_the_language_of_the_page(browser: Browser, app_url: str):
    for locale, sentence in (("en-US", "The prompt is empty. Say"), ("zh-CN", "提示词是空的。")):
        with opened(browser, app_url, locale=locale) as page:
            page.click("#zs-generate")
            expect(page.get_by_test_id("toast-body")).to_contain_text(sentence, timeout=PATIENCE_MS)


def test_hostile_text_in_a_toast_is_text(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a <|im_end|> b")
        page.click("#zs-generate")
        expect(page.get_by_test_id("toast-body")).to_contain_text("<|im_end|>", timeout=PATIENCE_MS)


def test_the_button_switches_the_language_and_it_is_remembered(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        page.get_by_role("link", name="中文").click()
        expect(page.locator("#zs-generate")).to_have_text("生成")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        page.goto(app_url)
        expect(page.locator("#zs-generate")).to_have_text("生成")
        page.get_by_role("link", name="English").click()
        expect(page.locator("#zs-generate")).to_have_text("Generate")


def test_the_negative_prompt_says_when_it_does_nothing(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        page.get_by_label("Guidance").fill("0")
        expect(page.get_by_text("Has no effect while guidance is 0.")).to_be_visible()
        page.get_by_label("Guidance").fill("2")
        expect(page.get_by_text("Has no effect while guidance is 0.")).not_to_be_visible()


def test_an_image_is_deleted_only_after_a_second_yes(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a doomed moon")
        page.click("#zs-generate")
        finished(page)
        page.get_by_role("tab", name="History").click()
        page.fill("#zs-search input", "doomed")
        images = page.locator("#zs-history-gallery .thumbnail-item")
        expect(images).to_have_count(1, timeout=PATIENCE_MS)
        images.first.click()
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name="Keep it").click()
        expect(images).to_have_count(1)
        page.get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.get_by_text("No prompt contains these words.")).to_be_visible(timeout=PATIENCE_MS)


def test_settings_of_an_old_image_are_used_again(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a striped flower", steps=5)
        page.fill("#zs-seed input", str(2**63 + 1))
        page.click("#zs-generate")
        finished(page)
        page.reload()
        page.get_by_role("tab", name="History").click()
        page.locator("#zs-history-gallery .thumbnail-item").first.click()
        page.get_by_role("button", name="Use these settings").click()
        expect(page.locator("#zs-prompt textarea")).to_have_value("a striped flower", timeout=PATIENCE_MS)
        expect(page.locator("#zs-prompt textarea")).to_be_visible()
        expect(page.locator("#zs-seed input")).to_have_value(str(2**63 + 1))
        expect(page.locator("#zs-steps input")).to_have_value("5")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_overflows_on_a_phone(browser: Browser, app_url: str, locale: str):
    with opened(browser, app_url, locale=locale, viewport={"width": 390, "height": 844}) as page:
        assert overflow(page) <= 0
        prompt, go, stage, settings = (
            page.locator(name).bounding_box() for name in ("#zs-prompt", "#zs-generate", "#zs-stage", ".zs-settings")
        )
        assert prompt and go and stage and settings
        assert prompt["y"] < go["y"] < stage["y"] < settings["y"]
        fill(page, "a very-long-word-" + "m" * 200)
        page.click("#zs-generate")
        finished(page)
        assert overflow(page) <= 0
        page.get_by_role("tab", name=re.compile("History|历史")).click()
        page.locator("#zs-history-gallery .thumbnail-item").first.click()
        expect(page.locator("#zs-history-image img")).to_be_visible(timeout=PATIENCE_MS)
        assert overflow(page) <= 0


def test_every_control_has_a_name(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select, a")]
                .filter((e) => e.offsetParent !== null && !e.labels?.length && !e.ariaLabel && !e.title
                    && !e.textContent.trim() && !e.closest("label") && !e.getAttribute("aria-labelledby"))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
