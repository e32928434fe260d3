"""Replay in a real browser: hand in a picture, read what was understood, make it again, read the verdict."""

import json
import re
from pathlib import Path

import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_generate import fill, finished, opened, overflow
from tests.core import foreign_samples as foreign
from tests.live_app import running_app

pytestmark = pytest.mark.browser
SLIDER = "#zs-slider [data-testid=slider]"


def made_by_the_app(url: str, prompt: str = "a red heart", **values: object) -> tuple[Path, dict]:
    """A PNG of the running app, and its entry."""
    files, entries = Client(url, verbose=False).predict(prompt, **{"seed": "7", **values}, api_name="/generate_image")
    return Path(files[0]), entries[0]


def open_replay(page: Page) -> None:
    page.get_by_role("tab").nth(1).click()
    expect(page.locator("#zs-replay")).to_be_visible()


def drop(page: Page, file: Path) -> None:
    """By the drop zone itself, as a mouse would."""
    page.locator("#zs-drop input[type=file]").set_input_files(file)
    expect(page.locator("#zs-reading .zs-card")).to_contain_text(file.name)


def replay(page: Page) -> None:
    page.click("#zs-replay")
    expect(page.locator("#zs-verdict .zs-verdict")).to_be_visible()


def handle(page: Page) -> float:
    """How far the slider's handle is from the left, in px."""
    style = page.locator(SLIDER).get_attribute("style") or ""
    match = re.search(r"translateX\(([\d.]+)px\)", style)
    assert match, style
    return float(match[1])


def test_a_dropped_picture_is_identical_after_a_restart_and_the_slider_moves(browser: Browser, tmp_path: Path):
    data, copy = tmp_path / "data", tmp_path / "我的心.png"
    with running_app(data) as url:
        file, entry = made_by_the_app(url, seed=str(2**64 - 1))
        copy.write_bytes(file.read_bytes())
    with running_app(data) as url, opened(browser, url) as page:
        open_replay(page)
        drop(page, copy)
        expect(page.locator("#zs-reading")).to_contain_text("Made by Z-Image Studio")
        expect(page.locator("#zs-reading")).to_contain_text("我的心.png")
        expect(page.locator("#zs-replay-seed input")).to_have_value(str(2**64 - 1))
        expect(page.locator("#zs-replay-prompt textarea")).to_have_value("a red heart")
        replay(page)
        expect(page.locator("[data-verdict=identical]")).to_contain_text("Identical: every pixel is the same.")
        expect(page.locator("[data-verdict=identical]")).to_contain_text(entry["pixels_sha256"])
        expect(page.locator("#zs-map img")).to_be_visible()
        expect(page.locator(".zs-map")).to_contain_text("nowhere")
        for image in page.locator("#zs-slider img").all():
            source = image.get_attribute("src") or ""
            assert source.endswith(".png"), source  # nothing lossy between the eye and the pixels
        box = page.locator(SLIDER).bounding_box()
        assert box
        before = handle(page)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
        page.mouse.down()
        page.mouse.move(box["x"] - 100, box["y"] + box["height"] / 3, steps=5)
        page.mouse.up()
        assert handle(page) < before - 50
        page.get_by_role("button", name="Half and half").press("Enter")  # the same without a mouse
        expect(page.locator(SLIDER)).to_have_attribute("style", re.compile(rf"translateX\({int(before)}"))


def test_what_a_person_changed_is_no_failed_replay(browser: Browser, app_url: str):
    file, _ = made_by_the_app(app_url)
    with opened(browser, app_url) as page:
        open_replay(page)
        drop(page, file)
        page.fill("#zs-replay-seed input", "8")
        replay(page)
        verdict = page.locator("[data-verdict=differs]")
        expect(verdict).to_contain_text("Changed by you: seed.")
        expect(verdict).to_contain_text(re.compile(r"PSNR\s*[\d.]+ dB"))
        expect(verdict.locator(".zs-differences")).to_contain_text("request.seed")
        expect(page.locator(".zs-map")).to_contain_text(re.compile("amplified"))


def test_an_image_of_a1111_shows_its_conversions_and_gets_a_comparison(browser: Browser, app_url: str, tmp_path: Path):
    picture = tmp_path / "a1111.png"
    text = "a blue house\nSteps: 8, Sampler: DPM++ 2M, CFG scale: 3, Seed: 5, Size: 128x128, Model: juggernaut, Odd: x"
    picture.write_bytes(foreign.png(parameters=text))
    with opened(browser, app_url) as page:
        open_replay(page)
        drop(page, picture)
        reading = page.locator("#zs-reading")
        expect(reading).to_contain_text("Made by A1111, Forge or SD.Next")
        guidance = reading.locator(".zs-converted tbody tr").filter(has_text="Guidance")
        expect(guidance).to_contain_text(re.compile(r"Guidance\s*3\s*2\s*CFG scale counts one more"))
        expect(reading.locator(".zs-converted")).to_contain_text("Studio samples with Euler only")
        expect(reading.locator(".zs-unknown")).to_contain_text("Odd")
        expect(reading).to_contain_text("names the model juggernaut, which is not here")
        expect(page.locator("#zs-replay-guidance input")).to_have_value("2")
        replay(page)
        expect(page.locator("[data-verdict=compared]")).to_contain_text("no verdict")  # the sample is 16×16
        expect(page.locator("#zs-replay-image img")).to_be_visible()
        expect(page.locator("#zs-slider")).not_to_be_visible()
        Image.new("RGB", (128, 128), "blue").save(picture)
        drop(page, picture)
        expect(reading).to_contain_text("Nothing here says how it was made")
        page.fill("#zs-replay-prompt textarea", "a blue house")
        replay(page)
        expect(page.locator("[data-verdict=compared]")).to_contain_text("a comparison, not a verdict")
        expect(page.locator("#zs-slider")).to_be_visible()


@pytest.mark.parametrize(
    ("locale", "sentence"),
    [("en-US", "Brief.png is not a PNG, JPEG or WebP file."), ("zh-CN", "Brief.png 不是 PNG、JPEG 或 WebP 文件")],
)
def test_a_file_that_is_no_picture_gives_a_plain_sentence(
    browser: Browser, app_url: str, tmp_path: Path, locale: str, sentence: str
):
    (tmp_path / "Brief.png").write_text("Liebe Oma", encoding="utf-8")
    with opened(browser, app_url, locale=locale) as page:
        open_replay(page)
        drop(page, tmp_path / "Brief.png")
        expect(page.locator("#zs-reading [role=alert]")).to_contain_text(sentence)


def test_a_text_is_read_as_soon_as_it_is_pasted(browser: Browser, app_url: str):
    _, entry = made_by_the_app(app_url, "a yellow star")
    with opened(browser, app_url) as page:
        open_replay(page)
        page.fill("#zs-paste textarea", "a tree\nSteps: 6, Sampler: Euler, CFG scale: 1, Seed: 99, Size: 128x128")
        expect(page.locator("#zs-reading")).to_contain_text("Made by A1111")
        expect(page.locator("#zs-replay-steps input")).to_have_value("6")
        page.fill("#zs-paste textarea", "18446744073709551615")
        expect(page.locator("#zs-reading")).to_contain_text("it was taken as the seed")
        expect(page.locator("#zs-replay-seed input")).to_have_value("18446744073709551615")
        page.fill("#zs-paste textarea", json.dumps(entry["recipe"]))
        expect(page.locator("#zs-reading")).to_contain_text("Made by Z-Image Studio")
        replay(page)
        expect(page.locator("[data-verdict=identical]")).to_be_visible()
        expect(page.locator("#zs-slider")).to_be_visible()  # History still has its picture


def test_generate_and_history_hand_their_image_over(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a green tree")
        page.fill("#zs-seed input", "21")
        page.click("#zs-generate")
        finished(page)
        page.click("#zs-to-replay")
        expect(page.locator("#zs-replay-seed input")).to_have_value("21")
        expect(page.locator("#zs-reading")).to_contain_text("a green tree")
        page.get_by_role("tab", name="History").click()
        page.locator("#zs-history-gallery .thumbnail-item").first.click()
        page.click("#zs-history-replay")
        expect(page.locator("#zs-reading")).to_contain_text("Made by Z-Image Studio")
        page.locator("#zs-recent .thumbnail-item").first.click()
        expect(page.locator("#zs-reading")).to_contain_text("Made by Z-Image Studio")
        replay(page)
        expect(page.locator("[data-verdict=identical]")).to_be_visible()


def test_a_replay_shows_its_steps_and_stops(browser: Browser, app_url: str):
    file, _ = made_by_the_app(app_url)
    with opened(browser, app_url) as page:
        open_replay(page)
        drop(page, file)
        page.fill("#zs-replay-steps input", "200")
        page.click("#zs-replay")
        expect(page.locator("#zs-replay-stage .zs-canvas img")).to_be_visible()
        expect(page.locator("#zs-replay-stage .zs-count")).to_contain_text(re.compile(r"Step \d+/200 · .* left"))
        page.click("#zs-replay-stop")
        expect(page.locator("#zs-replay-stage")).to_contain_text(re.compile(r"Stopped at step \d+/200"))
        expect(page.locator("#zs-replay-stop")).to_be_disabled()


def test_a_refused_value_is_told_and_the_page_goes_on(browser: Browser, app_url: str):
    file, _ = made_by_the_app(app_url)
    with opened(browser, app_url) as page:
        open_replay(page)
        drop(page, file)
        page.fill("#zs-replay-shift input", "99")
        page.click("#zs-replay")
        expect(page.get_by_test_id("toast-body")).to_contain_text("The shift is 99")
        expect(page.locator("#zs-replay-stop")).to_be_disabled()
        page.fill("#zs-replay-shift input", "")
        replay(page)
        expect(page.locator("[data-verdict=identical]")).to_be_visible()


def test_the_drop_zone_is_reached_and_named_by_the_keyboard(browser: Browser, app_url: str):
    with opened(browser, app_url, locale="zh-CN") as page:
        open_replay(page)
        zone = page.locator("#zs-drop button")
        zone.focus()
        expect(zone).to_have_attribute("aria-label", re.compile("把图片拖到这里"))
        with page.expect_file_chooser() as chooser:
            zone.press("Enter")
        assert not chooser.value.is_multiple()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_overflows_on_a_phone(browser: Browser, app_url: str, tmp_path: Path, locale: str):
    file, _ = made_by_the_app(app_url)
    long = tmp_path / ("n" * 120 + ".png")
    long.write_bytes(foreign.png(parameters=f"{'m' * 300}\nSteps: 8, Seed: 3, Size: 64x64, {'K' * 60}: {'v' * 300}"))
    with opened(browser, app_url, locale=locale, viewport={"width": 390, "height": 844}) as page:
        open_replay(page)
        assert overflow(page) <= 0
        drop(page, long)
        expect(page.locator("#zs-reading .zs-unknown")).to_be_visible()
        assert overflow(page) <= 0
        drop(page, file)
        page.fill("#zs-replay-seed input", "9")
        replay(page)
        expect(page.locator("#zs-map img")).to_be_visible()
        assert overflow(page) <= 0
        go, verdict, form = (
            page.locator(name).bounding_box() for name in ("#zs-replay", "#zs-verdict", "#zs-replay-prompt")
        )
        assert go and verdict and form
        assert go["y"] < verdict["y"] < form["y"]


def test_every_control_has_a_name(browser: Browser, app_url: str):
    file, _ = made_by_the_app(app_url)
    with opened(browser, app_url) as page:
        open_replay(page)
        drop(page, file)
        replay(page)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, select, a, summary")]
                .filter((e) => e.offsetParent !== null && !e.labels?.length && !e.ariaLabel && !e.title
                    && !e.textContent.trim() && !e.closest("label") && !e.getAttribute("aria-labelledby")
                    && !e.querySelector("img[alt]:not([alt=''])"))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
