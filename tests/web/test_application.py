"""The parent application in one process: what it refuses to mount, its limits, and the janitor."""

import os
import time
from pathlib import Path

import gradio as gr
import pytest

from zimage_studio.settings import Settings
from zimage_studio.web.guard import Hosts
from zimage_studio.web.janitor import empty, sweep
from zimage_studio.web.serve import SESSIONS, Door, create_app


class NoStudio:
    def start(self) -> None: ...

    def not_ready(self) -> str:
        return "loading"

    def begin_stop(self) -> None: ...

    def finish(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None: ...


def page(*, queue: bool) -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as blocks:
        text = gr.Textbox()
        text.submit(lambda value: value, text, text, queue=queue, api_name="echo")
    return blocks


def test_an_event_outside_the_queue_is_refused_by_name(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with pytest.raises(ValueError, match="echo"):
        create_app(
            settings, NoStudio(), {"en": page(queue=False)}, cache=tmp_path, door=Door(Hosts.from_settings(settings))
        )


def test_s8_g2_g20_the_limits_are_set_on_every_page(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    pages = {"en": page(queue=True), "zh": page(queue=True)}
    create_app(settings, NoStudio(), pages, cache=tmp_path, door=Door(Hosts.from_settings(settings)))
    for one in pages.values():
        assert one.state_holder.capacity == SESSIONS == 256
        assert one.max_file_size == 25 << 20
        assert one._queue.max_size == 64
        assert (one.api_open, one.show_error, one.run_history, one.enable_monitoring) == (False, False, False, False)
        assert one.has_launched


@pytest.mark.parametrize(
    ("host", "allowed", "refused"),
    [
        ("127.0.0.1", ["localhost", "127.0.0.1:1", "[::1]:7860"], ["10.0.0.1", "evil.example", "", "[::2]"]),
        ("192.168.1.5", ["192.168.1.5:7860", "localhost"], ["192.168.1.6", "evil.example"]),
        ("0.0.0.0", ["10.0.0.1", "[fe80::1]:7860", "172.17.0.2:80"], ["evil.example", "10.0.0.1.evil", "0x7f.1"]),
        ("::", ["10.0.0.1", "[fe80::1]"], ["evil.example"]),
        ("studio.lan", ["studio.lan", "STUDIO.LAN:7860"], ["other.lan"]),
    ],
)  # fmt: skip
def test_p40_the_names_answered_follow_from_the_address(host: str, allowed: list[str], refused: list[str]) -> None:
    hosts = Hosts.from_settings(Settings(host=host, public_hosts=("https://studio.example.org",)))
    for name in [*allowed, "studio.example.org"]:
        assert hosts.allow(name), name
    for name in refused:
        assert not hosts.allow(name), name
    assert hosts.https == {"studio.example.org"}


def test_r14_the_janitor_takes_what_is_old_then_the_oldest(tmp_path: Path) -> None:
    for age_s in (10, 20, 30, 100):
        path = tmp_path / "sub" / f"{age_s}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    assert sweep(tmp_path, max_age_s=50, max_bytes=200) == 2
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["10.png", "20.png"]
    assert sweep(tmp_path) == 0


def test_p26_leftovers_are_gone_after_a_start_but_not_what_links_point_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    cache = tmp_path / "cache"
    (cache / "abc").mkdir(parents=True)
    (cache / "abc" / "old.png").touch()
    (cache / "link").symlink_to(outside)
    empty(cache)
    assert not list(cache.iterdir())
    assert (outside / "kept").exists()
