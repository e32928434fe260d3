"""The Compress tab in a real browser: the whole path on the embedded model, with a small budget."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_generate import finished, opened, overflow
from tests.live_app import running_app

pytestmark = pytest.mark.browser
JOB_MS = 180_000
"""A job is a process of its own that imports torch: seconds on an idle machine, more on a busy one."""


def open_compress(page: Page, name: str = "Compress") -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.locator("#zs-family button").first).to_be_visible()


def step(page: Page, name: str) -> None:
    page.locator(f"#zs-path [data-tab-id={name}]").click()


def choose(page: Page, field: str, name: str) -> None:
    page.locator(f"{field} input").click()
    page.get_by_role("option", name=re.compile(name)).click()


def jobs(page: Page, state: str, count: int) -> None:
    expect(page.locator(f"#zs-jobs li[data-state={state}]")).to_have_count(count, timeout=JOB_MS)


def make_plan(page: Page) -> None:
    """Feed-forward 0.6 by L1; then one width and one whole block by hand."""
    step(page, "plan")
    expect(page.locator("#zs-cut-plan")).to_contain_text("No plan for this model yet")
    choose(page, "#zs-plan-criterion", "L1 norm")
    expect(page.locator("#zs-plan-criterion-about")).to_contain_text("kept as the baseline")
    page.fill("#zs-plan-amount input", "0.6")
    page.click("#zs-plan-make")
    sentence = page.locator("#zs-cut-plan .zs-sentence")
    expect(sentence).to_contain_text(re.compile(r"Removes \d+ % of the feed-forward"), timeout=JOB_MS)
    expect(page.locator("#zs-cut-plan")).to_contain_text("a ceiling")
    expect(page.locator("#zs-cut-plan .zs-layers g")).to_have_count(8)
    expect(page.locator("#zs-cut-plan [data-verdict]")).to_have_count(5)
    page.click("#zs-plan-edit button")
    rows = page.locator("#zs-plan-table tbody tr")
    expect(rows).to_have_count(8)
    rows.nth(3).locator("[data-part=ffn]").fill("320")
    rows.nth(5).locator("[type=checkbox]").uncheck()
    page.click("#zs-plan-apply")
    expect(sentence).to_contain_text("1 of 8 blocks")
    expect(sentence).to_contain_text("Changed by hand.")
    with page.expect_download() as download:
        page.click("#zs-plan-export")
    assert json.loads(Path(download.value.path()).read_text("utf-8"))["edited"] is True


def cut(page: Page) -> None:
    page.click("#zs-plan-go")
    expect(page.locator("#zs-cut-about")).to_contain_text("Writes weights, configuration, plan and manifest")
    page.fill("#zs-cut-name input, #zs-cut-name textarea", "../x")
    page.click("#zs-cut")
    expect(page.get_by_test_id("toast-body").last).to_contain_text("../x")
    page.fill("#zs-cut-name input, #zs-cut-name textarea", "small")
    page.click("#zs-cut")
    expect(page.locator("#zs-cut-made")).to_contain_text("small is there", timeout=JOB_MS)
    expect(page.locator("#zs-family li[data-depth='1']")).to_contain_text("small")


def listed_in_generate(page: Page, name: str) -> None:
    """A model that a job made is in the list without a reload."""
    page.get_by_role("tab", name="Generate", exact=True).click()
    page.locator("#zs-model input").click()
    expect(page.get_by_role("option", name=name)).to_be_visible()
    page.keyboard.press("Escape")
    open_compress(page)


def judge(page: Page) -> None:
    """Two prompts, without the quantised parent."""
    step(page, "judge")
    page.fill("#zs-judge-count input", "2")
    page.locator("#zs-judge-quantised input").uncheck()
    page.click("#zs-judge-start")
    expect(page.locator("#zs-report")).to_contain_text("better", timeout=JOB_MS)
    expect(page.locator("#zs-family li[data-depth='2']")).to_contain_text(re.compile("judge|CLIP"))


def test_the_whole_path_from_the_choice_to_a_picture(browser: Browser, tmp_path: Path):
    with running_app(tmp_path / "data") as url, opened(browser, url, accept_downloads=True) as page:
        open_compress(page)
        make_plan(page)
        cut(page)
        listed_in_generate(page, "small")
        page.click("#zs-cut-on")
        expect(page.locator("#zs-recover-about")).to_contain_text("small goes on learning")
        page.fill("#zs-recover-amount input", "6")
        page.fill("#zs-recover-name input, #zs-recover-name textarea", "better")
        page.click("#zs-recover")
        expect(page.locator("#zs-now")).to_contain_text("Recovery")
        page.reload()  # the page may be closed: the job goes on, and a page opened later finds it
        open_compress(page)
        jobs(page, "done", 3)
        page.locator("#zs-jobs li[data-kind=recover]").get_by_role("button", name="Show").click()
        expect(page.locator("#zs-compress-model input")).to_have_value("better")
        step(page, "recover")
        expect(page.locator("#zs-recovery")).to_contain_text("better is there: 6 steps")
        expect(page.locator("#zs-recovery .zs-loss-plot svg")).to_be_visible()
        expect(page.locator("#zs-recovery .zs-sample-row img").first).to_be_visible()
        page.locator("#zs-jobs li[data-kind=recover]").get_by_role("button", name="Log").click()
        expect(page.locator("#zs-job-log")).to_contain_text("recover")
        judge(page)
        step(page, "use")
        page.click("#zs-use")
        expect(page.locator("#zs-prompt textarea")).to_be_visible()
        page.fill("#zs-prompt textarea", "a red circle")
        page.fill("#zs-steps input", "2")
        page.click("#zs-generate")
        finished(page)
        expect(page.locator(".zs-recipe").first).to_contain_text("better")


def test_on_a_phone_in_chinese_nothing_sticks_out(browser: Browser, app_url: str):
    with opened(browser, app_url, locale="zh-CN", viewport={"width": 390, "height": 800}) as page:
        open_compress(page, "压缩")
        for name in ("plan", "cut"):
            step(page, name)
            assert overflow(page) <= 0
