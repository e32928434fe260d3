"""Which page a browser gets, and that both work side by side."""

import gradio_client
import httpx
import pytest

from tests.web.servers import Server
from zimage_studio.web.answers import prefers_chinese

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize(
    ("header", "chinese"),
    [("zh-CN,zh;q=0.9,en;q=0.8", True), ("en-US,en;q=0.9,zh;q=0.8", False), ("de,zh;q=0.5,en;q=0.4", True),
     ("de", None), ("", None), ("zh;q=0", None), ("en;q=x,zh", True), ("," * 5000, None)],
)  # fmt: skip
def test_the_browsers_wish_is_read_by_weight(header: str, chinese: bool | None) -> None:
    assert prefers_chinese(header) is chinese


def test_a_chinese_browser_is_sent_to_the_chinese_page(plain: Server) -> None:
    response = httpx.get(plain.url + "/?__theme=dark", headers=BROWSER | {"Accept-Language": "zh-CN"})
    assert response.status_code == 303
    assert response.headers["location"] == "/zh/?__theme=dark"
    assert "page zh" in httpx.get(plain.url + "/zh/", headers=BROWSER).text


def test_others_stay(plain: Server) -> None:
    for headers in (BROWSER, BROWSER | {"Accept-Language": "en"}, {"Accept-Language": "zh-CN"}):
        response = httpx.get(plain.url + "/", headers=headers)
        assert response.status_code == 200
        assert "page en" in response.text


def test_the_switch_is_remembered_and_wins_over_the_browser(plain: Server) -> None:
    with plain.client(headers=BROWSER | {"Accept-Language": "zh-CN"}, follow_redirects=True) as browser:
        assert browser.get("/lang/en").url.path == "/"
        assert browser.get("/").url.path == "/"
        assert browser.get("/lang/zh").url.path == "/zh/"
        assert browser.get("/").url.path == "/zh/"


def test_unknown_languages_are_refused(plain: Server) -> None:
    assert httpx.get(plain.url + "/lang/fr").status_code in (404, 422)
    assert httpx.get(plain.url + "/zh", headers=BROWSER).headers["location"] == "/zh/"


@pytest.mark.parametrize(("path", "lang"), [("/", "en"), ("", "en"), ("/zh/", "zh"), ("/zh", "zh")])
def test_gradio_client_works_on_both_pages(plain: Server, path: str, lang: str) -> None:
    client = gradio_client.Client(plain.url + path, verbose=False)
    assert client.predict("hi", api_name="/echo") == f"{lang}:hi"


@pytest.mark.parametrize("prefix", ["", "/zh"])
def test_the_assets_of_both_pages_are_served(plain: Server, prefix: str) -> None:
    page = httpx.get(plain.url + prefix + "/", headers=BROWSER).text
    script = page.split('src="./')[1].split('"')[0]
    assert httpx.get(f"{plain.url}{prefix}/{script}").headers["content-type"].split(";")[0].endswith("/javascript")
    assert httpx.get(f"{plain.url}{prefix}/theme.css").status_code == 200


def test_a_file_goes_up_through_a_client_and_is_counted(plain: Server) -> None:
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
    path = plain.data / "one.png"
    path.write_bytes(png)
    client = gradio_client.Client(plain.url, verbose=False)
    assert client.predict(gradio_client.handle_file(path), api_name="/size") > 0
