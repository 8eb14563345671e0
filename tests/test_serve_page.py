"""The page in a real browser: clicks, keys, uploads, links, dark and light, phone and desktop."""

import base64
import io
import json
import re
import shutil
import socket
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_recipe

import mandorla
from mandorla.data.images import write_image
from mandorla.diffusion.training import train_diffusion

playwright = pytest.importorskip("playwright.sync_api", reason="needs mandorla[browser]")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
PATIENCE = 60_000  # milliseconds


@contextmanager
def serving(run):
    """Serve a run on a free port and give where."""
    import uvicorn

    from mandorla.serve.app import create_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(create_app(mandorla.load(run)), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(polydigits_run):
    with serving(polydigits_run) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Return a function that opens the page; what the browser complains of fails the test, but for refused uploads."""
    contexts, complaints = [], []

    def elsewhere(url: str) -> None:
        if not url.startswith((address, "data:")):
            complaints.append(f"asked for {url}")

    def open_page(query: str = "", **options):
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: elsewhere(request.url))
        page.goto(f"{address}/{query}")
        settled(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [text for text in complaints if "status of 422" not in text]


def settled(page) -> None:
    """Wait until an answer is there."""
    page.wait_for_selector("#output:not(.old) > *")
    expect(page.locator("#state")).not_to_have_text("computing …", timeout=PATIENCE)


def images(page) -> list[str]:
    return [image.get_attribute("src") for image in page.locator("#output img").all()]


def query_of(page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def test_generate_and_a_link_that_restores_it(open_page):
    page = open_page()
    assert page.locator("#output img").count() == 3 * 8
    page.get_by_label("Seed").first.fill("7")
    page.get_by_label("Tuples").fill("2")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#output img")).to_have_count(6, timeout=PATIENCE)
    assert query_of(page) == {"view": ["generate"], "seed": ["7"], "num": ["2"]}
    shown = images(page)
    again = open_page("?" + urlsplit(page.url).query)
    assert images(again) == shown
    page.go_back()
    expect(page.locator("#output img")).to_have_count(24, timeout=PATIENCE)
    expect(page.get_by_label("Seed").first).to_have_value("0")


def test_labels_are_asked_for_and_restored(browser, polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.labels=[digit]"))
    with serving(run) as address:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/?view=generate&num=2")
        settled(page)
        expect(page.get_by_label("Guidance").first).to_have_attribute("placeholder", "1")
        page.locator("[data-label=digit]").select_option("3")
        page.get_by_label("Guidance").first.fill("2")
        page.get_by_role("button", name="Generate").click()
        page.wait_for_url("**label=digit*")
        settled(page)
        assert query_of(page)["label"] == ["digit=3"]
        shown = images(page)
        page.reload()
        settled(page)
        assert images(page) == shown
        expect(page.locator("[data-label=digit]")).to_have_value("digit=3")
        page.get_by_role("button", name="use seed:0:1::2.0:digit=3 as sample A").click()
        page.get_by_role("link", name="Walk").click()
        page.wait_for_url("**view=walk*")
        settled(page)
        assert query_of(page)["a"] == ["seed:0:1::2.0:digit=3"]

        def with_age(route):
            about = route.fetch().json()
            route.fulfill(json=about | {"labels": about["labels"] | {"age": []}})

        page.route("**/api/model", with_age)
        page.goto(f"{address}/?view=generate&num=1&label=age%3D40.5&label=digit%3D7")
        expect(page.locator("#state")).to_contain_text("no label 'age', only digit", timeout=PATIENCE)
        expect(page.get_by_label("age")).to_have_value("40.5")
        expect(page.locator("[data-label=digit]")).to_have_value("digit=7")
        page.get_by_label("age").fill("")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#output img")).to_have_count(3, timeout=PATIENCE)
        assert query_of(page)["label"] == ["digit=7"]
        page.close()


def test_every_picture_can_be_saved_with_its_settings(open_page):
    page = open_page("?view=generate&seed=3&num=2")
    with page.expect_download() as whole:
        page.get_by_text("Save as one picture").click()
    with page.expect_download() as one:
        page.locator("#output td a").nth(1).click()
    for download, extra in ((whole, {}), (one, {"row": "view0", "column": "1"})):
        assert re.fullmatch(r"generate_.*seed-3.*\.png", download.value.suggested_filename)
        about = json.loads(Image.open(download.value.path()).text["mandorla"])
        assert {"question": "generate", "seed": 3, "num": 2, "synthetic": True, **extra}.items() <= about.items()


def test_fill_in_from_an_upload(open_page, tmp_path):
    image = np.random.default_rng(0).random((3, 24, 24))
    write_image(tmp_path / "mine.png", image)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page = open_page("?view=fill")
    form = page.locator("form.current")
    form.locator("select").first.select_option("upload")
    form.locator("input[type=file]").nth(1).set_input_files(tmp_path / "bad.png")
    expect(page.locator("#state")).to_contain_text("bad.png: cannot be read as an image", timeout=PATIENCE)
    form.locator("input[type=file]").nth(1).set_input_files(tmp_path / "mine.png")
    expect(page.locator("#state")).to_contain_text("uploaded: view1", timeout=PATIENCE)
    form.get_by_role("button", name="Fill in").click()
    expect(page.get_by_role("rowheader")).to_have_text(["view1", "view0", "view2"], timeout=PATIENCE)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(images(page)[0].partition(",")[2]))))
    assert np.abs(shown / 255 - image.transpose(1, 2, 0)).max() < 0.003
    assert query_of(page)["a"][0].startswith("upload:")


def test_a_drawn_sample_is_taken_into_other_views(open_page):
    page = open_page()
    page.get_by_role("button", name="use seed:0:5 as sample B").click()
    page.get_by_role("link", name="Swap and mix").click()
    expect(page.get_by_role("columnheader").nth(2)).to_contain_text("shared of A, private of B", timeout=PATIENCE)
    assert query_of(page)["b"] == ["seed:0:5"]


def test_by_keyboard_alone(open_page):
    page, asked = open_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # on the link that skips
    assert page.evaluate("document.activeElement.id") == "result"
    page.wait_for_timeout(300)
    assert not asked and not urlsplit(page.url).fragment, "what is shown stays, nothing is computed again"
    for _ in range(20):  # past the start of the page, whatever the browser has around it
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent") == "Fill in":
            break
    assert page.evaluate("document.activeElement.textContent") == "Fill in"
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader").first).to_have_text("given", timeout=PATIENCE)
    expect(page.locator("[aria-current=page]")).to_have_text("Fill in")
    page.locator("form.current input[name=num]").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader")).to_have_count(6, timeout=PATIENCE)
    unnamed = page.evaluate("""
        [...document.querySelectorAll("input:not([type=hidden]), select, button, a, img")].filter(
            (node) => !(node.labels?.length || node.textContent.trim() || node.alt || node.querySelector?.("img[alt]"))
        ).length""")
    assert unnamed == 0


@pytest.mark.parametrize("view", ["fill", "mix", "walk", "traverse", "nearest", "api"])
def test_every_view_fits_a_phone_and_a_desktop(open_page, tmp_path, view):
    for size in ((360, 740), (1280, 900)):
        for scheme in ("light", "dark"):
            page = open_page(f"?view={view}", viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (view, size)
            picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
            assert (np.median(picture) < 60) == (scheme == "dark"), (view, size)


@pytest.mark.parametrize("width", [360, 1280])
def test_a_picture_stands_under_its_title(open_page, width):
    page = open_page("?view=generate&num=3", viewport={"width": width, "height": 740})
    titles = page.locator(".pictures thead th")
    pictures = page.locator(".pictures tbody tr").first.locator("img")
    assert titles.count() == pictures.count() == 3
    for title, picture in zip(titles.all(), pictures.all(), strict=True):
        a, b = title.bounding_box(), picture.bounding_box()
        assert abs(a["x"] + a["width"] / 2 - b["x"] - b["width"] / 2) < 2


def test_an_answer_that_comes_too_late_is_not_shown(open_page):
    page, held = open_page(), []
    page.route("**/api/openapi.json", lambda route: held.append(route))
    page.get_by_role("link", name="API", exact=True).click()
    expect(page.locator("#state")).to_have_text("computing …")
    page.get_by_role("link", name="Walk").click()
    expect(page.get_by_role("columnheader").first).to_be_visible(timeout=PATIENCE)
    held[0].fulfill(json={"paths": {"/late": {"get": {"summary": "late"}}}})
    page.wait_for_timeout(300)
    assert page.locator("dt").count() == 0 and page.locator("#output img").count() > 0


def test_figures_that_sum_up_come_first_and_small_ones_are_no_zeros(open_page):
    page = open_page()
    figures = {"kernel/random": 0.00004, "kernel/random/t1": -0.00003, "kernel/random/t2": 0.0}
    records = [{"name": name, "value": value, "better": "lower"} for name, value in figures.items()]
    page.route("**/api/metrics", lambda route: route.fulfill(json=records))
    page.get_by_role("link", name="Figures", exact=True).click()
    row = page.locator("#output tbody tr:visible")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("4.0e-5")
    page.get_by_text("2 more, one by one").click()
    expect(row).to_have_count(3)
    expect(row.nth(1)).to_contain_text("-3.0e-5")
    expect(row.nth(2)).to_contain_text("0.000")


def test_mistakes_are_shown(browser, address):
    page = browser.new_context().new_page()
    page.goto(f"{address}/?view=walk&a=test:99999")
    expect(page.locator("#state.wrong")).to_contain_text("no sample 99999 in the test part", timeout=PATIENCE)
    page.goto(f"{address}/?view=figures")
    expect(page.locator("#state.wrong")).to_contain_text("run `mandorla evaluate", timeout=PATIENCE)
    page.context.close()
