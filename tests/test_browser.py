"""The pages in a real browser: they work, by keyboard too, ask for nothing, and suit everyone.

Needs the extra `browser` and a Chromium, found by `STN_CHROMIUM` or on the path.
"""

import os
import shutil
from types import SimpleNamespace

import pytest

from stn.tool import comparison, report, runs, watching

BROWSER = os.environ.get("STN_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason='no playwright: pip install -e ".[browser]"'
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on the path, nor in STN_CHROMIUM")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page in a context of its own; gives it, what it asks for and what it complains of."""
    contexts = []

    def open_page(address, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return SimpleNamespace(page=page, asked=asked, complaints=complaints)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the trained run, with a sweep and a control of which there are only the numbers."""
    run = runs.Run(tmp_path_factory.mktemp("browser") / "run")
    shutil.copytree(trained.run.path, run.path)
    point = {"strength": 0.0, "accuracy": 0.9}
    sweep = {"kind": "rotation", "unit": "degrees", "error_unit": "degrees"}
    own = comparison.summarize(run) | {"points": [point, point]}
    sweep["runs"] = [own, own | {"transform": "none", "differences": []}]
    runs.write_json(run.sweep_file("rotation"), sweep)
    shutil.copy(run.curves_file, run.sweep_file("rotation").with_suffix(".png"))
    report.write_report(run)
    return run


def shown(page, selector):
    return [
        one.get_attribute("data-epoch") for one in page.locator(selector).all() if one.is_visible()
    ]


def test_the_report_works_by_keyboard_and_asks_for_nothing(visit, run):
    seen = visit(run.report_file.as_uri())
    page = seen.page
    assert shown(page, "#shots img") == ["4"]
    page.locator("#epoch").focus()
    page.keyboard.press("ArrowLeft")
    assert shown(page, "#shots img") == ["3"]
    assert page.locator(".player output").inner_text() == "3 of 4"
    page.keyboard.press("Home")
    assert shown(page, "#shots img") == ["0"]
    assert page.locator(".player output").inner_text() == "before training"

    assert page.locator("#wall-some").is_visible()
    assert not page.locator("#wall-worst").is_visible()
    page.locator("input[name=wall]").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#wall-worst").is_visible()
    assert not page.locator("#wall-some").is_visible()

    page.mouse.wheel(0, 10_000)
    page.wait_for_timeout(200)
    assert {address.partition(":")[0] for address in seen.asked} <= {"file", "data"}
    assert [address for address in seen.asked if address.startswith("file")] == [
        run.report_file.as_uri()
    ]
    assert seen.complaints == []


def test_everything_is_there_without_a_script(visit, run):
    page = visit(run.report_file.as_uri(), java_script_enabled=False).page
    assert page.locator("#wall-some").is_visible()
    assert page.locator("#wall-worst").is_visible()
    assert not page.locator("#epoch").is_visible()
    assert not page.locator("fieldset").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_pages_suit_everyone(visit, run, trained, tmp_path, kind, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    file = run.report_file
    if kind == "comparison":
        file = tmp_path / "compare.html"
        comparison.compare([trained.run, run], out=file)
    view = {"width": width, "height": 900}
    # The policy of the page forbids what axe puts into it.
    page = visit(file.as_uri(), color_scheme=scheme, viewport=view, bypass_csp=True).page
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "nothing but marked boxes scrolls sideways"
    found = axe.run(page)
    assert len(found.response["passes"]) > 20, "the rules were really tried"
    assert "color-contrast" in [rule["id"] for rule in found.response["passes"]]
    assert found.violations_count == 0, found.generate_report()


def test_pictures_on_a_phone_fit_or_say_that_they_go_on(visit, run):
    page = visit(run.report_file.as_uri(), viewport={"width": 390, "height": 800}).page
    for box in page.locator(".picture").all():
        cut = box.evaluate("box => box.scrollWidth > box.clientWidth + 1")
        says = box.evaluate(
            "box => box.nextElementSibling?.matches('.swipe') && "
            "box.nextElementSibling.checkVisibility()"
        )
        assert not cut or says, box.get_attribute("aria-label")
    for name in ("Curves", "Rotation curves"):
        box = page.locator(f".picture[aria-label^='{name}']")
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    page.set_viewport_size({"width": 1440, "height": 800})
    assert not any(cue.is_visible() for cue in page.locator(".swipe").all())


def test_a_watched_page_loads_itself_again(visit, run, tmp_path):
    growing = runs.Run(tmp_path / "run")
    with watching.serve(growing) as address:
        seen = visit(address)
        assert "Training begins" in seen.page.inner_text("h1")
        growing.path.mkdir()
        for file in (run.environment_file, run.config_file, run.history_file):
            shutil.copy(file, growing.path)
        seen.page.wait_for_selector("text=4 of 4 epochs are done", timeout=30_000)
        assert seen.page.locator("#connection:visible").count() == 0
        history = growing.history_file.read_text(encoding="utf-8")
        growing.history_file.write_text("[", encoding="utf-8")
        seen.page.wait_for_timeout(2500)
        assert seen.page.locator("text=4 of 4 epochs are done").count(), "not a page of an error"
        again = visit(address)
        assert again.page.inner_text("h1") == "One moment"
        growing.history_file.write_text(history, encoding="utf-8")
        again.page.wait_for_selector("text=4 of 4 epochs are done", timeout=30_000)
        again.page.close()
        assert all("503" in text for text in seen.complaints)
        assert {one.startswith(address) for one in seen.asked if "data:" not in one} == {True}


def test_a_watched_page_outlives_the_server(visit, run, tmp_path):
    growing = runs.Run(tmp_path / "run")
    growing.path.mkdir()
    for file in (run.environment_file, run.config_file, run.history_file):
        shutil.copy(file, growing.path)
    with watching.serve(growing) as address:
        lost, last = visit(address), visit(address)
        lost.page.route("**/", lambda route: route.abort())
        lost.page.wait_for_timeout(2500)
        shutil.copy(run.metrics_file, growing.path)
    last.page.wait_for_selector("text=Training has ended; this page changes no more.")
    assert last.page.locator("text=Test accuracy").count()
    lost.page.wait_for_selector("text=Training has ended or the connection to it is lost")
    assert lost.page.locator("text=4 of 4 epochs are done").count()
    asked = len(last.asked)
    last.page.wait_for_timeout(2500)
    assert len(last.asked) == asked
