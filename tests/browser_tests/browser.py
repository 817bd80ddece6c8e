"""Debian's Chromium without a window, driven by Playwright, and what a page must not do in it."""

import contextlib
import io
import os
import shutil
from pathlib import Path

from PIL import Image

HARMLESS = (
    "/mlflow/users/current",  # MLflow asks who has logged in, and its server without accounts answers 404
    "config.mlflow-telemetry.io",  # it asks the network whether to count users
    "ResizeObserver loop completed with undelivered notifications",  # its tables draw twice where the machine is busy
)
"""Addresses, or parts of a text, of errors in the console that are MLflow's own and of no concern."""
ALONE = """
if (location.protocol.startsWith('http')) {
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
    localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
}
"""
"""What a user of MLflow has clicked once: its assistant is closed, and it shows trainings, not language models."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90_000
"""Milliseconds."""


def missing():
    """Return why no page can be tested here; "" where one can."""
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium here (Debian: apt-get install chromium)"
    return ""


@contextlib.contextmanager
def chromium(*, width, height):
    """Run a browser; yield a page and the errors that its console has shown so far."""
    from playwright.sync_api import sync_playwright

    errors = []

    def note(message):
        told = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(word in told for word in HARMLESS):
            errors.append(told)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS))),
            args=["--no-sandbox", "--no-proxy-server", "--hide-scrollbars"],  # root cannot have a sandbox
        )
        context = browser.new_context(viewport={"width": width, "height": height}, is_mobile=width < 600)
        context.add_init_script(ALONE)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield page, errors
        finally:
            browser.close()


def screenshot(page, name, folder, *, whole=False, clip=None):
    """Keep a picture of what is seen, of a rectangle of it, or of the whole page; print where.

    It lies in $MMFA_SCREENSHOTS, or the given folder, and has 128 colours.
    """
    where = Path(os.environ.get("MMFA_SCREENSHOTS") or folder)
    where.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole, clip=clip))).convert("RGB")
    file = where / f"{name}.png"
    picture.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"screenshot: {file}")
    return file
