"""The page in a real browser."""

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.demo.conftest import STRANGE

pytestmark = pytest.mark.browser
pytest.importorskip("gradio")


@pytest.fixture
def tab(served, browser):
    """The opened page; errors of the console and asked addresses are remembered."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(served[0])
    page.wait_for_selector("#result")
    yield page
    context.close()


def test_an_uploaded_sound_is_classified_and_nothing_leaves_this_machine(tab, served, rain, tmp_path):
    address, files, hosts = served
    tab.wait_for_selector("#map .main-svg")
    tab.set_input_files("input[type=file]", rain)
    tab.wait_for_selector(".demo-best")
    shown = [cell.inner_text() for cell in tab.locator(".demo-classes th").all()]
    assert set(shown) == set(STRANGE)
    assert tab.locator(".demo-best").inner_text() == shown[0]
    tab.wait_for_selector("#waves .hm")
    tab.wait_for_selector("#map .legendtext >> text=this sound")
    assert tab.locator("#result img, #result a").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.complaints == []
    assert {urlsplit(url).netloc for url in tab.asked if not url.startswith(("data:", "blob:"))} == {
        urlsplit(address).netloc
    }
    assert set(hosts) <= {"127.0.0.1"}
    assert [path.name for path in Path(files).rglob("*.wav")] == [rain.name]

    tab.click("button[aria-label=Clear]")
    tab.wait_for_selector(".demo-best", state="detached")
    (tmp_path / "notes.wav").write_text("no sound")
    tab.set_input_files("input[type=file]", tmp_path / "notes.wav")
    tab.wait_for_selector("#result [role=alert]")
    line = tab.locator("#result").inner_text().strip()
    assert line.startswith("notes.wav")
    assert "\n" not in line
    assert files not in line


def test_the_browser_refuses_other_hosts(tab):
    assert tab.evaluate("fetch('https://example.org').then(() => 'fetched', () => 'refused')") == "refused"


def status(address, path, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_shows_no_other_files_and_answers_to_no_other_name(served):
    address, files, _ = served
    assert status(address, "") == 200
    assert status(address, "gradio_api/file=/etc/hostname") == 403
    assert status(address, "gradio_api/runs") == 404
    assert status(address, "", Host="example.org") == 400


@pytest.mark.parametrize("path", ["/etc/hostname", "https://example.org/a.wav"])
def test_a_forged_request_copies_and_downloads_nothing(path, served):
    address, files, hosts = served
    before = sorted(Path(files).rglob("*"))
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "forged"}
    connection.request("POST", "/gradio_api/queue/join", json.dumps(body), {"Content-Type": "application/json"})
    assert connection.getresponse().read()
    connection.request("GET", "/gradio_api/queue/data?session_hash=forged")
    answer = connection.getresponse().read().decode()
    assert '"success":false' in answer
    assert sorted(Path(files).rglob("*")) == before
    assert set(hosts) <= {"127.0.0.1"}
