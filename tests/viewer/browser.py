"""How do tests get a real browser, and look into it?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 10
"""Seconds after which a test gives up on something that should happen at once."""


def installed() -> tuple[str, str]:
    """The browser and its driver: $HJGC_BROWSER, or Chromium where the system keeps it. Nothing is downloaded."""
    browser = os.environ.get("HJGC_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    driver = os.environ.get("HJGC_BROWSER_DRIVER") or shutil.which("chromedriver")
    assert browser and driver, (
        "expected Chromium and its driver, found "
        f"{browser or 'no browser'} and {driver or 'no driver'}; install chromium and chromium-driver, "
        "or name them in HJGC_BROWSER and HJGC_BROWSER_DRIVER"
    )
    return browser, driver


class Browser:
    """A page of `hjgc view`, as a person meets it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, page: Path, place: str = "") -> None:
        self._driver.get("about:blank")  # so that a new place in the same page loads the page again
        self._driver.get(f"{page.as_uri()}#{place}")
        self.until("return document.documentElement.dataset.ready === 'yes'")

    def size(self, width: int, height: int) -> None:
        """Of the page's own window, however small: the browser's frame has a least width."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    def run(self, script: str, *arguments: Any) -> Any:
        return self._driver.execute_script(script, *arguments)  # pyright: ignore[reportUnknownMemberType]

    def until(self, script: str, *arguments: Any) -> None:
        WebDriverWait(self._driver, PATIENCE, 0.02).until(lambda _: self.run(script, *arguments))

    def all(self, selector: str) -> list[WebElement]:
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (found,) = self.all(selector)
        return found

    def click(self, selector: str, place: int | None = None) -> None:
        """The one that is selected, or of several that at `place`. A list may paint its rows anew after a row was
        looked up and before it is clicked: then the row that is there instead."""

        def clicked(_: object) -> bool:
            (self.one(selector) if place is None else self.all(selector)[place]).click()
            return True

        WebDriverWait(self._driver, PATIENCE, 0.02, [StaleElementReferenceException]).until(clicked)

    def keys(self, selector: str, *keys: str) -> None:
        self.one(selector).send_keys(*keys)

    def wheel(self, selector: str, pixels: int) -> None:
        """One turn of the wheel, downwards, over the middle of what is selected."""
        box = self.one(selector).rect
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        turned = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": pixels}
        self._driver.execute_cdp_cmd("Input.dispatchMouseEvent", turned)

    def text(self, selector: str = "main") -> str:
        return self.one(selector).text

    def rows(self) -> list[str]:
        """The names of the rows that exist, from the top."""
        return self.run("return [...document.querySelectorAll('.row .name')].map((row) => row.textContent)")

    def place(self) -> str:
        """What the address holds, once it does not change any more."""
        self.until("return waiting === 0")
        return self.run("return location.hash.slice(1)")

    def said(self) -> list[str]:
        """What the console holds, errors and all, since it was last asked."""
        return [entry["message"] for entry in self._driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def picture(self, path: Path) -> None:
        self._driver.save_screenshot(str(path))


@contextmanager
def browser() -> Generator[Browser]:
    program, driver = installed()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(found)
    finally:
        found.quit()


ENTER, DOWN, RIGHT, ESCAPE = Keys.ENTER, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ESCAPE
