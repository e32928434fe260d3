"""The History tab: every image that was kept, newest first."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms, present
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, shown
from zimage_studio.ui.family import PICK, family_html, family_of, pick_of
from zimage_studio.ui.generate_tab import Controls
from zimage_studio.ui.picker import picked
from zimage_studio.ui.texts import Texts

PAGE_ROWS = 24
SCROLL_TO_DETAIL = """() => { if (innerWidth <= 860)
    setTimeout(() => document.querySelector(".zs-detail")?.scrollIntoView({behavior: "smooth"}), 150); }"""


@dataclass(frozen=True, slots=True)
class History:
    """The widgets of the tab. `ids` are the images of the page, `chosen` the one that is shown large."""

    search: gr.Textbox
    gallery: gr.Gallery
    newer: gr.Button
    older: gr.Button
    words: gr.HTML
    page: gr.State
    ids: gr.State
    chosen: gr.State
    hint: gr.HTML
    detail: gr.Column
    image: gr.Image
    download: gr.DownloadButton
    use: gr.Button
    replay: gr.Button
    refine: gr.Button
    delete: gr.Button
    question: gr.Group
    delete_yes: gr.Button
    delete_no: gr.Button
    recipe: gr.HTML
    family: gr.HTML

    @property
    def list_outputs(self) -> list[Any]:
        """What changes with the page."""
        return [self.gallery, self.newer, self.older, self.words, self.page, self.ids, self.hint]

    @property
    def detail_outputs(self) -> list[Any]:
        """What changes with the chosen image."""
        return [self.chosen, self.hint, self.detail, self.image, self.download, self.question, self.recipe, self.family]


def add_history_tab(studio: Studio, controls: Controls, tabs: gr.Tabs, tab: gr.Tab, t: Texts) -> History:
    """Add widgets and wiring to the Blocks that is being built."""
    view = _widgets(t)
    _wire_list(studio, view, tab, t)
    _wire_detail(studio, view, controls, tabs, t)
    return view


def _widgets(t: Texts) -> History:
    made: dict[str, Any] = {"page": gr.State(1), "ids": gr.State([]), "chosen": gr.State("")}
    with gr.Row(elem_classes="zs-columns zs-history", equal_height=False):
        with gr.Column(scale=3, min_width=300):
            made["search"] = gr.Textbox(
                label=t("search"), placeholder=t("search_placeholder"), max_lines=1, elem_id="zs-search"
            )
            made["gallery"] = gr.Gallery(
                label=t("history_images"), show_label=False, interactive=False, allow_preview=False, columns=4,
                object_fit="cover", height="auto", buttons=[], fit_columns=False, elem_id="zs-history-gallery",
            )  # fmt: skip
            with gr.Row(elem_classes="zs-pager"):
                made["newer"] = gr.Button(t("newer"), size="sm", min_width=60, interactive=False)
                made["words"] = gr.HTML("")
                made["older"] = gr.Button(t("older"), size="sm", min_width=60, interactive=False)
        with gr.Column(scale=2, min_width=300):
            made["hint"] = gr.HTML(present.note(t("history_pick")))
            with gr.Column(visible=False, elem_classes="zs-detail") as detail:
                made["image"] = gr.Image(
                    label=t("selected_image"), show_label=False, type="filepath", format="png", interactive=False,
                    buttons=["fullscreen"], elem_id="zs-history-image",
                )  # fmt: skip
                with gr.Row(elem_classes="zs-actions"):
                    made["download"] = gr.DownloadButton(t("download"), size="md", min_width=120)
                    made["use"] = gr.Button(t("use_settings"), size="md", min_width=120)
                    made["replay"] = gr.Button(t("replay"), size="md", min_width=90, elem_id="zs-history-replay")
                    made["refine"] = gr.Button(t("refine"), size="md", min_width=90, elem_id="zs-history-refine")
                    made["delete"] = gr.Button(t("delete"), size="md", min_width=80)
                with gr.Group(visible=False, elem_classes="zs-question") as question:
                    gr.HTML(present.note(t("delete_question")))
                    with gr.Row():
                        made["delete_yes"] = gr.Button(t("delete_yes"), variant="stop", size="md", min_width=80)
                        made["delete_no"] = gr.Button(t("delete_no"), size="md", min_width=80)
                made["recipe"] = gr.HTML("")
                made["family"] = gr.HTML("", js_on_load=PICK, elem_id="zs-history-family")
    return History(detail=detail, question=question, **made)


def _wire_list(studio: Studio, view: History, tab: gr.Tab, t: Texts) -> None:
    def show(search: str, page: int) -> Update:
        with errors_as_toasts(t):
            images, total = studio.images.page(search=search, page=page, rows=PAGE_ROWS)
        pages = max(1, -(-total // PAGE_ROWS))
        if page > pages:  # the last image of the last page was deleted
            return show(search, pages)
        entries = [(shown(studio.images.thumbnail(image)), present.alt_text(image)) for image in images]
        return {
            view.gallery: gr.update(value=entries, selected_index=None, visible=total > 0),
            view.newer: gr.update(interactive=page > 1),
            view.older: gr.update(interactive=page < pages),
            view.words: present.page_words(total, page, pages, search, t),
            view.page: page,
            view.ids: [image.id for image in images],
            view.hint: gr.update(value=present.note(t("history_pick")) if total else ""),
        }

    def first(search: str) -> Update:
        return show(search, 1)

    def newer(search: str, page: int) -> Update:
        return show(search, max(1, page - 1))

    def older(search: str, page: int) -> Update:
        return show(search, page + 1)

    outputs = view.list_outputs
    # one event, so that the answer to an opened tab cannot overtake the answer to what was typed right after
    gr.on([tab.select, view.search.change], first, view.search, outputs, trigger_mode="always_last", **PRIVATE)
    view.newer.click(newer, [view.search, view.page], outputs, **PRIVATE)
    view.older.click(older, [view.search, view.page], outputs, **PRIVATE)
    view.delete_yes.click(_deleter(studio, view, t), view.chosen, view.detail_outputs, **PRIVATE).success(
        show, [view.search, view.page], outputs, **PRIVATE
    )


def _wire_detail(studio: Studio, view: History, controls: Controls, tabs: gr.Tabs, t: Texts) -> None:
    def on_select(ids: list[str], event: gr.SelectData) -> Update:
        with errors_as_toasts(t):
            return _detail(studio, view, studio.images.get(picked(ids, event.index)), t)

    def on_relative(event: gr.EventData) -> Update:
        with errors_as_toasts(t):
            return _detail(studio, view, studio.images.get(pick_of(event)), t)

    def on_use(chosen: str) -> Update:
        with errors_as_toasts(t):
            recipe = studio.images.get(chosen).recipe
        if names := forms.left_out(recipe):
            fields = MESSAGES[t.lang]["list_comma"].join(MESSAGES[t.lang][f"field.{name}"] for name in names)
            gr.Info(present.error_text(t("use_settings_less", fields=fields)), title="", duration=8)
        return {**controls.show(recipe), tabs: gr.update(selected="generate")}

    view.gallery.select(on_select, view.ids, view.detail_outputs, **PRIVATE).success(
        None, None, None, js=SCROLL_TO_DETAIL, **LOCAL
    )
    view.family.click(on_relative, None, view.detail_outputs, **PRIVATE).success(
        None, None, None, js=SCROLL_TO_DETAIL, **LOCAL
    )
    view.use.click(on_use, view.chosen, [*controls.fields, controls.model, tabs], **PRIVATE)
    view.delete.click(lambda: gr.update(visible=True), None, view.question, **PRIVATE)
    view.delete_no.click(lambda: gr.update(visible=False), None, view.question, **PRIVATE)


def _detail(studio: Studio, view: History, image: StoredImage, t: Texts) -> Update:
    family = family_of(studio, image.recipe.outcome.pixels_sha256, image.recipe.parent)
    path = shown(image.path)
    return {
        view.chosen: image.id,
        view.hint: gr.update(visible=False),
        view.detail: gr.update(visible=True),
        view.image: gr.update(value=path, alt_text=present.alt_text(image)),
        view.download: gr.update(value=path),
        view.question: gr.update(visible=False),
        view.recipe: present.recipe(image, t),
        view.family: family_html(family, studio, t, pick_sources=False),
    }


def _deleter(studio: Studio, view: History, t: Texts) -> Any:
    def on_delete(chosen: str) -> Update:
        with errors_as_toasts(t):
            studio.images.delete(chosen)
        gr.Info(t("deleted"), title="", duration=4)
        return {
            view.chosen: "",
            view.hint: gr.update(visible=True),
            view.detail: gr.update(visible=False),
            view.question: gr.update(visible=False),
        }

    return on_delete
