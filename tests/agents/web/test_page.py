"""The page: self-contained and readable, and in a real headless browser: keys move pixels, cuts heal, two tabs, a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from browser import Browser, Page, find_chromium, until
from web_client import Relay, served

from neuralsim.agents.teleop.config import PlayConfig
from neuralsim.agents.web.access import PROTOCOL
from neuralsim.agents.web.app import PAGE, TYPES
from neuralsim.agents.web.server import WebServer

STATIC = Path(str(resources.files("neuralsim.agents.web"))) / "static"
FILES = {path.name: path.read_text() for path in sorted(STATIC.iterdir())}
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium is installed (apt-get install chromium)"
)


# -- the files -------------------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained() -> None:
    assert set(FILES) == set(PAGE.values())
    assert {name.rpartition(".")[2] for name in FILES} == set(TYPES)
    for name, text in FILES.items():
        assert not re.search(r"""(https?:)?//[a-z0-9-]+\.[a-z]|@import|url\((?!data:)""", text), name
        assert "eval(" not in text
        assert "innerHTML" not in text, "text from the server is text"
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son[a-z]+=", FILES["index.html"]), (
        "the policy forbids inline code"
    )
    for used in re.findall(r'(?:src|href)="([^"]+)"', FILES["index.html"]) + re.findall(
        r'from "\./([^"]+)"', FILES["page.js"]
    ):
        assert used == "data:," or used in FILES


def test_page_and_server_name_the_same_things() -> None:
    assert f'"{PROTOCOL}"' in FILES["page.js"]
    for wanted in set(re.findall(r'\$\("([a-z-]+)"\)', FILES["page.js"])):
        assert f'id="{wanted}"' in FILES["index.html"], wanted


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("text", "behind"),
    [(t, b) for t in ("bright", "plain", "dim", "blue", "green", "amber", "red") for b in ("night", "slab")]
    + [("bright", "raised"), ("dim", "raised")]
    + [("night", b) for b in ("blue", "amber", "plain", "red", "bright")],
)
def test_text_has_contrast(text: str, behind: str) -> None:
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", FILES["style.css"]))
    light, dark = sorted((luminance(colours[text]), luminance(colours[behind])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


# -- the browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    from tiny_model import build_tiny_model, real_starts

    folder = tmp_path_factory.mktemp("page")
    build_tiny_model().save_pretrained(str(folder / "tiny"))
    real_starts(6).save(folder / "tiny" / "starts.npz")
    config = PlayConfig(
        world=str(folder / "tiny"), out=folder / "out", device="cpu", precision="float32", fps=10, web=True
    )
    with served(config, reconnect_s=1.0) as made:
        yield made


@pytest.fixture
def page(browser: Browser, server: WebServer) -> Iterator[Page]:
    """The driver's page, with frames coming."""
    opened = open_page(browser, server)
    opened.wait("document.body.dataset.drives === 'true'")
    yield opened
    opened.close()


def open_page(
    browser: Browser, server: WebServer, width: int = 1280, height: int = 900, phone: bool = False, url: str = ""
) -> Page:
    until(lambda: server.room.seat.free or server.room.viewers, "the seat is never free")
    opened = browser.page(url or server.url, width, height, phone)
    opened.wait("document.body.dataset.state === 'connected' && document.body.dataset.step !== undefined", 30)
    return opened


PUSHER = """(() => {
  const c = document.getElementById("real"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  let sum = 0, n = 0;
  for (let i = 0; i < d.length; i += 4) if (d[i + 2] > 180 && d[i] < 130) { sum += (i / 4) % c.width; n += 1; }
  return n ? sum / n : -1;
})()"""


@needs_browser
def test_a_key_pressed_moves_pixels_and_space_pauses(page: Page, server: WebServer) -> None:
    before = page.run(PUSHER)
    assert before >= 0, "the pusher is on the canvas"
    key, sign = ("ArrowRight", 1) if before < 32 else ("ArrowLeft", -1)
    page.key(key, True)
    page.wait("document.querySelector('.pad .held') !== null")
    page.wait(f"{sign} * ({PUSHER} - {before}) > 5")
    page.key(key, False)
    page.wait("document.querySelector('.pad .held') === null")
    page.wait("window.neuralsim.waits.length > 0")
    page.tap(" ")
    page.wait("!document.getElementById('paused-chip').hidden")
    step = page.run("document.getElementById('step').textContent")
    page.tap(".")
    page.wait(f"document.getElementById('step').textContent === '{int(step) + 1}'")
    page.click("[data-do=pause]")
    page.wait("document.getElementById('paused-chip').hidden")
    page.click("[data-do=new]")
    page.wait("Number(document.body.dataset.episode) > 0")
    page.click("[data-passes='3']")
    page.wait("document.querySelector('[data-passes=\"3\"]').getAttribute('aria-pressed') === 'true'")
    assert server.room.play.player.session.denoise_steps == 3
    page.click("[data-passes='1']")


@needs_browser
def test_every_control_has_a_name_and_the_keyboard_alone_reaches_it(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in ("button", "combobox", "link", "textbox", "img", "dialog"):
            assert node.get("name", {}).get("value", "").strip(), f"a {role} without a name"
    assert page.run("document.documentElement.lang") == "en"
    reached = set()
    for _ in range(40):
        page.tap("Tab")
        reached.add(
            page.run(
                "document.activeElement.dataset.do || document.activeElement.id || document.activeElement.dataset.key"
            )
        )
    assert {"world", "help-button", "pause", "step", "rewind", "same", "new", "policy", "record", "left"} <= reached
    page.run("document.querySelector('.pad [data-key=left]').focus()")
    page.key(" ", True)
    page.wait("document.querySelector('.pad [data-key=left]').classList.contains('held')")
    page.key(" ", False)
    page.wait("document.querySelector('.pad .held') === null")
    assert page.run("document.getElementById('paused-chip').hidden"), "space on a button is that button's"


@needs_browser
def test_a_cut_heals_and_the_driver_drives_on(browser: Browser, server: WebServer) -> None:
    with Relay(server.url) as relay:
        page = open_page(browser, server, url=relay.url)
        page.wait("document.body.dataset.drives === 'true'")
        page.key("ArrowUp", True)
        page.wait("document.querySelector('.pad .held') !== null")
        before = server.room.seat.driver
        relay.cut()
        until(lambda: not server.room.play.player.session.keyboard.held, "keys stay down after a cut")
        until(lambda: server.room.seat.driver not in (None, before), "the seat was not given back", 20)
        page.wait("document.body.dataset.state === 'connected' && document.body.dataset.drives === 'true'", 20)
        page.key("ArrowUp", False)
        step = page.run("Number(document.body.dataset.step)")
        page.wait(f"Number(document.body.dataset.step) > {step} + 2")
        page.close()


@needs_browser
def test_of_two_tabs_one_drives_and_hands_over(page: Page, browser: Browser, server: WebServer) -> None:
    other = open_page(browser, server)
    assert other.run("document.body.dataset.drives") == "false"
    assert other.run("document.querySelector('[data-do=pause]').disabled")
    other.click("#take")
    page.wait("document.getElementById('viewers').textContent.includes('asks to drive')")
    page.click("[data-give]")
    other.wait("document.body.dataset.drives === 'true'")
    page.wait("document.body.dataset.drives === 'false' && document.querySelector('[data-do=pause]').disabled")
    other.key("ArrowLeft", True)
    page.wait("document.querySelector('.pad [data-key=left]').classList.contains('held')")
    other.key("ArrowLeft", False)
    other.click("[data-give]")
    page.wait("document.body.dataset.drives === 'true'")
    other.close()


@needs_browser
def test_a_phone_fits_and_a_finger_drives(browser: Browser, server: WebServer) -> None:
    until(lambda: not server.room.viewers and server.room.seat.free, "the seat is never free")
    phone = open_page(browser, server, 390, 844, phone=True)
    phone.wait("document.body.dataset.drives === 'true'")
    assert phone.run("document.documentElement.scrollWidth") <= 390
    small = "[...document.querySelectorAll('button')].filter(b => b.offsetWidth && (b.offsetWidth < 44 || b.offsetHeight < 44)).length"
    assert phone.run(small) == 0, "a finger needs 44 pixels"
    assert phone.run("document.querySelector('.pad [data-key=down]').getBoundingClientRect().bottom < 844"), (
        "without scrolling"
    )
    phone.touch(".pad [data-key=down]", True)
    phone.wait("document.querySelector('.pad [data-key=down]').classList.contains('held')")
    phone.touch(".pad [data-key=down]", False)
    phone.wait("document.querySelector('.pad .held') === null")
    phone.close()
