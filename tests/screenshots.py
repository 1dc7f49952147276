"""The README's pictures of the panel, taken anew: the demo's graph in the real server, frontend and browser.

    python tests/screenshots.py

One picture at 40 steps, asked for 2x, at the default threshold and at 0.2, in both colour themes. Needs Chromium and
Playwright, and the environment that `python dev.py setup` makes. On a busy machine the measured speedup in the picture
is too low.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import comfy_server
import dev

OUT = dev.ROOT / "benchmarks" / "results" / "screenshots"
SPECA, LATENT, SCHEDULER = 2, 5, 7
STEPS, GENEROUS, ASKED = 40, 0.2, 2.0
MARGIN = 12


def take(page: Any, theme: str) -> None:
    """The node with a rejected call pointed at, and the bottom panel with two runs laid over each other."""
    page.wait_for_function(f"window.app?.graph?.getNodeById({SPECA})?.type === 'SpeCa'", timeout=120_000)
    page.wait_for_timeout(3000)
    set_widget(page, LATENT, "batch_size", 1)
    set_widget(page, SCHEDULER, "steps", STEPS)
    default = page.evaluate(f"app.graph.getNodeById({SPECA}).widgets.find(w => w.name === 'threshold').value")
    run(page)  # the first one also loads the model
    set_widget(page, SPECA, "mode", "speed")
    set_widget(page, SPECA, "target_speedup", ASKED)
    run(page)
    look_at_node(page)
    shot(page, page.locator(f"[data-node-id='{SPECA}']").first, OUT / f"speed-{theme}.png")
    set_widget(page, SPECA, "mode", "threshold")
    set_widget(page, SPECA, "threshold", GENEROUS)
    run(page)
    set_widget(page, SPECA, "threshold", default)
    run(page)

    look_at_node(page)
    node = page.locator(f"[data-node-id='{SPECA}']").first
    cells = page.locator(f"[data-node-id='{SPECA}'] .speca-cell.speca-rejected")
    cells.nth(cells.count() // 2).hover()
    page.wait_for_timeout(300)
    shot(page, node, OUT / f"node-{theme}.png")

    page.mouse.move(5, 5)
    page.locator(".speca-open:visible").first.click()
    runs = page.locator(".speca-runs")
    runs.wait_for(state="visible")
    runs.locator(".speca-row").nth(1).get_by_role("button", name="Compare").click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)
    shot(page, runs, OUT / f"runs-{theme}.png", margin=0)


def look_at_node(page: Any) -> None:
    page.evaluate(
        f"""() => {{
            const node = app.graph.getNodeById({SPECA})
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [120 - node.pos[0], 120 - node.pos[1]]
            app.canvas.setDirty(true, true)
        }}"""
    )
    page.wait_for_timeout(1000)


def set_widget(page: Any, node: int, name: str, value: float | str) -> None:
    page.evaluate(
        """([id, name, value]) => {
            const node = app.graph.getNodeById(id)
            const widget = node.widgets.find((each) => each.name === name)
            widget.value = value
            widget.callback?.(value, app.canvas, node)
        }""",
        [node, name, value],
    )


def run(page: Any) -> None:
    before = page.evaluate("document.querySelector('.speca-panel')?.dataset.run ?? null")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function(
        """(before) => {
            const panel = document.querySelector(".speca-panel")
            return panel?.dataset.status === "finished" && (panel.dataset.run ?? null) !== before
        }""",
        arg=before,
        timeout=240_000,
    )
    page.wait_for_timeout(4000)  # the second sampler, without SpeCa


def shot(page: Any, locator: Any, path: Path, margin: int = MARGIN) -> None:
    box = locator.bounding_box()
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
    clip = {"x": x - margin, "y": y - margin, "width": width + 2 * margin, "height": height + 2 * margin}
    page.screenshot(path=path, clip=clip)
    print(path.relative_to(dev.ROOT))


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = dev.find_chromium()
    if chromium is None:
        sys.exit("no Chromium was found: install one, or name it in the environment variable CHROMIUM")
    if not dev.FRONTEND.is_dir():
        sys.exit("no frontend was found: run `python dev.py setup`")
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("dark", "light"):
            settings = {"Comfy.VueNodes.Enabled": True, "Comfy.ColorPalette": theme}
            base = Path(folder) / theme
            base.mkdir()
            with comfy_server.Server(
                base, arguments=["--front-end-root", str(dev.FRONTEND)], settings=settings
            ) as server:
                page = browser.new_page(viewport={"width": 1440, "height": 1000}, device_scale_factor=1.5)
                page.goto(server.url + dev.DEMO_ADDRESS)
                take(page, theme)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
