"""The page: header, tabs, look. Built once per language; imports neither torch nor any model library."""

from pathlib import Path
from typing import Any

import gradio as gr

from zimage_studio.messages import Lang
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.api.endpoints import add_api
from zimage_studio.ui.compress.tab import CompressTab
from zimage_studio.ui.doors import LOCAL, PRIVATE
from zimage_studio.ui.generate_tab import add_generate_tab, refresh_models, use_model
from zimage_studio.ui.history_tab import add_history_tab
from zimage_studio.ui.memory.tab import MemoryTab, slim
from zimage_studio.ui.refine.grid_watch import VISITOR_JS
from zimage_studio.ui.refine.tab import RefineTab
from zimage_studio.ui.replay.tab import ReplayTab
from zimage_studio.ui.texts import Texts

ASSETS = Path(__file__).parent / "assets"
CHIP_S = 2.0
STYLES = ("studio.css", "refine.css", "memory.css", "compress.css", "compress_lab.css")
SWEEP_S = (3600, 24 * 3600)
FONTS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "sans-serif",
)  # fmt: skip
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def build_page(studio: Studio, lang: Lang, *, with_api: bool) -> gr.Blocks:
    """The page in `lang`. `with_api` adds the public endpoints: one page carries them, or clients would see two."""
    t = Texts(lang)
    with gr.Blocks(analytics_enabled=False, title=t("app_name"), fill_width=True, delete_cache=SWEEP_S) as page:
        with gr.Row(elem_classes="zs-header"):
            gr.HTML(present.name(t))
            gauge = gr.HTML(slim(studio, t), elem_id="zs-slim")
            chip = gr.HTML(present.chip(studio.manager.state, "", t), elem_id="zs-chip")
            gr.HTML(present.language_link(t))
        with gr.Tabs(elem_id="zs-tabs") as tabs:
            with gr.Tab(t("tab_generate"), id="generate"):
                controls, stage = add_generate_tab(studio, t)
            with gr.Tab(t("tab_replay"), id="replay") as replaying:
                replay = ReplayTab(studio, tabs, replaying, t)
            with gr.Tab(t("tab_refine"), id="refine") as refining:
                refine = RefineTab(studio, tabs, refining, t)
            with gr.Tab(t("tab_history"), id="history") as history:
                view = add_history_tab(studio, controls, tabs, history, t)
            with gr.Tab(t("tab_memory"), id="memory") as memory:
                MemoryTab(studio, tabs, memory, t)
            with gr.Tab(t("tab_compress"), id="compress") as compress:
                compression = CompressTab(studio, tabs, compress, t)
        use_model(studio, controls, tabs, *compression.use, t)
        replay.offer(stage.replay, stage.chosen_id)
        replay.offer(view.replay, view.chosen)
        refine.offer(stage.refine, stage.chosen_id)
        refine.offer(view.refine, view.chosen)
        refine.offer(*replay.refine)

        listed = gr.State(None)
        picker = [controls.model, listed]

        def on_tick(seen: object) -> tuple[Any, ...]:
            """The state of the model, and the models that jobs have made meanwhile."""
            state, models = studio.manager.state, studio.models.list()
            names = {model.key: model.name for model in models}
            told = present.chip(state, names.get(state.model, state.model), t), slim(studio, t)
            return *told, *refresh_models(models, seen)

        gr.Timer(CHIP_S).tick(on_tick, listed, [chip, gauge, *picker], **PRIVATE)
        page.load(lambda: refresh_models(studio.models.list()), None, picker, **PRIVATE)
        page.load(None, None, refine.visitor, js=VISITOR_JS, **LOCAL)
        if with_api:
            add_api(studio)
    return page


def theme() -> gr.themes.Base:
    """Neutral greys, one accent, the fonts of the machine: nothing is fetched from elsewhere."""
    accent, grey = gr.themes.colors.teal, gr.themes.colors.zinc
    return gr.themes.Base(
        primary_hue=accent, secondary_hue=grey, neutral_hue=grey,
        font=[_font(name) for name in FONTS], font_mono=[_font(name) for name in MONO],
        radius_size=gr.themes.sizes.radius_md, spacing_size=gr.themes.sizes.spacing_md,
    ).set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_400", input_placeholder_color_dark="*neutral_500",
        body_background_fill="*neutral_50", body_background_fill_dark="#111113",
        background_fill_primary="white", background_fill_primary_dark="#19191c",
        block_background_fill="white", block_background_fill_dark="#19191c",
        block_border_color="*neutral_200", block_border_color_dark="#2a2a2f", block_border_width="1px",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_600", block_title_text_color_dark="*neutral_300",
        block_title_text_weight="500", block_shadow="none", block_shadow_dark="none",
        input_background_fill="*neutral_50", input_background_fill_dark="#212125",
        input_border_color="*neutral_300", input_border_color_dark="#35353b",
        input_border_color_focus="*primary_500", input_border_color_focus_dark="*primary_500",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        button_secondary_background_fill="white", button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="#26262b", button_secondary_background_fill_hover_dark="#303037",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="#3a3a41",
        button_border_width="1px", button_medium_text_weight="500", button_small_text_weight="400",
    )  # fmt: skip


def css() -> str:
    """The style sheet."""
    return "".join((ASSETS / name).read_text(encoding="utf-8") for name in STYLES)


def head(lang: Lang = "en") -> str:
    """What goes into <head>: the language for screen readers (Gradio leaves it at "en"), and the keyboard."""
    script = (ASSETS / "studio.js").read_text(encoding="utf-8")
    tag = "zh-CN" if lang == "zh" else "en"
    return (
        '<meta name="color-scheme" content="light dark">'
        f'<script>document.documentElement.lang = "{tag}";\n{script}</script>'
    )


def _font(name: str) -> gr.themes.Font:
    return gr.themes.Font(name)
