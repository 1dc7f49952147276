"""The pictures of the README and of the help pages, taken anew: the demo's graph in the real server and browser.

    python tests/screenshots.py           all
    python tests/screenshots.py help      those of the help pages: a run that the Compare button made, SpeCa Compare,
                                          SpeCa Tune

The README's are of one picture at 40 steps, asked for 2x, at the default threshold and at 0.2, in both colour themes.
Needs Chromium and Playwright, and the environment that `python dev.py setup` makes. On a busy machine the measured
speedup in the picture is too low.
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
HELP = dev.ROOT / "web" / "docs"
SPECA, NOISE, LATENT, SCHEDULER, COMPARE = 2, 3, 5, 7, 10
STEPS, GENEROUS, ASKED = 40, 0.2, 2.0
MARGIN = 12


def wait_until_ready(page: Any) -> None:
    page.wait_for_function(f"window.app?.graph?.getNodeById({SPECA})?.type === 'SpeCa'", timeout=120_000)
    page.wait_for_timeout(3000)


def take(page: Any, theme: str) -> None:
    """The node with a call pointed at, a rejected one if any is; the bottom panel with two runs over each other."""
    wait_until_ready(page)
    set_widget(page, LATENT, "batch_size", 1)
    set_widget(page, SCHEDULER, "steps", STEPS)
    default = page.evaluate(f"app.graph.getNodeById({SPECA}).widgets.find(w => w.name === 'threshold').value")
    run(page)  # the first one also loads the model
    set_widget(page, SPECA, "mode", "speed")
    set_widget(page, SPECA, "target_speedup", ASKED)
    run(page)
    look_at(page, SPECA)
    shot(page, page.locator(f"[data-node-id='{SPECA}']").first, OUT / f"speed-{theme}.png")
    set_widget(page, SPECA, "mode", "threshold")
    set_widget(page, SPECA, "threshold", GENEROUS)
    run(page)
    set_widget(page, SPECA, "threshold", default)
    run(page)

    look_at(page, SPECA)
    node = page.locator(f"[data-node-id='{SPECA}']").first
    kinds = (page.locator(f"[data-node-id='{SPECA}'] .speca-cell.speca-{kind}") for kind in ("rejected", "accepted"))
    cells = next(cells for cells in kinds if cells.count())
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


def take_help(page: Any) -> None:
    """What the three nodes show after a run."""
    wait_until_ready(page)
    set_widget(page, LATENT, "batch_size", 1)
    run(page)  # the first one also loads the model
    look_at(page, SPECA)
    before = page.evaluate("document.querySelector('.speca-panel').dataset.run")
    page.get_by_role("button", name="Compare", exact=True).first.click()
    page.wait_for_function(
        """(before) => {
            const panel = document.querySelector(".speca-panel")
            const picture = panel.querySelector(".speca-comparison[data-status=done] img")
            return panel.dataset.run !== before && picture?.complete && picture.naturalWidth > 0
        }""",
        arg=before,
        timeout=240_000,
    )
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)
    shot(page, page.locator(f"[data-node-id='{SPECA}'] .speca-panel"), HELP / "SpeCa.jpg", margin=0)

    set_widget(page, SPECA, "threshold", GENEROUS)
    set_widget(page, NOISE, "noise_seed", 7)  # both runs are made and timed anew
    run_until_shown(page, COMPARE)
    shot(page, page.locator(f"[data-node-id='{COMPARE}'] img").first, HELP / "SpeCaCompare.jpg", margin=0)

    tune = page.evaluate(
        """(compare) => {
            const before = app.graph.getNodeById(compare)
            const tune = LiteGraph.createNode("SpeCaTune")
            tune.pos = [...before.pos]
            tune.setSize([640, 700])
            app.graph.add(tune)
            for (const [index, { name, link }] of before.inputs.entries()) {
                const slot = tune.inputs.findIndex((each) => each.name === name)
                if (link === null || slot < 0) continue
                const { origin_id, origin_slot } = app.graph.links[link]
                app.graph.getNodeById(origin_id).connect(origin_slot, tune, slot)
            }
            app.graph.remove(before)
            return tune.id
        }""",
        COMPARE,
    )
    run_until_shown(page, tune)
    shot(page, page.locator(f"[data-node-id='{tune}'] img").first, HELP / "SpeCaTune.jpg", margin=0)


def run_until_shown(page: Any, node: int) -> None:
    """Until the node shows another picture than before."""
    image = "(id) => app.nodeOutputs?.[id]?.images?.[0]?.filename ?? null"
    before = page.evaluate(image, node)
    page.get_by_role("button", name="Run", exact=True).first.click()
    changed = f"([id, before]) => ![null, before].includes(({image})(id))"
    page.wait_for_function(changed, arg=[node, before], timeout=600_000)
    page.wait_for_timeout(2000)
    look_at(page, node)


def look_at(page: Any, node: int) -> None:
    page.evaluate(
        f"""() => {{
            const node = app.graph.getNodeById({node})
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
    form = {"type": "jpeg", "quality": 85} if path.suffix == ".jpg" else {}
    page.screenshot(path=path, clip=clip, **form)
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
        only = sys.argv[1:]
        for theme in ("dark",) if only == ["help"] else ("dark", "light"):
            settings = {"Comfy.VueNodes.Enabled": True, "Comfy.ColorPalette": theme}
            base = Path(folder) / theme
            base.mkdir()
            with comfy_server.Server(
                base, arguments=["--front-end-root", str(dev.FRONTEND)], settings=settings
            ) as server:
                shown = {"viewport": {"width": 1440, "height": 1000}, "device_scale_factor": 1.5}
                page = browser.new_page(**shown)
                page.goto(server.url + dev.DEMO_ADDRESS)
                if theme == "dark":
                    take_help(page)
                    page.goto(server.url + dev.DEMO_ADDRESS)
                if only != ["help"]:
                    take(page, theme)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
