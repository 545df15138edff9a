"""The page of pictures in a real browser."""

import json

import pytest
from PIL import Image

from fed_a2v.images.gallery import write_sheet

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with two subjects, one with a long name, and an evaluation."""
    folder = tmp_path_factory.mktemp("gallery")
    subjects = []
    for row, (name, category) in enumerate([("dog.wav", "dog"), ("a-very-long-name-" * 8 + ".wav", None)]):
        pictures = {column: f"{column}/{row}.png" for column in ("sound", "text")}
        for path in pictures.values():
            (folder / path).parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), "teal").save(folder / path)
        subjects.append({"name": name, "class": category, "audio": None, "pictures": pictures})
    images = {"model": "some/model", "steps": 4, "guidance": 0.0, "seed": 0}
    gallery = {"run": "mine", "round": 5, "classes": ["dog"], "images": images, "subjects": subjects}
    (folder / "pictures.json").write_text(json.dumps(gallery | {"columns": {"sound": "From sound", "text": "Text"}}))
    figure = {"value": 0.5, "interval": [0.25, 0.75]}
    column = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "clip_score"), figure) | {"pictures": 2}
    judged = {"clip": "some/clip", "classes": ["dog"], "columns": {"sound": column, "text": column}}
    (folder / "evaluation.json").write_text(json.dumps(judged))
    write_sheet(folder)
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_shows_every_picture_without_a_fault_or_an_overflow(browser, page, scheme, width):
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    faults, asked = [], []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page)
    tab.locator("img").last.scroll_into_view_if_needed()
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    assert tab.evaluate("[...document.images].map(image => image.naturalWidth)") == [64] * 4
    assert faults == []
    assert all(url.startswith("file:") for url in asked)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    light = sum(tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")[:3]) / 3
    assert light > 200 if scheme == "light" else light < 50
    boxes = [tab.locator("article").first.locator("img").nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"], "side by side"
    tab.close()
