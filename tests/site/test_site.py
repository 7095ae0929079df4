"""The site as a reader has it: built without a warning, and every page tried in a browser."""

import re
from html import unescape
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sphinx.util.inventory import InventoryFile
from support.pages import ROOT

import rmsprop_jax
from rmsprop_jax import dialects, interop, sharding

PAGES = sorted(
    str(file.relative_to(ROOT).with_suffix(".html"))
    for pattern in (
        "docs/**/*.md",
        "notebooks/*.ipynb",
        "examples/*.md",
        "benchmarks/*.md",
        "C*.md",
    )
    for file in ROOT.glob(pattern)
)
CHECKS = Path(__file__).with_name("checks.js").read_text()


def show(browser, address, width, mode):
    browser.get_log("browser")  # what an earlier page left
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": mode}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get(address)
    browser.execute_async_script(f"{CHECKS}\nready().then(() => arguments[0](null))")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole(browser, address, page, width):
    show(browser, f"{address}/{page}", width, "light")
    broken = browser.execute_script(f"{CHECKS}\nreturn broken()")
    assert {what: found for what, found in broken.items() if found} == {}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
def test_dark_mode_is_readable(browser, address, page):
    show(browser, f"{address}/{page}", 1280, "dark")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert browser.execute_script(f"{CHECKS}\nreturn unreadable()") == []


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("scale_by_stddev", "docs/api/optimizers.html"),
        ("effective step sizes", "docs/troubleshooting.html"),
        ("timm", "docs/which_rmsprop.html"),
        ("loss jumps at the first steps", "docs/troubleshooting.html"),
        ("resume torch NNX", "docs/checkpoints.html"),
        ("install", "docs/start.html"),
    ],
)
def test_search_finds(browser, address, words, page):
    browser.get(f"{address}/search.html?q={words.replace(' ', '+')}")
    found = f"#search-results li:nth-child(-n+10) a[href*='{page}']"
    WebDriverWait(browser, 20).until(lambda browser: browser.find_elements(By.CSS_SELECTOR, found))


@pytest.mark.browser
def test_front_page_is_the_index(browser, address):
    browser.get(address)
    WebDriverWait(browser, 20).until(lambda browser: browser.title.startswith("RMSprop for JAX"))


def test_every_public_name_is_in_the_api(site):
    documented = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {name for kind, found in documented.items() if kind.startswith("py:") for name in found}
    modules = {"dialects", "interop", "sharding"}
    public = {f"rmsprop_jax.{name}" for name in set(rmsprop_jax.__all__) - modules}
    public |= {f"rmsprop_jax.dialects.{name}" for name in dialects.DIALECTS}
    public |= {f"rmsprop_jax.sharding.{name}" for name in sharding.__all__}
    for module in interop.FORMATS:
        public |= {f"rmsprop_jax.interop.{module}.{name}" for name in ("load", "save")}
    public |= {"rmsprop_jax.interop.Leaf", "rmsprop_jax.interop.Restored"}
    public |= {"rmsprop_jax.interop.pytorch.mapping_of"}
    assert public - names == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_are_there(site, page):
    text = (site / page).read_text()
    links = re.findall(
        r'(?:href|src)="(?!https?:|mailto:|data:)([^"#?]*)(?:\?[^"#]*)?(?:#([^"]*))?"', text
    )
    assert len(links) > 20
    for link, anchor in links:
        target = (site / page).parent / unescape(link) if link else site / page
        assert target.exists(), link
        if anchor and target.suffix == ".html":
            assert f'id="{unescape(anchor)}"' in target.read_text(), (link, anchor)
