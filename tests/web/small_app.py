"""A server with the real guards around two small pages: python small_app.py, with the options of app.py."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import app as front  # noqa: E402 - the repository is not installed
from zimage_studio.messages import Lang  # noqa: E402
from zimage_studio.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    import gradio as gr

    from zimage_studio.web.serve import Composition
    from zimage_studio.web.share import PublicLink


class SmallStudio:
    """Work that can be counted, waited for and cut short."""

    def __init__(self) -> None:
        self.running = 0
        self.cut = threading.Event()
        self.started = False

    def start(self) -> None:
        self.started = True

    def not_ready(self) -> str:
        return "" if self.started else "loading"

    def begin_stop(self) -> None: ...

    def finish(self, timeout_s: float) -> bool:
        end = time.monotonic() + min(timeout_s, 10)
        while self.running and time.monotonic() < end:
            time.sleep(0.02)
        self.cut.set()
        return not self.running

    def close(self) -> None: ...

    def slow(self, seconds: float) -> str:
        self.running += 1
        self.cut.wait(seconds)
        self.running -= 1
        return "cut" if self.cut.is_set() else "finished"


def page(studio: SmallStudio, lang: Lang) -> "gr.Blocks":
    import gradio as gr

    def echo(text: str) -> str:
        return f"{lang}:{text}"

    def crash(text: str) -> str:
        raise RuntimeError(f"/secret/path {text}")

    def give(path: str) -> str:
        return path

    def size(path: str) -> int:
        return Path(path).stat().st_size

    def whoami(request: gr.Request) -> str:
        return str(request.username)

    with gr.Blocks(analytics_enabled=False, title=f"page {lang}") as blocks:
        text, number, file, picture = gr.Textbox(label="text"), gr.Number(value=1), gr.File(), gr.Image(type="filepath")
        gr.Button("echo").click(echo, text, text, api_name="echo")
        gr.Button("crash").click(crash, text, text, api_name="crash")
        gr.Button("slow").click(studio.slow, number, text, api_name="slow", concurrency_limit=4)
        gr.Button("give").click(give, text, file, api_name="give")
        gr.Button("size").click(size, picture, number, api_name="size")
        gr.Button("whoami").click(whoami, None, text, api_name="whoami")
        gr.Button("hidden").click(echo, text, text, api_name="hidden", api_visibility="private")
        gr.Timer(1).tick(lambda: "tick", None, text, api_visibility="private", show_progress="hidden")
        gr.Button("js").click(None, text, text, js="(t) => t + '!'", queue=False)
    return blocks


def compose(settings: Settings) -> "Composition":
    from zimage_studio.web.serve import Composition

    studio = SmallStudio()
    return Composition(studio=studio, pages={"en": page(studio, "en"), "zh": page(studio, "zh")}, make_link=stub_link)


def stub_link(folder: Path) -> "PublicLink":
    """A link through the program that the test wrote, with no network."""
    from zimage_studio.web.share import PublicLink, TunnelProgram, TunnelServer

    program = Path(os.environ["STUB_TUNNEL"])
    sha256 = os.environ["STUB_SHA256"]
    return PublicLink(
        folder,
        find_program=lambda: TunnelProgram(program, sha256, fetch=lambda: None),
        find_server=lambda: TunnelServer("127.0.0.1:1", "certificate"),
        url_timeout_s=5,
    )


if __name__ == "__main__":
    sys.exit(front.main(sys.argv[1:], compose))
