"""Chromium, as a person's browser; what a page asks of other machines is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Playwright

from tests import lanes

from .processes import find_program

_ARGUMENTS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextmanager
def chromium(playwright: Playwright, *options: str) -> Iterator[Browser]:
    """The system's own Chromium: nothing is downloaded."""
    lanes.require("system", "Chromium")
    program = find_program("chromium", component="Chromium", install="apt-get install chromium")
    # The browser's own sandbox does not work for root.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    arguments = [*_ARGUMENTS, *sandbox, *options]
    browser = playwright.chromium.launch(executable_path=str(program), args=arguments)
    try:
        yield browser
    finally:
        browser.close()
