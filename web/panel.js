/**
 * The two places where runs are shown: on the node, and in the panel below the canvas. Plain DOM; what they know of
 * ComfyUI are the callbacks they are given.
 */

import { createChart, geometry } from "./chart.js"
import { isLive } from "./compare.js"
import { fileName, toCsv, toJson } from "./export.js"
import { OUTCOMES, totalsOf } from "./reducer.js"
import { compared, cost, counts, speedup, spending, truth } from "./words.js"

const NODE_PADDING = 9
const NODE_GAP = 4
const EMPTY_HEIGHT = 64

/** What is shown of a run in one line, above the chart. */
function createTotals() {
  const dom = element("div", "speca-totals")
  const badge = element("span", "speca-badge")
  const factor = element("b", "speca-factor")
  const count = element("span", "speca-counts")
  const side = element("span", "speca-side")
  dom.append(badge, factor, count, side)
  return {
    dom,
    update(run, words, name = "") {
      const totals = totalsOf(run)
      write(badge, name)
      write(factor, speedup(words, totals))
      factor.title = words("speedup_hint")
      write(count, counts(words, run, totals))
      write(side, cost(words, run, totals))
    }
  }
}

/** A comparison with the run without SpeCa: how far it is, or its figures and pictures, or why there is none. */
function createComparison({ onHeight }) {
  const dom = element("div", "speca-comparison")
  const said = element("div", "speca-compared")
  said.setAttribute("role", "status")
  const bar = document.createElement("progress")
  const link = document.createElement("a")
  link.target = "_blank"
  link.rel = "noopener"
  const picture = document.createElement("img")
  picture.addEventListener("load", onHeight)
  link.append(picture)
  dom.append(said, bar, link)
  return {
    dom,
    update(comparison, phase, imageUrl, words) {
      dom.hidden = comparison === null
      if (comparison === null) return
      dom.dataset.status = comparison.status
      write(said, compared(words, comparison, phase))
      bar.hidden = !isLive(comparison)
      bar.max = comparison.max || 1
      bar.value = comparison.value
      link.hidden = comparison.image === null
      if (comparison.image === null) return
      const url = imageUrl(comparison.image)
      link.title = words("compare.open")
      if (link.getAttribute("href") === url) return
      link.href = url
      picture.src = url
      picture.alt = said.textContent
    }
  }
}

function createLegend() {
  const dom = element("div", "speca-legend")
  const items = [...OUTCOMES, "truth"].map((kind) => {
    const item = element("span", "speca-key")
    const name = document.createElement("span")
    item.append(sign(kind), name)
    dom.append(item)
    return [kind, item, name]
  })
  return {
    dom,
    /** `run`: whose signs are explained; those that are always there also without one. */
    update(words, run) {
      for (const [kind, item, name] of items) {
        write(name, words(`legend.${kind}`))
        if (kind === "truth") item.hidden = run === null || truth(words, run) === ""
      }
    }
  }
}

/** Write under a chart what its cells cannot say; in a quiet colour where that is nothing to look into. */
function writeNote(note, run, words, hiddenLanes) {
  const totals = totalsOf(run)
  const odd = []
  if (run.native) odd.push(words("note.native", { why: run.native }))
  if (run.status === "interrupted" || run.status === "failed") {
    odd.push(words(`note.${run.status}`, { calls: words.number(totals.calls, 9) }))
  }
  if (run.note) odd.push(run.note)
  if (run.newer) odd.push(words("note.newer"))
  const more = hiddenLanes > 0 ? words("more_rows", { n: hiddenLanes }) : ""
  write(note, [spending(words, run, totals), truth(words, run), ...odd, more].filter(Boolean).join(" "))
  note.classList.toggle("speca-quiet", odd.length === 0 && !totals.spending?.missed)
}

// -- on the node -------------------------------------------------------------------------------------------------------

/**
 * The panel on a node.
 *
 * @param {object} callbacks `onOpen()`, `onChoose(key)`, `onCompare()`: the button, which also cancels; `onHeight()`: the
 *   panel needs another height than before
 */
export function createNodePanel({ onOpen, onChoose, onCompare, onHeight }) {
  const dom = element("div", "speca-panel")
  const totals = createTotals()
  const open = element("button", "speca-open")
  open.type = "button"
  open.append(icon("M2 3.5h10M2 7h10M2 10.5h6"))
  open.addEventListener("click", onOpen)
  const compare = button("compare-uncached")
  compare.addEventListener("click", onCompare)
  const choices = element("div", "speca-choices")
  const empty = element("div", "speca-empty")
  const chart = createChart({ onHeight: fit })
  const note = element("div", "speca-note")
  const legend = createLegend()
  const comparison = createComparison({ onHeight: fit })
  const head = element("div", "speca-head")
  head.append(totals.dom, open)
  const foot = element("div", "speca-node-foot")
  foot.append(legend.dom, compare)
  dom.append(head, choices, empty, chart.dom, note, foot, comparison.dom)

  const buttons = new Map()
  let wantedHeight = 0
  for (const part of [choices, chart.dom, note, totals.dom, compare, comparison.dom]) part.hidden = true

  /** One button for as long as the panel lives: one that is made anew under a finger loses its click. */
  function buttonOf(key) {
    if (!buttons.has(key)) {
      const made = element("button", "speca-choice")
      made.type = "button"
      made.addEventListener("click", () => onChoose(key))
      buttons.set(key, made)
    }
    return buttons.get(key)
  }

  function fit() {
    const height = minHeight()
    if (Math.abs(height - wantedHeight) < 1) return
    wantedHeight = height
    dom.style.minHeight = `${height}px`
    onHeight()
  }

  function minHeight() {
    const parts = [head, choices, empty, note, foot, comparison.dom].filter((part) => !part.hidden)
    // Not laid out yet, or squeezed for a moment while the node is being made: text would be measured as a column.
    const usual = (part) => (part === head ? 26 : 18)
    const height = (part) => {
      // Stretched over what is free, so its own height says nothing.
      if (part === empty) return EMPTY_HEIGHT
      return dom.clientWidth > 150 ? part.offsetHeight : usual(part)
    }
    const fixed = parts.reduce((sum, part) => sum + height(part) + NODE_GAP, 2 * NODE_PADDING)
    return Math.ceil(fixed + (chart.dom.hidden ? 0 : chart.minHeight()))
  }

  return {
    dom,
    minHeight,
    /**
     * @param {object} shown `run` or null; `choices`: {key, name, chosen}[]; `comparison` that is to be shown, or null, and
     *   its `phase` ("queued", "speca", "uncached"); `imageUrl(image)`
     */
    update({ run, choices: offered, comparison: compared = null, phase, imageUrl }, words) {
      open.title = words("open_panel")
      open.setAttribute("aria-label", open.title)
      legend.update(words, run)
      write(empty, words("empty"))
      empty.hidden = run !== null
      chart.dom.hidden = run === null
      totals.dom.hidden = run === null
      compare.hidden = run === null
      const live = compared !== null && isLive(compared)
      write(compare, words(live ? "compare.cancel" : "compare.button"))
      compare.title = words(live ? "compare.cancel_hint" : "compare.hint")
      comparison.update(compared, phase, imageUrl, words)
      if (run !== null) {
        totals.update(run, words)
        chart.update([run], words)
        dom.dataset.status = run.status
        dom.dataset.run = run.run_id
        writeNote(note, run, words, chart.hiddenLanes())
      } else {
        delete dom.dataset.status
        delete dom.dataset.run
      }
      note.hidden = run === null || note.textContent === ""
      choices.hidden = offered.length < 2
      const wanted = (offered.length < 2 ? [] : offered).map(({ key, name, chosen }) => {
        const button = buttonOf(key)
        write(button, name)
        button.title = name
        button.setAttribute("aria-pressed", String(chosen))
        return button
      })
      arrange(choices, wanted)
      fit()
    },
    destroy: () => chart.destroy()
  }
}

// -- below the canvas --------------------------------------------------------------------------------------------------

/**
 * The panel of all runs.
 *
 * @param {object} callbacks `nameOf(run)` the node's title; `canCopy(run)`, `copy(run)` settings to the node, answering
 *   the node's title; `onShow(run)` a run has been chosen and should be complete
 */
export function createRunsPanel({ nameOf, canCopy, copy, onShow }) {
  const dom = element("div", "speca-runs")
  const list = element("div", "speca-list")
  const bar = element("div", "speca-bar")
  const filter = document.createElement("select")
  filter.className = "speca-filter"
  const optionThis = new Option("", "this")
  const optionAll = new Option("", "all")
  filter.append(optionThis, optionAll)
  bar.append(filter)
  const rows = element("div", "speca-rows")
  list.append(bar, rows)

  const detail = element("div", "speca-detail")
  const heads = element("div", "speca-heads")
  const first = createTotals()
  const second = createTotals()
  heads.append(first.dom, second.dom)
  const difference = element("div", "speca-difference")
  const actions = element("div", "speca-actions")
  const copyButton = button("copy")
  const jsonButton = button("json")
  const csvButton = button("csv")
  const said = element("span", "speca-said")
  said.setAttribute("role", "status")
  const legend = createLegend()
  actions.append(copyButton, jsonButton, csvButton, said)
  const chart = createChart({ axis: true, maxLanes: 24, plot: 70 })
  const note = element("div", "speca-note")
  const foot = element("div", "speca-foot")
  foot.append(legend.dom, actions)
  detail.append(heads, difference, chart.dom, note, foot)
  const empty = element("div", "speca-empty")
  dom.append(list, detail, empty)

  let shown = { runs: [], all: [] }
  let words = null
  let chosen = null
  let compared = null
  const drawn = new Map()

  filter.addEventListener("change", render)
  copyButton.addEventListener("click", () => {
    const run = current()
    if (run) say(words("panel.copied", { node: copy(run) ?? "" }))
  })
  jsonButton.addEventListener("click", () => save("json", toJson, "application/json"))
  csvButton.addEventListener("click", () => save("csv", toCsv, "text/csv"))

  function offered() {
    return filter.value === "all" ? shown.all : shown.runs
  }

  function current() {
    const runs = offered()
    return runs.find((run) => run.run_id === chosen) ?? runs[0] ?? null
  }

  function save(extension, write, type) {
    const run = current()
    if (!run) return
    const link = document.createElement("a")
    link.href = URL.createObjectURL(new Blob([write(run)], { type }))
    link.download = fileName(run, extension)
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
  }

  let silence = 0
  function say(sentence) {
    write(said, sentence)
    clearTimeout(silence)
    silence = setTimeout(() => write(said, ""), 4000)
  }

  function choose(run) {
    chosen = run.run_id
    if (compared === chosen) compared = null
    render()
    onShow(run)
  }

  function compare(run) {
    compared = compared === run.run_id ? null : run.run_id
    render()
    onShow(run)
  }

  function rowOf(run) {
    let row = drawn.get(run.run_id)
    if (!row) {
      row = createRow()
      drawn.set(run.run_id, row)
      row.choose.addEventListener("click", () => choose(row.run))
      row.compare.addEventListener("click", () => compare(row.run))
    }
    return row
  }

  function render() {
    if (words === null) return
    const runs = offered()
    const run = current()
    const other = runs.find((each) => each.run_id === compared && each !== run) ?? null

    write(optionThis, words("panel.this_workflow"))
    write(optionAll, words("panel.all"))
    filter.hidden = shown.all.length === shown.runs.length && filter.value === "this"
    bar.hidden = filter.hidden
    empty.hidden = run !== null
    write(empty, words(shown.all.length > 0 ? "panel.empty_workflow" : "panel.empty"))
    detail.hidden = run === null
    list.hidden = run === null && filter.hidden

    for (const known of drawn.keys()) {
      if (!shown.all.some((each) => each.run_id === known)) drawn.delete(known)
    }
    const wanted = runs.map((each) => {
      const row = rowOf(each)
      row.update(each, words, nameOf(each), each === run ? "A" : each === other ? "B" : null, run !== null && runs.length > 1)
      return row.dom
    })
    arrange(rows, wanted)
    if (run === null) return

    first.update(run, words, other ? "A" : "")
    second.dom.hidden = other === null
    if (other) second.update(other, words, "B")
    write(difference, other ? differences(words, run, other) : settingsOf(words, run))
    chart.update(other ? [run, other] : [run], words)
    writeNote(note, run, words, 0)
    note.hidden = note.textContent === ""
    legend.update(words, other ? null : run)

    write(copyButton, words("panel.copy"))
    copyButton.disabled = !canCopy(run)
    copyButton.title = copyButton.disabled ? words("panel.copy_none") : ""
    write(jsonButton, words("panel.export_json"))
    write(csvButton, words("panel.export_csv"))
  }

  return {
    dom,
    /** @param {Run[]} runs of this workflow, newest first @param {Run[]} all runs */
    update(runs, all, newWords) {
      shown = { runs, all }
      words = newWords
      render()
    },
    /** Chooses a run, as a click on it would. */
    show(run_id) {
      chosen = run_id
      render()
    }
  }
}

function createRow() {
  const dom = element("div", "speca-row")
  const choose = element("button", "speca-row-main")
  choose.type = "button"
  const badge = element("span", "speca-badge")
  const time = element("span", "speca-row-time")
  const name = element("span", "speca-row-name")
  const settings = element("span", "speca-row-settings")
  const strip = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  strip.setAttribute("class", "speca-strip")
  const factor = element("b", "speca-row-factor")
  const count = element("span", "speca-row-counts")
  choose.append(badge, time, name, settings, strip, factor, count)
  const compare = element("button", "speca-compare")
  compare.type = "button"
  dom.append(choose, compare)

  let before = null
  const row = {
    dom,
    choose,
    compare,
    run: null,
    update(run, words, title, role, comparable) {
      row.run = run
      const totals = totalsOf(run)
      dom.dataset.run = run.run_id
      dom.dataset.status = run.status
      dom.dataset.role = role ?? ""
      choose.setAttribute("aria-pressed", String(role === "A"))
      choose.title = words("panel.choose")
      write(badge, role ?? "")
      write(time, run.started_at ? new Date(run.started_at * 1000).toLocaleTimeString(words.locale) : "–")
      write(name, title)
      name.title = title
      write(settings, briefly(words, run))
      const ended = ["interrupted", "failed", "running"].includes(run.status)
      write(factor, speedup(words, totals) || "–")
      write(count, ended ? words(`status.${run.status}`) : OUTCOMES.map((outcome) => totals[outcome]).join(" / "))
      count.title = words("panel.calls")
      compare.hidden = !comparable
      compare.disabled = role === "A"
      write(compare, words("panel.compare"))
      compare.title = words("panel.compare_hint")
      compare.setAttribute("aria-pressed", String(role === "B"))
      if (before !== run.calls) drawStrip(strip, run)
      before = run.calls
    }
  }
  return row
}

const STRIP = { width: 120, height: 12 }

/** A run in the height of a line of text: tall is computed, short is speculated. */
function drawStrip(svg, run) {
  const { cells, width } = geometry([run], { width: STRIP.width, maxLanes: 1, plot: 0 })
  svg.setAttribute("viewBox", `0 0 ${width} ${STRIP.height}`)
  svg.setAttribute("width", width)
  svg.setAttribute("height", STRIP.height)
  const heights = { full: 10, accepted: 4, rejected: 12 }
  svg.replaceChildren(
    ...cells.map((cell) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect")
      const height = heights[cell.kind]
      const place = { x: cell.x, y: (STRIP.height - height) / 2, width: Math.max(1, Math.min(cell.w, 6)), height, rx: 1 }
      for (const [key, value] of Object.entries(place)) rect.setAttribute(key, value)
      rect.setAttribute("class", `speca-body speca-${cell.kind}`)
      return rect
    })
  )
}

function briefly(words, run) {
  const parts = []
  const target = totalsOf(run).spending?.target
  if (target) parts.push(words("panel.asked", { value: words.number(target) }))
  for (const name of target ? ["order"] : ["threshold", "order"]) {
    const value = run.settings[name]
    if (typeof value === "number") parts.push(words(`panel.${name}`, { value: words.number(value) }))
  }
  return parts.join(" · ")
}

function settingsOf(words, run) {
  const parts = [run.model, run.sampler].filter(Boolean)
  for (const [name, value] of Object.entries(run.settings)) {
    if (name !== "noise_gain_limit") parts.push(`${words(`setting.${name}`)} ${figure(words, value)}`)
  }
  return parts.join(" · ")
}

/** "threshold 0.1 → 0.2": what was set otherwise in the second run. */
function differences(words, a, b) {
  const names = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])]
  const parts = names
    .filter((name) => a.settings[name] !== b.settings[name])
    .map((name) => `${words(`setting.${name}`)} ${figure(words, a.settings[name])} → ${figure(words, b.settings[name])}`)
  return `A → B: ${parts.length > 0 ? parts.join(" · ") : words("panel.same_settings")}`
}

function figure(words, value) {
  if (value === undefined) return "–"
  return typeof value === "number" ? words.number(value) : String(value)
}

// ----------------------------------------------------------------------------------------------------------------------

function element(tag, name) {
  const made = document.createElement(tag)
  made.className = name
  return made
}

function button(name) {
  const made = element("button", `speca-action speca-action-${name}`)
  made.type = "button"
  return made
}

/** Makes `parent`'s children those wanted, moving none that can stay: one that is moved loses the focus and a click. */
function arrange(parent, wanted) {
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove()
  wanted.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null)
  })
}

/** Text, written only when it differs: a text node that is written anew loses the selection in it. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text
}

function icon(d) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  svg.setAttribute("viewBox", "0 0 14 14")
  svg.setAttribute("width", 12)
  svg.setAttribute("height", 12)
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
  path.setAttribute("d", d)
  path.setAttribute("class", "speca-icon")
  svg.append(path)
  return svg
}

function sign(kind) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  svg.setAttribute("viewBox", "0 0 12 12")
  svg.setAttribute("width", 11)
  svg.setAttribute("height", 11)
  svg.setAttribute("class", `speca-sign-of speca-${kind}`)
  const shapes = {
    full: [["rect", { x: 1, y: 1, width: 10, height: 10, rx: 2.5, class: "speca-body" }]],
    accepted: [["circle", { cx: 6, cy: 6, r: 3.2, class: "speca-body" }]],
    trusted: [["circle", { cx: 6, cy: 6, r: 3, class: "speca-body" }]],
    rejected: [
      ["rect", { x: 1, y: 1, width: 10, height: 10, rx: 2.5, class: "speca-body" }],
      ["path", { d: "M6,2L10,9.4H2z", class: "speca-sign" }]
    ],
    truth: [
      ["circle", { cx: 3, cy: 8.5, r: 2.2, class: "speca-body speca-accepted" }],
      ["circle", { cx: 8.5, cy: 4, r: 2.6, class: "speca-truth" }]
    ]
  }
  for (const [tag, attributes] of shapes[kind]) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag)
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
    svg.append(made)
  }
  return svg
}
