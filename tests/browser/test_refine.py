"""Refine in a real browser: variations to click into, grids that are stopped and go on, pictures drawn over."""

import re
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.test_generate import fill, finished, opened, overflow
from tests.live_app import running_app
from zimage_studio.core.metadata.png import read_own_recipe, read_texts
from zimage_studio.records.grid import GridPlan

pytestmark = pytest.mark.browser
PROMPT = "a big red heart on a white background"
GENERATE, REPLAY, REFINE, HISTORY = "Generate", "Replay", "Refine", "History"


@pytest.fixture(scope="module")
def made(app_url: str) -> dict[str, Any]:
    """An image of the running app with values that no slider would stop at."""
    return image_of(
        app_url, seed=str(2**64 - 1), guidance=1.2345, variety=0.1234, variation_seed="5", variation_strength=0.0567
    )


def image_of(url: str, **values: Any) -> dict[str, Any]:
    _, entries = Client(url, verbose=False).predict(PROMPT, **{"steps": 4, **values}, api_name="/generate_image")
    return entries[0]


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def refine_newest(page: Page) -> None:
    open_tab(page, REFINE)
    page.locator("#zs-refine-recent .thumbnail-item").first.click()
    expect(page.locator("#zs-base")).to_be_visible()


def choose_mode(page: Page, number: int) -> None:
    page.locator("#zs-mode label").nth(number).click()


def cells(page: Page) -> Locator:
    return page.locator("#zs-grid button.zs-cell")


def make(page: Page) -> None:
    """One image, until it is there."""
    page.click("#zs-make")
    expect(page.locator("#zs-enter")).to_be_visible()


def test_an_unedited_form_makes_every_pixel_again(browser: Browser, app_url: str, made: dict[str, Any]):
    with opened(browser, app_url) as page:
        refine_newest(page)
        expect(page.locator("#zs-refine-seed input, #zs-refine-seed textarea")).to_have_value(str(2**64 - 1))
        make(page)
        expect(page.locator("#zs-result-changes")).to_have_text("Every pixel is the same as in the base.")


def test_one_field_is_changed_marked_and_taken_back(browser: Browser, app_url: str, made: dict[str, Any]):
    with opened(browser, app_url) as page:
        refine_newest(page)
        page.fill("#zs-refine-steps input", "6")
        expect(page.locator("#zs-refine-marks")).to_contain_text("Steps 4 → 6")
        marked = page.locator("#zs-refine-steps").evaluate("(e) => getComputedStyle(e).boxShadow")
        assert marked != "none"
        page.click("#zs-refine-undo")
        expect(page.locator("#zs-refine-steps input")).to_have_value("4")
        expect(page.locator("#zs-refine-marks")).not_to_contain_text("Steps")
        page.fill("#zs-refine-steps input", "6")
        make(page)
        expect(page.locator("#zs-result-changes")).to_contain_text("Steps 4 → 6")
        expect(page.locator("#zs-refine-slider")).to_be_visible()
        expect(page.locator("#zs-base .zs-family")).to_contain_text(re.compile(r"Made from this: \d"))
        page.click("#zs-enter")
        expect(page.locator(".zs-trail li")).to_have_count(2)
        expect(page.locator("#zs-refine-steps input")).to_have_value("6")


def test_a_neighbourhood_is_made_and_a_cell_entered_and_left_again(
    browser: Browser, app_url: str, made: dict[str, Any]
):
    with opened(browser, app_url) as page:
        refine_newest(page)
        choose_mode(page, 1)
        page.click("#zs-make")
        expect(page.locator(".zs-cell-forming")).to_be_visible()  # they appear one by one
        expect(cells(page)).to_have_count(9)
        name = str(cells(page).nth(2).get_attribute("aria-label"))
        seed, strength = re.fullmatch(r"Variation seed (\d+), strength ([\d.]+)", name).groups()  # type: ignore[union-attr]
        cells(page).nth(2).click()
        expect(page.locator(".zs-trail li")).to_have_count(2)
        expect(page.locator("#zs-base")).to_contain_text(f"variation {seed} at {strength}")
        expect(page.locator("#zs-refine-image img")).to_be_visible()
        page.click("#zs-make")  # around that one
        expect(cells(page)).to_have_count(9)
        cells(page).nth(0).click()
        expect(page.locator(".zs-trail li")).to_have_count(3)
        page.get_by_role("button", name="All fields").click()
        expect(page.locator(".zs-chain .zs-note")).to_contain_text(f"seed {seed} at {strength}")
        page.locator(".zs-trail button").first.click()  # back to where it began, with its grid
        expect(page.locator(".zs-trail")).not_to_be_visible()
        expect(cells(page).nth(2)).to_have_attribute("aria-label", name)


def test_a_grid_is_stopped_and_resumed_after_a_restart(browser: Browser, tmp_path: Path):
    data = tmp_path / "data"
    with running_app(data) as url:
        image_of(url, seed="7")
        with opened(browser, url) as page:
            refine_newest(page)
            choose_mode(page, 2)
            page.fill("#zs-x-values textarea", "7, 8")
            page.get_by_label("Rows", exact=True).click()
            page.get_by_role("option", name="Steps").click()
            expect(page.locator("#zs-y-values textarea")).to_have_value("2, 4, 8")
            page.fill("#zs-y-values textarea", "4, 50, 51")
            expect(page.locator("#zs-axes-note")).to_contain_text("2 × 3 = 6 images")
            page.click("#zs-make")
            expect(cells(page).nth(1)).to_be_visible()
            expect(page.locator("#zs-grid-progress")).to_contain_text(re.compile(r"of 6 images · .* left"))
            page.click("#zs-refine-stop")
            expect(page.locator("#zs-grid-progress")).to_contain_text("Stopped. Resume makes the rest.")
            assert cells(page).count() < 6
            heads = page.locator("#zs-grid th[scope=col]").all_inner_texts()
            assert (heads, page.locator("#zs-grid th[scope=row]").all_inner_texts()) == (
                ["7", "8"],
                ["4", "50", "51"],
            )
    with running_app(data) as url, opened(browser, url, accept_downloads=True) as page:
        open_tab(page, REFINE)
        page.get_by_label("Earlier grids").click()
        page.get_by_role("option", name=re.compile("Seed × Steps · stopped at")).click()
        expect(page.locator("#zs-base")).to_contain_text(PROMPT)
        page.click("#zs-resume")
        expect(page.locator("#zs-grid-progress")).to_contain_text("6 of 6 images")
        expect(cells(page)).to_have_count(6)
        cells(page).nth(0).click()
        expect(page.locator("#zs-result-changes")).to_contain_text("Every pixel is the same")  # seed 7, 4 steps
        cells(page).nth(1).click()
        expect(page.locator("#zs-result-changes")).to_contain_text("Seed 7 → 8")
        with page.expect_download() as download:
            page.click("#zs-sheet")
        plan = GridPlan.from_json(read_texts(Path(download.value.path()))["zimage_studio_grid"])
        assert [axis.field for axis in (plan.x, plan.y) if axis] == ["seed", "steps"]


def test_a_reload_does_not_lose_a_running_grid(browser: Browser, app_url: str, made: dict[str, Any]):
    with opened(browser, app_url) as page:
        refine_newest(page)
        choose_mode(page, 2)
        page.fill("#zs-x-values textarea", "1, 2, 3, 4, 5, 6")
        page.get_by_role("button", name="All fields").click()
        page.fill("#zs-refine-steps input", "60")
        page.click("#zs-make")
        expect(page.locator(".zs-cell-forming")).to_be_visible()
        page.reload()
        expect(page.locator("#zs-prompt textarea")).to_be_visible()
        open_tab(page, REFINE)
        with opened(browser, app_url) as stranger:
            open_tab(stranger, REFINE)
            expect(stranger.locator("#zs-refine-recent .thumbnail-item").first).to_be_visible()
            if stranger.get_by_label("Earlier grids").is_visible():
                stranger.get_by_label("Earlier grids").click()
                expect(stranger.get_by_role("option", name=re.compile("being made"))).to_have_count(0)
        page.get_by_label("Earlier grids").click()
        page.get_by_role("option", name=re.compile("being made")).click()
        page.click("#zs-refine-stop")
        expect(page.locator("#zs-resume")).to_be_visible()


def test_a_dropped_jpeg_is_drawn_over(browser: Browser, app_url: str, tmp_path: Path):
    photo = tmp_path / "我的 <b>photo.jpg"
    Image.effect_mandelbrot((500, 400), (-3, -2.5, 2, 2.5), 60).convert("RGB").save(photo)
    with opened(browser, app_url, accept_downloads=True) as page:
        open_tab(page, REFINE)
        page.locator("#zs-refine-drop input[type=file]").set_input_files(photo)
        card = page.locator("#zs-base")
        expect(card).to_contain_text("我的 <b>photo.jpg")
        expect(card).to_contain_text("500×400 px, drawn at 144×112")
        page.click("#zs-make")
        expect(page.get_by_test_id("toast-body")).to_contain_text("The prompt is empty. Say")
        page.fill("#zs-refine-prompt textarea", "a blue star")
        page.fill("#zs-refine-steps input", "4")
        make(page)
        expect(page.locator("#zs-refine-slider")).to_be_visible()
        with page.expect_download() as download:
            page.click("#zs-refine-download")
        recipe = read_own_recipe(Path(download.value.path()))
        assert recipe is not None
        assert (recipe.request.width, recipe.request.height, recipe.request.strength) == (144, 112, 0.6)
        assert recipe.parent == recipe.request.source
        page.click("#zs-enter")
        expect(page.locator(".zs-trail li")).to_have_count(2)
        page.locator(".zs-trail button").first.click()  # the picture itself, with what the form held
        expect(card).to_contain_text("photo")
        page.locator("#zs-base .zs-family button").first.click()
        expect(card).to_contain_text("a blue star")


def test_an_image_is_enlarged_and_its_lineage_is_in_history(browser: Browser, app_url: str, made: dict[str, Any]):
    mother = image_of(app_url, seed="77")
    with opened(browser, app_url) as page:
        refine_newest(page)
        expect(page.locator("#zs-base")).to_contain_text("Seed 77")
        page.get_by_role("button", name="Enlarge 2× · 256×256").click()
        marks = page.locator("#zs-refine-marks")
        expect(marks).to_contain_text("Width 128 → 256")
        expect(marks).to_contain_text("Start from Noise → This picture")
        expect(page.locator("#zs-refine-strength input[type=number]")).to_have_value("0.3")
        make(page)
        expect(page.locator("#zs-refine-slider")).to_be_visible()  # the base is scaled to lie under it
        open_tab(page, HISTORY)
        page.locator("#zs-history-gallery .thumbnail-item").first.click()
        detail = page.locator(".zs-detail")
        expect(detail).to_contain_text("256 × 256")
        expect(detail.locator("#zs-history-family")).to_contain_text("Made from")
        detail.locator("#zs-history-family button").first.click()  # to its parent
        expect(detail).to_contain_text(mother["pixels_sha256"][:16])
        expect(detail.locator("#zs-history-family")).to_contain_text("Made from this: 1")
        detail.locator("#zs-history-family button").first.click()  # and back to the child
        expect(detail).to_contain_text("256 × 256")
        page.get_by_role("button", name="Use these settings").click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("start picture, which Generate does not have")


def test_every_tab_hands_its_image_on(browser: Browser, app_url: str):
    with opened(browser, app_url) as page:
        fill(page, "a green tree", steps=3)
        page.fill("#zs-seed input", "31")
        page.locator("#zs-variety input[type=number]").fill("0.5")
        page.click("#zs-generate")
        finished(page)
        expect(page.locator("#zs-recipe")).to_contain_text("Variety")
        page.click("#zs-to-refine")
        expect(page.locator("#zs-base")).to_contain_text("a green tree")
        expect(page.locator("#zs-refine-variety input[type=number]")).to_have_value("0.5")
        open_tab(page, REPLAY)
        page.locator("#zs-recent .thumbnail-item").first.click()
        expect(page.locator("#zs-reading")).to_contain_text("a green tree")
        page.click("#zs-replay")
        expect(page.locator("#zs-verdict")).to_contain_text("Identical")
        page.click("#zs-replay-refine")
        expect(page.locator("#zs-make")).to_be_visible()
        expect(page.locator("#zs-base")).to_contain_text("Seed 31")
        page.press("#zs-refine-steps input", "Control+Enter")
        expect(page.locator("#zs-result-changes")).to_contain_text("Every pixel is the same")


def test_what_cannot_be_varied_is_told_before_and_on_make(browser: Browser, app_url: str, made: dict[str, Any]):
    with opened(browser, app_url) as page:
        refine_newest(page)
        choose_mode(page, 2)
        page.fill("#zs-x-values textarea", "1, x")
        page.click("#zs-make")
        expect(page.get_by_test_id("toast-body")).to_contain_text("The seed is 'x'; it must be a whole number")
        page.get_by_label("Columns", exact=True).click()
        page.get_by_role("option", name="Prompt", exact=True).click()
        expect(page.locator("#zs-axes-note")).to_contain_text("The axis prompt has no values")
        page.fill("#zs-x-values textarea", "blue, green")
        expect(page.locator("#zs-axes-note")).to_contain_text("the first value is looked for in it")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_overflows_on_a_phone(browser: Browser, app_url: str, made: dict[str, Any], locale: str):
    phone = {"width": 390, "height": 844}
    with opened(browser, app_url, locale=locale, viewport=phone) as page:
        page.get_by_role("tab").nth(2).click()
        assert overflow(page) <= 0
        page.locator("#zs-refine-recent .thumbnail-item").first.click()
        expect(page.locator("#zs-base")).to_be_visible()
        assert overflow(page) <= 0
        choose_mode(page, 2)
        page.fill("#zs-x-values textarea", "1, 2, 3, 4, 5, 6")
        page.fill("#zs-y-values textarea", "0")
        page.click("#zs-make")
        expect(cells(page)).to_have_count(6)
        box = page.locator(".zs-grid-box")
        assert box.evaluate("(e) => e.scrollWidth > e.clientWidth")  # it scrolls in itself
        assert overflow(page) <= 0
        cells(page).first.click()
        expect(page.locator("#zs-result-changes")).to_be_visible()
        assert overflow(page) <= 0


def test_every_control_has_a_name(browser: Browser, app_url: str, made: dict[str, Any]):
    with opened(browser, app_url) as page:
        refine_newest(page)
        for mode in range(3):
            choose_mode(page, mode)
            nameless = page.evaluate(
                """() => [...document.querySelectorAll("button, input, textarea, select, a")]
                    .filter((e) => e.offsetParent !== null && !e.labels?.length && !e.ariaLabel && !e.title
                        && !e.textContent.trim() && !e.closest("label") && !e.getAttribute("aria-labelledby")
                        && !e.querySelector("img[alt]:not([alt=''])"))
                    .map((e) => e.outerHTML.slice(0, 200))"""
            )
            assert nameless == []
