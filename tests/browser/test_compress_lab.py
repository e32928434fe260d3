"""Understand and judge in a real browser: a part switched off and on again, a map, a report card."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.test_generate import opened, overflow
from tests.conftest import TINY
from tests.core.evaluation.test_card import card
from tests.live_app import running_app
from tests.pruning_plans import plan_of
from zimage_studio.services.plans import PlanStore

pytestmark = pytest.mark.browser
CELL = '#zs-heat [data-pick="layers.2.attention"]'
OTHER = '#zs-heat [data-pick="layers.4.feed_forward"]'
TAKEN = "already-there"
MAP_MS = 300_000  # a process of its own that loads the model
HEAD = '#zs-heat [data-pick="layers.1.head.3"]'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, with a report card of the embedded model where the card of a foreign model lies."""
    data = tmp_path_factory.mktemp("lab") / "data"
    folder = data / "reports" / "tiny" / "report"
    found = card("a smaller model", 6_000_000)
    for pair in found.pairs:
        for number, file in enumerate(pair.files.values()):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (80 * number, 100, 200)).save(folder / file)
    (folder / "card.json").write_text(found.to_json(), "utf-8")
    PlanStore(data / "plans").save(plan_of(TINY, ("ffn",), ratio=0.4), TAKEN)
    with running_app(data) as address:
        yield address


def go_to(page: Page, step: int) -> None:
    page.get_by_role("tab", name="Compress", exact=True).click()
    page.locator("#zs-path [role=tab]").nth(step).click()


def pictures(page: Page, slider: str) -> list[NDArray[np.uint8]]:
    """The two pictures that a slider shows."""
    found = page.locator(f"{slider} img")
    expect(found).to_have_count(2)
    answers = [page.request.get(str(image.evaluate("(image) => image.src"))) for image in found.all()]
    return [np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")) for answer in answers]


def test_a_part_is_switched_off_and_on_again_by_mouse_and_keyboard(browser: Browser, url: str):
    with opened(browser, url) as page:
        go_to(page, 0)
        page.locator(CELL).click()
        expect(page.locator("#zs-lab-words")).to_contain_text("Without Block 2 · Attention")
        expect(page.locator(CELL)).to_have_attribute("aria-pressed", "true")
        whole, without = pictures(page, "#zs-lab-slider")
        assert whole.shape == without.shape == (128, 128, 3)
        assert not np.array_equal(whole, without)
        page.locator('[data-pick="heads:layers.1"]').focus()
        page.keyboard.press("Enter")
        page.locator(HEAD).focus()
        page.keyboard.press("Space")
        expect(page.locator("#zs-lab-words")).to_contain_text("Without Block 1 · Head 3, Block 2 · Attention")
        assert page.evaluate("document.activeElement.dataset.pick") == "layers.1.head.3"  # the keyboard keeps its place
        chips = page.locator("#zs-lab-out button")
        chips.first.click()
        expect(chips).to_have_count(1)
        chips.first.click()
        expect(page.locator("#zs-lab-slider")).not_to_be_visible()
        expect(page.locator("#zs-heat [aria-pressed=true]")).to_have_count(0)


def test_quick_clicks_all_count(browser: Browser, url: str):
    with opened(browser, url) as page:
        go_to(page, 0)
        expect(page.locator(CELL)).to_be_visible()
        page.evaluate(
            """() => [...document.querySelectorAll('#zs-heat [data-pick$=".attention"]')]
                .slice(0, 5).forEach((cell) => cell.click())"""
        )
        expect(page.locator("#zs-lab-out button")).to_have_count(5)
        expect(page.locator("#zs-lab-words")).to_contain_text("and 2 more parts")
        expect(page.locator("#zs-heat [aria-pressed=true]")).to_have_count(5)


def test_clicks_that_overtake_each_other_all_count(browser: Browser, url: str):
    """The browser sends each click on a connection of its own: here the last one comes first."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        if '"revision"' not in (route.request.post_data or ""):
            route.continue_()
            return
        held.append(route)
        if len(held) == 4:
            for late in reversed(held):
                late.continue_()

    with opened(browser, url) as page:
        go_to(page, 0)
        expect(page.locator(CELL)).to_be_visible()
        page.route("**/queue/join*", hold)
        page.evaluate(
            """() => ['[data-pick="layers.1.attention"]', '[data-pick="layers.2.attention"]',
                '[data-pick="heads:layers.3"]', '[data-pick="layers.4.attention"]']
                .forEach((cell) => document.querySelector(`#zs-heat ${cell}`).click())"""
        )
        words = page.locator("#zs-lab-words")
        expect(words).to_contain_text("Block 1 · Attention, Block 2 · Attention, Block 4 · Attention")
        expect(page.locator("#zs-lab-out button")).to_have_count(3)
        expect(page.locator("#zs-heat .zs-heads-row")).to_have_count(1)


def test_a_map_is_measured_and_its_cell_knocks_out(browser: Browser, url: str):
    with opened(browser, url) as page:
        go_to(page, 0)
        page.fill("#zs-heat-prompts input", "1")
        page.click("#zs-heat-measure")
        expect(page.locator("#zs-now")).to_contain_text("Sensitivity map")
        expect(page.locator("#zs-heat .zs-heat-legend")).to_contain_text("Lost without it", timeout=MAP_MS)
        expect(page.locator(OTHER)).to_contain_text(".")
        page.locator(OTHER).click()
        expect(page.locator("#zs-lab-words")).to_contain_text("Without Block 4 · Feed-forward")
        page.locator("#zs-heat-view input").click()
        page.get_by_role("option", name="Attention by step").click()
        expect(page.locator("#zs-heat tbody tr").first.locator("button")).to_have_count(8)


def test_a_plan_is_replaced_only_where_that_is_ticked(browser: Browser, url: str):
    with opened(browser, url) as page:
        go_to(page, 1)
        tick = page.locator("#zs-plan-overwrite input")
        expect(tick).not_to_be_visible()
        expect(page.locator("#zs-cut-plan")).to_contain_text("L1 norm")
        page.fill("#zs-plan-name textarea, #zs-plan-name input", TAKEN)
        expect(tick).to_be_visible()
        page.click("#zs-plan-make")
        expect(page.get_by_text(f"There is a plan called {TAKEN} already")).to_be_visible()
        tick.check()
        page.click("#zs-plan-make")
        expect(page.locator("#zs-jobs li[data-kind=plan][data-state=done]")).to_have_count(1, timeout=MAP_MS)
        expect(page.locator("#zs-cut-plan")).to_contain_text("Taylor")


def test_a_report_card_is_opened_with_its_pairs_and_files(browser: Browser, url: str):
    with opened(browser, url) as page:
        go_to(page, 4)
        expect(page.locator("#zs-report")).to_contain_text("Report card: a smaller model")
        expect(page.locator("#zs-report [data-state=met]")).to_contain_text("30 % smaller")
        expect(page.locator("#zs-report")).to_contain_text("Not measured")
        page.locator("#zs-pairs button").nth(0).click()
        expect(page.locator("#zs-pair-slider img").first).to_be_visible()
        parent, model = pictures(page, "#zs-pair-slider")
        assert not np.array_equal(parent, model)
        page.locator("#zs-pairs button").nth(1).click()
        expect(page.locator("#zs-pair-words")).to_contain_text("Seed 1.")
        expect(page.locator("#zs-frontier svg")).to_have_count(2)
        with page.expect_download() as download:
            page.click("#zs-card-json")
        assert Path(download.value.path()).read_text("utf-8") == card("a smaller model", 6_000_000).to_json()
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator("#zs-report")).to_be_visible()
        assert overflow(page) <= 0
