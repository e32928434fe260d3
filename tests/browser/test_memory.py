"""The Memory tab in a real browser: choose, see what each switch does, what fits, measure, read the table."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_generate import PATIENCE_MS, opened, overflow

pytestmark = pytest.mark.browser
TOAST = "toast-body"


def open_memory(page: Page, name: str = "Memory") -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    expect(page.locator("#zs-plan .zs-sentence")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#zs-truth-vae-precision [data-state]")).not_to_have_attribute("data-state", "none")


def choose(page: Page, name: str) -> None:
    page.locator("#zs-profile input").click()
    page.get_by_role("option", name=re.compile(rf"^(✓\s*)?{name}( ·.*)?$")).click()


def take_in(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#zs-profile-import")
    chooser.value.set_files(file)


def truth(page: Page, switch: str, state: str) -> None:
    expect(page.locator(f"#zs-truth-{switch} [data-state]")).to_have_attribute("data-state", state)


def test_the_header_of_every_tab_shows_a_number(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        for name in ("Generate", "Replay", "Refine", "History", "Memory"):
            page.get_by_role("tab", name=name, exact=True).click()
            expect(page.locator("#zs-slim")).to_contain_text(re.compile(r"(RAM|GPU)\s*[\d.]+ (MiB|GiB) of [\d.]+ GiB"))


def test_the_readouts_move_on_the_tab_and_say_why_there_is_no_gpu(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        open_memory(page)
        gauge = page.locator("#zs-gauge")
        expect(gauge).to_contain_text(re.compile(r"Studio [\d.]+ (MiB|GiB)"))
        line = gauge.locator("svg polygon.zs-ours").last
        before = line.get_attribute("points")
        expect(line).not_to_have_attribute("points", str(before))


def test_a_preset_is_chosen_and_each_switch_says_what_it_really_does(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        open_memory(page)
        choose(page, "chunked")
        expect(page.locator("#zs-profile-about")).to_contain_text("feed-forward layers in 4 pieces")
        expect(page.locator("#zs-feed-forward-chunks input")).to_have_value("4")
        truth(page, "feed-forward-chunks", "pending")  # clicked is not applied
        page.locator("#zs-attention-slicing input").check()
        expect(page.locator("#zs-profile-about")).to_contain_text("Changed against chunked: Attention slicing on.")
        page.click("#zs-profile-use")
        expect(page.get_by_test_id(TOAST)).to_contain_text("applies from the next image on", timeout=PATIENCE_MS)
        truth(page, "feed-forward-chunks", "applied")
        truth(page, "attention-slicing", "no_effect")
        expect(page.locator("#zs-truth-attention-slicing")).to_contain_text("Feed-forward chunks do that job")
        expect(page.locator("#zs-profile-live")).to_contain_text("without effect: Attention slicing")
        truth(page, "compile", "off")
        choose(page, "exact")
        page.click("#zs-profile-use")
        truth(page, "feed-forward-chunks", "off")


def test_the_plan_is_a_sentence_that_goes_with_the_size_and_can_be_used(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        open_memory(page)
        sentence = page.locator("#zs-plan .zs-sentence")
        expect(sentence).to_contain_text(re.compile(r"exact fits: [\d.]+ of [\d.]+ GiB at its peak"))
        before = page.locator("#zs-plan .zs-number").nth(2).text_content()
        page.fill("#zs-plan-width input", "512")
        page.fill("#zs-plan-height input", "512")
        expect(page.locator("#zs-plan .zs-number").nth(2)).not_to_have_text(str(before), timeout=PATIENCE_MS)
        page.fill("#zs-plan-width input", "130")
        expect(page.locator("#zs-plan")).to_contain_text("128", timeout=PATIENCE_MS)
        expect(page.locator("#zs-plan-use")).to_be_disabled()
        page.fill("#zs-plan-width input", "512")
        expect(sentence).to_be_visible(timeout=PATIENCE_MS)
        page.click("#zs-plan-use")
        expect(page.get_by_test_id(TOAST)).to_contain_text("exact applies from the next image on", timeout=PATIENCE_MS)


def test_two_profiles_are_measured_and_the_table_is_read(browser: Browser, app_url: str):
    with opened(browser, app_url, accept_downloads=True) as page:
        open_memory(page)
        page.get_by_role("tab", name="Measure", exact=True).click()
        page.click("#zs-measure")  # done within a second: that stop can be clicked meanwhile is the next test's
        rows = page.locator("#zs-measured tbody tr")
        expect(rows).to_have_count(2, timeout=PATIENCE_MS)
        expect(page.locator("#zs-measure")).to_be_enabled(timeout=PATIENCE_MS)
        expect(rows.nth(0)).to_contain_text(re.compile(r"exact.*[\d.]+ MiB.*[\d.]+ s.*identical"))
        expect(rows.nth(1)).to_contain_text(re.compile(r"chunked.*[\d.]+ MiB.*[\d.]+ s"))
        expect(page.locator("#zs-measured .zs-plot-line")).to_have_count(8)
        with page.expect_download() as download:
            page.click("#zs-measure-json")
        kept = json.loads(Path(download.value.path()).read_text("utf-8"))
        assert [row["profile"]["name"] for row in kept][-2:] == ["exact", "chunked"]
        page.reload()
        open_memory(page)
        page.get_by_role("tab", name="Measure", exact=True).click()
        expect(rows).to_have_count(2, timeout=PATIENCE_MS)  # they were kept


def test_a_measuring_is_stopped(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        open_memory(page)
        page.fill("#zs-plan-width input", "512")
        page.fill("#zs-plan-height input", "512")
        page.get_by_role("tab", name="Measure", exact=True).click()
        page.click("#zs-measure")
        page.click("#zs-measure-stop")
        expect(page.locator("#zs-measure-progress")).to_contain_text("Stopped.", timeout=PATIENCE_MS)
        expect(page.locator("#zs-measure")).to_be_enabled()


def test_a_contradiction_is_refused_in_chinese_with_the_pair_named(browser: Browser, app_url: str):
    with opened(browser, app_url, locale="zh-CN") as page:
        open_memory(page, "内存")
        page.locator("#zs-fp8-storage input").check()
        page.locator("#zs-compile input").check()
        clash = page.locator("#zs-profile-clash")
        expect(clash).to_contain_text(re.compile("编译.*fp8.*不能同时"), timeout=PATIENCE_MS)
        page.click("#zs-profile-use")
        expect(page.get_by_test_id(TOAST)).to_contain_text(re.compile("编译.*fp8.*不能同时"), timeout=PATIENCE_MS)
        page.locator("#zs-compile input").uncheck()
        expect(clash).not_to_contain_text("fp8")


def test_a_profile_is_saved_exported_deleted_and_imported(browser: Browser, app_url: str, tmp_path: Path):
    with opened(browser, app_url, accept_downloads=True) as page:
        open_memory(page)
        page.fill("#zs-embedding-cache input", "7")
        page.fill("#zs-profile-name input", "my card")
        page.click("#zs-profile-save")
        expect(page.get_by_test_id(TOAST)).to_contain_text("my card is saved.", timeout=PATIENCE_MS)
        expect(page.locator("#zs-profile input")).to_have_value(re.compile("my card"))  # the toast comes before it
        with page.expect_download() as download:
            page.click("#zs-profile-export")
        file = tmp_path / "my card.json"
        file.write_bytes(Path(download.value.path()).read_bytes())
        assert json.loads(file.read_text("utf-8"))["embedding_cache"] == 7
        page.click("#zs-profile-delete")
        expect(page.get_by_text("my card is deleted.")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#zs-embedding-cache input")).to_have_value("32")
        take_in(page, file)
        expect(page.locator("#zs-embedding-cache input")).to_have_value("7", timeout=PATIENCE_MS)
        expect(page.locator("#zs-profile-name input")).to_have_value("my card")
        file.write_text('{"schema": 1, "model_offload": true, "group_offload": "block"}', "utf-8")
        take_in(page, file)
        toasts = page.get_by_test_id(TOAST)
        expect(toasts.filter(has_text="exclude each other")).to_be_visible(timeout=PATIENCE_MS)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_overflows_on_a_phone(browser: Browser, app_url: str, locale: str):
    with opened(browser, app_url, locale=locale, viewport={"width": 390, "height": 844}) as page:
        open_memory(page, "Memory" if locale == "en-US" else "内存")
        assert overflow(page) <= 0
        page.get_by_role("tab").last.click()
        expect(page.locator("#zs-measure")).to_be_visible()
        assert overflow(page) <= 0
