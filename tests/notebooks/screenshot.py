"""Takes the picture of JupyterLab that the README shows: ``make screenshot``.

The first notebook is opened in a real browser and run there; the picture is of what a reader sees then. It needs
Chromium with its driver (Debian: ``apt install chromium chromium-driver``) and selenium, which `make screenshot` installs
into an environment of its own, so this module uses nothing else but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[2]
NOTEBOOK = "1-first-transform.ipynb"
FIRST_SHOWN = "%%transform"
SIZE = (1280, 2000)
START_SECONDS = 60
RUN_SECONDS = 180
LARGEST_BYTES = 300_000

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",  # its own sandbox refuses to be started by root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    f"--window-size={SIZE[0]},{SIZE[1]}",
)
#: JupyterLab asks whether it may fetch news, and keeps cells outside of the window unrendered
SETTINGS: dict[str, dict[str, Any]] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

#: the toolbar says "idle" before there is a kernel
IS_IDLE = """
const shell = window.jupyterapp?.shell;
// a browser without a window has no focus, so that the shell may have no current widget
const context = [...(shell?.widgets('main') ?? [])].find(widget => widget.context)?.context?.sessionContext;
return Boolean(context?.isReady) && context.session?.kernel?.status === 'idle';
"""
RUN_ALL = """
const shell = window.jupyterapp.shell;
shell.activateById([...shell.widgets('main')].find(widget => widget.context).id);
window.jupyterapp.commands.execute('notebook:run-all-cells');
"""
PROMPTS = """
return [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText.trim());
"""
SCROLL = """
const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
const cell = cells.find(cell => cell.querySelector('.jp-InputArea').innerText.includes(arguments[0]));
document.activeElement.blur();
cell.scrollIntoView({block: 'start'});
const pictures = [...document.querySelectorAll('.jp-OutputArea img')];
const view = picture => picture.getBoundingClientRect();
return pictures.some(picture => picture.complete && view(picture).top > 0 && view(picture).bottom < window.innerHeight);
"""


@contextlib.contextmanager
def jupyterlab(jupyter: str, directory: Path) -> Iterator[str]:
    """Start JupyterLab on a copy of the notebooks, with nobody's settings, and end it; yields its address."""
    shutil.copytree(ROOT / "notebooks", directory / "notebooks")
    for name, values in SETTINGS.items():
        path = directory / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    command = [jupyter, "lab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0", "--ip=127.0.0.1"]
    command += ["--notebook-dir", str(directory / "notebooks"), f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_DATA_DIR": "data"}
    environment = {**os.environ, **{name: str(directory / place) for name, place in places.items()}}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for_port(process, port)
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
    except BaseException:
        print((directory / "log").read_text(), file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when somebody listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError("JupyterLab did not start")


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile of its own, and end it."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def take(driver: webdriver.Chrome, url: str) -> bytes:
    """Run the notebook in the browser and return the picture."""
    driver.get(url)
    WebDriverWait(driver, START_SECONDS).until(lambda page: page.execute_script(IS_IDLE))
    driver.execute_script(RUN_ALL)

    def is_done(page: webdriver.Chrome) -> bool:
        prompts = page.execute_script(PROMPTS)
        return bool(page.execute_script(IS_IDLE)) and all(prompt.strip("[]:").isdigit() for prompt in prompts)

    WebDriverWait(driver, RUN_SECONDS).until(is_done)
    WebDriverWait(driver, START_SECONDS).until(lambda page: page.execute_script(SCROLL, FIRST_SHOWN))
    return bytes(driver.get_screenshot_as_png())


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description="Take the picture of JupyterLab that the README shows.")
    parser.add_argument("--jupyter", default="jupyter", help="the command of the environment with the kernel")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "jupyterlab.png")
    arguments = parser.parse_args()
    # a kernel runs as another user, who has to pass through here
    directory = Path(tempfile.mkdtemp(prefix="tg-shot-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with jupyterlab(arguments.jupyter, directory) as url, browser(directory) as driver:
            picture = take(driver, url)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if len(picture) > LARGEST_BYTES:
        raise SystemExit(f"the picture has {len(picture):,} bytes; {LARGEST_BYTES:,} are the most for the repository")
    arguments.out.write_bytes(picture)
    print(f"{arguments.out}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
