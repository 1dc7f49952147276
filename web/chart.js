/**
 * Draws runs: where every call's error lay under the threshold, and beneath it one cell per call.
 *
 * `geometry` turns runs into figures (pure, tested without a browser); `createChart` puts them into an SVG. Neither
 * knows ComfyUI.
 *
 * Outcomes differ by shape before they differ by colour: a square is a computed call, a dot an accepted forecast, a
 * ring one that was trusted unchecked, a square with a triangle a rejected forecast and the computation that followed.
 *
 * Where the true errors of a run are known, a second plot has them beside the judged ones, each of its call alone: what
 * stands under the threshold are sums.
 */

import { DEAREST_FIRST, OUTCOMES } from "./reducer.js"
import { reason } from "./words.js"

const SVG = "http://www.w3.org/2000/svg"

/** Space in CSS pixels. */
export const SPACE = {
  plot: 84,
  truth: 44,
  gap: 7,
  lane: 14,
  laneGap: 3,
  cellGap: 2.5,
  label: 30,
  axis: 36,
  ticks: 14,
  top: 8,
  edge: 2,
  narrow: 7,
  narrowest: 3
}

const MAX_PLOT = 600

/** How many rows are drawn before the rest are only counted. */
export const MAX_LANES = 8

/**
 * Figures of a chart of one run, or of two laid over each other.
 *
 * @param {Run[]} runs one or two runs of the reducer's state
 * @param {{width: number, plot?: number, axis?: boolean, maxLanes?: number}} options pixels; `axis` adds figures
 * @returns {Geometry} lanes, cells, marks (errors), thresholds, pending columns (planned: to be computed), truths (judged
 *   and true errors of single calls), ticks, all in pixels
 */
export function geometry(runs, { width, plot = SPACE.plot, axis = false, maxLanes = MAX_LANES }) {
  const tables = runs.map(tableOf)
  const several = runs.length > 1
  const allLanes = tables.flatMap((table, i) => table.lanes.map((lane) => ({ ...lane, run: i, key: `${i}|${lane.key}` })))
  const lanes = allLanes.slice(0, maxLanes)
  const labelled = several || lanes.length > 1

  const left = SPACE.edge + Math.max(labelled ? SPACE.label : 0, axis ? SPACE.axis : 0)
  const right = Math.max(left + 1, width - SPACE.edge)
  const total = Math.max(1, ...tables.map((table) => table.expected))
  const pitch = (right - left) / total
  const perBin = pitch >= SPACE.narrowest ? 1 : Math.ceil(SPACE.narrowest / pitch)
  const nBins = Math.ceil(total / perBin)
  const binPitch = pitch * perBin
  const centre = (column) => left + (Math.floor(column / perBin) + 0.5) * binPitch
  const cellGap = Math.min(SPACE.cellGap, binPitch / 4)

  const max = scaleOf(tables)
  const base = SPACE.top + plot
  const yOf = (value) => base - Math.min(1, value / max) * plot

  const seen = several ? [] : allLanes.flatMap((lane) => lane.items.filter(({ row }) => row.true !== null && row.judged !== null))
  const truthBase = seen.length > 0 ? base + SPACE.gap + SPACE.truth : base
  const mostSeen = seen.reduce((most, { row }) => Math.max(most, row.judged, row.true), 0) || 1
  const truthY = (value) => truthBase - (value / mostSeen) * (SPACE.truth - 4)
  const truths = seen.map(({ column, row }) => ({ x: centre(column), judged: truthY(row.judged), true: truthY(row.true) }))

  const below = truthBase + SPACE.gap
  lanes.forEach((lane, i) => {
    lane.y = below + i * (SPACE.lane + SPACE.laneGap)
    lane.h = SPACE.lane
    lane.label = { several, group: lane.group, sample: lane.sample, run: lane.run }
  })
  const bottom = below + Math.max(1, lanes.length) * (SPACE.lane + SPACE.laneGap) - SPACE.laneGap
  const height = bottom + (axis ? SPACE.ticks : SPACE.edge)

  const cells = []
  const marks = []
  lanes.forEach((lane, laneIndex) => {
    const bins = new Map()
    for (const item of lane.items) {
      const bin = Math.floor(item.column / perBin)
      if (!bins.has(bin)) bins.set(bin, [])
      bins.get(bin).push(item)
    }
    for (const [bin, items] of bins) {
      const shown = dearest(items)
      cells.push({
        key: `${lane.key}|${bin}`,
        lane: laneIndex,
        run: lane.run,
        bin,
        x: left + bin * binPitch + cellGap / 2,
        y: lane.y,
        w: binPitch - cellGap,
        h: lane.h,
        kind: shown.row.outcome,
        narrow: binPitch - cellGap < SPACE.narrow,
        items
      })
    }
  })
  tables.forEach((table, run) => {
    for (const lane of allLanes) {
      if (lane.run !== run) continue
      for (const item of lane.items) {
        const { row } = item
        if (row.error === null && row.reason !== "not_finite") continue
        const value = row.error ?? Infinity
        marks.push({
          key: `${lane.key}|${item.call.call}`,
          run,
          x: centre(item.column),
          y: yOf(value),
          base,
          kind: row.outcome,
          clipped: value > max
        })
      }
    }
  })

  const thresholds = tables.map((table) =>
    [...table.thresholds].map(([column, value]) => [centre(column), yOf(value)]).sort((a, b) => a[0] - b[0])
  )

  const pending = []
  if (!several && tables[0]) {
    const { run, columns } = tables[0]
    const ahead = run.status === "running" ? (run.totals?.spending?.plan ?? []) : []
    const planned = new Set(ahead.map((column) => Math.floor((columns - 1 + column) / perBin)))
    for (let bin = Math.ceil(tables[0].columns / perBin); bin < nBins; bin += 1) {
      for (const lane of lanes.length > 0 ? lanes : [{ y: below, h: SPACE.lane }]) {
        const x = left + bin * binPitch + cellGap / 2
        pending.push({ x, y: lane.y, w: binPitch - cellGap, h: lane.h, planned: planned.has(bin) })
      }
    }
  }

  return {
    width,
    height,
    left,
    right,
    top: SPACE.top,
    base,
    bottom,
    binPitch,
    perBin,
    nBins,
    max,
    lanes,
    hiddenLanes: allLanes.length - lanes.length,
    labelled,
    cells,
    marks,
    thresholds,
    truths,
    truthBase,
    pending,
    valueTicks: axis ? ticks(max).map((value) => ({ value, y: yOf(value) })) : [],
    callTicks: axis ? callTicks(total).map((column) => ({ column, x: centre(column) })) : []
  }
}

/** Columns and lanes of one run. Calls of one moment (positive and negative, windows) share a column. */
function tableOf(run) {
  const groups = new Map()
  for (const call of run.calls) {
    const key = `${call.window ?? ""}|${call.conds.join("+")}`
    if (!groups.has(key)) groups.set(key, { conds: call.conds, window: call.window })
  }
  const differ = run.calls.some((call) => call.rows.some((row) => row.outcome !== call.rows[0].outcome))

  const lanes = new Map()
  const thresholds = new Map()
  let column = -1
  let sigma
  let taken = new Set()
  for (const call of run.calls) {
    const group = `${call.window ?? ""}|${call.conds.join("+")}`
    if (taken.has(group) || call.sigma !== sigma || column < 0) {
      column += 1
      sigma = call.sigma
      taken = new Set()
    }
    taken.add(group)
    for (const row of differ ? call.rows : [worst(call.rows)]) {
      const sample = differ ? row.sample : null
      const key = `${group}|${sample ?? ""}`
      if (!lanes.has(key)) {
        lanes.set(key, { key, group: groups.size > 1 ? groups.get(group) : null, sample, items: [] })
      }
      lanes.get(key).items.push({ column, call, row })
    }
    for (const { threshold } of call.rows) {
      if (threshold !== null) thresholds.set(column, Math.max(threshold, thresholds.get(column) ?? 0))
    }
  }
  const columns = column + 1
  const order = (lane) => (lane.group ? `${lane.group.window ?? ""}`.padStart(6, "0") + lane.group.conds.join("+") : "")
  const sorted = [...lanes.values()].sort(
    (a, b) => order(a).localeCompare(order(b)) || (a.sample ?? 0) - (b.sample ?? 0)
  )
  return { run, lanes: sorted, thresholds, columns, expected: expectedColumns(run, columns) }
}

/** How many columns the run will have; while it runs, as many per step as so far. */
function expectedColumns(run, columns) {
  if (run.status === "finished" || !run.steps) return columns
  const stepsDone = 1 + (run.calls.at(-1)?.step ?? -1)
  const perStep = stepsDone > 0 ? Math.max(1, Math.round(columns / stepsDone)) : 1
  return Math.max(columns, Math.min(run.steps * perStep, 20000))
}

function scaleOf(tables) {
  const thresholds = tables.flatMap((table) => [...table.thresholds.values()])
  const errors = tables.flatMap((table) =>
    table.lanes.flatMap((lane) => lane.items.map(({ row }) => row.error).filter((error) => error !== null))
  )
  const largest = errors.reduce((a, b) => Math.max(a, b), 0)
  // Nor must one threshold: where a speed is asked for, the last call may have any error that the time left allows.
  const usual = [...thresholds].sort((a, b) => a - b)[Math.floor(thresholds.length / 2)] ?? 0
  const highest = Math.min(thresholds.reduce((a, b) => Math.max(a, b), 0), Math.max(2 * usual, 1.2 * largest))
  // One error far above the threshold must not press everything else to the floor: it is drawn at the edge instead.
  const max = highest > 0 ? Math.max(highest * 1.12, Math.min(largest * 1.08, highest * 1.7)) : largest * 1.08
  return max > 0 ? max : 1
}

function worst(rows) {
  const strain = (row) => (row.error === null ? (row.reason === "not_finite" ? Infinity : -1) : row.error)
  return rows.reduce((a, b) => (strain(b) > strain(a) ? b : a))
}

function dearest(items) {
  for (const outcome of DEAREST_FIRST) {
    const found = items.find(({ row }) => row.outcome === outcome)
    if (found) return found
  }
  return items[0]
}

function ticks(max) {
  const rough = max / 3
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough)
  const values = []
  for (let i = 0; i * step <= max; i += 1) values.push(Number((i * step).toPrecision(6)))
  return values
}

function callTicks(total) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => total / n <= 12) ?? total
  const columns = [0]
  for (let i = step; i <= total; i += step) if (i > 1) columns.push(i - 1)
  return columns
}

// -- in words ----------------------------------------------------------------------------------------------------------

/** What a cell says when it is pointed at or has the focus. */
export function describe(words, cell, run, names = null) {
  const parts = names ? [names] : []
  if (cell.items.length > 1) {
    const calls = cell.items.map(({ call }) => call.call + 1)
    parts.push(words("tip.calls", { first: Math.min(...calls), last: Math.max(...calls) }))
    for (const outcome of OUTCOMES) {
      const n = cell.items.filter(({ row }) => row.outcome === outcome).length
      if (n > 0) parts.push(`${n} ${words(`short.${outcome}`)}`)
    }
    return parts.join(" · ")
  }
  const { call, row } = cell.items[0]
  parts.push(words("tip.call", { call: call.call + 1 }))
  if (call.step !== null && call.step !== call.call) parts.push(words("tip.step", { step: call.step + 1 }))
  if (call.sigma !== null) parts.push(`σ ${words.number(call.sigma)}`)
  const why = reason(words, row, run.settings)
  parts.push(why ? words("tip.outcome", { outcome: words(`short.${row.outcome}`), reason: why }) : words(`short.${row.outcome}`))
  // The figures that the reason does not say itself.
  if (!["within", "over", "unchecked"].includes(row.reason)) {
    if (row.error !== null) parts.push(words("tip.error", { error: words.number(row.error) }))
    if (row.threshold !== null) parts.push(words("tip.threshold", { threshold: words.number(row.threshold) }))
  }
  if (row.tensors?.length) {
    const errors = row.tensors.map((error) => (error === null ? "∞" : words.number(error)))
    parts.push(words("tip.tensors", { errors: errors.join(", ") }))
  }
  if (row.judged !== null && row.true !== null) {
    parts.push(words("tip.truth", { judged: words.number(row.judged), true: words.number(row.true) }))
  }
  if (call.ms !== null) parts.push(`${call.ms < 100 ? words.number(call.ms, 2) : words.fixed(call.ms, 0)} ms`)
  return parts.join(" · ")
}

/** "positive 2": the name of a row of cells, or "" where there is only one. */
export function laneName(words, label) {
  const parts = []
  if (label.several) parts.push(label.run === 0 ? "A" : "B")
  if (label.group) {
    if (label.group.window !== null) parts.push(words("lane.window", { window: label.group.window + 1 }))
    const cond = { 0: "positive", 1: "negative" }
    parts.push(label.group.conds.map((each) => (cond[each] ? words(`lane.${cond[each]}`) : each + 1)).join("+"))
  }
  if (label.sample !== null) parts.push(`${label.sample + 1}`)
  return parts.join(" ")
}

const labels = new WeakMap()

/** `describe`, remembered: while a run goes on, all of its cells but the last say what they said before. */
function labelOf(words, cell, run, lane) {
  const names = longLaneName(words, lane)
  if (cell.items.length > 1) return describe(words, cell, run, names || null)
  if (!labels.has(words)) labels.set(words, new WeakMap())
  const known = labels.get(words)
  const { row } = cell.items[0]
  const before = known.get(row)
  if (before?.names === names) return before.label
  const label = describe(words, cell, run, names || null)
  known.set(row, { names, label })
  return label
}

function longLaneName(words, label) {
  const parts = []
  if (label.several) parts.push(label.run === 0 ? "A" : "B")
  if (label.group) parts.push(laneName(words, { ...label, several: false, sample: null }))
  if (label.sample !== null) parts.push(words("tip.sample", { sample: label.sample + 1 }))
  return parts.join(" · ")
}

// -- drawing -----------------------------------------------------------------------------------------------------------

/**
 * A chart in the page: `update(runs, words)` draws, `dom` is its element. Cells can be pointed at and walked with the
 * arrow keys.
 */
export function createChart({ plot = SPACE.plot, axis = false, maxLanes = MAX_LANES, onHeight = () => {} } = {}) {
  const dom = document.createElement("div")
  dom.className = "speca-chart"
  const svg = document.createElementNS(SVG, "svg")
  const tip = document.createElement("div")
  tip.className = "speca-tip"
  tip.hidden = true
  dom.append(svg, tip)

  let runs = []
  let words = null
  let shape = null
  let active = null
  let pointed = false
  let width = 0
  let height = 0
  let needed = 0

  const observer = new ResizeObserver(() => {
    // clientWidth is in the chart's own pixels, however far the canvas around it is zoomed.
    if (dom.clientWidth !== width || dom.clientHeight !== height) draw()
  })
  observer.observe(dom)

  function update(newRuns, newWords) {
    runs = newRuns
    words = newWords
    draw()
  }

  function draw() {
    width = dom.clientWidth
    if (words === null || width < 20) return
    const least = geometry(runs, { width, plot, axis, maxLanes })
    if (needed !== least.height) {
      needed = least.height
      dom.style.minHeight = `${needed}px`
      onHeight()
    }
    // A taller place gives the errors more room; the picture is out of the flow, so it cannot ask for more itself.
    height = dom.clientHeight
    const room = Math.min(MAX_PLOT, plot + Math.max(0, height - needed))
    shape = room === plot ? least : geometry(runs, { width, plot: room, axis, maxLanes })
    svg.setAttribute("viewBox", `0 0 ${shape.width} ${shape.height}`)
    svg.setAttribute("width", shape.width)
    svg.setAttribute("height", shape.height)
    svg.setAttribute("role", "group")
    svg.setAttribute("aria-label", words("chart"))
    if (!shape.cells.some((cell) => cell.key === active)) active = null
    patch(svg, picture(shape, runs, words, active))
    showTip()
  }

  function activate(key) {
    if (key === active) return
    active = key
    patch(svg, picture(shape, runs, words, active))
    showTip()
  }

  function showTip() {
    const cell = shape?.cells.find((each) => each.key === active)
    tip.hidden = !cell
    if (!cell) return
    const name = longLaneName(words, shape.lanes[cell.lane].label)
    tip.textContent = describe(words, cell, runs[cell.run], name || null)
    // Centred over the cell, but never beyond the chart's edges.
    tip.style.left = "0px"
    const room = shape.width - tip.offsetWidth
    tip.style.left = `${Math.max(0, Math.min(room, cell.x + cell.w / 2 - tip.offsetWidth / 2))}px`
    tip.style.top = `${Math.max(-2, shape.top - 6)}px`
    tip.dataset.kind = cell.kind
  }

  function cellAt(event) {
    const box = svg.getBoundingClientRect()
    if (!shape || box.width === 0) return null
    const scale = shape.width / box.width
    const x = (event.clientX - box.left) * scale
    const y = (event.clientY - box.top) * scale
    const bin = Math.floor((x - shape.left) / shape.binPitch)
    const column = shape.cells.filter((cell) => cell.bin === bin)
    if (column.length === 0) return null
    if (y < shape.base) return DEAREST_FIRST.flatMap((kind) => column.filter((cell) => cell.kind === kind))[0]
    return column.reduce((a, b) => (Math.abs(b.y + b.h / 2 - y) < Math.abs(a.y + a.h / 2 - y) ? b : a))
  }

  svg.addEventListener("pointermove", (event) => {
    pointed = true
    activate(cellAt(event)?.key ?? null)
  })
  svg.addEventListener("pointerleave", () => {
    pointed = false
    const focused = svg.contains(document.activeElement) ? document.activeElement.dataset.key : null
    activate(focused ?? null)
  })
  svg.addEventListener("focusin", (event) => {
    if (event.target.dataset.key) activate(event.target.dataset.key)
  })
  svg.addEventListener("focusout", () => {
    if (!pointed) activate(null)
  })
  svg.addEventListener("keydown", (event) => {
    const from = shape?.cells.find((cell) => cell.key === event.target.dataset.key)
    if (!from) return
    const to = neighbour(shape.cells, from, event.key)
    if (to === undefined) {
      if (event.key === "Escape") activate(null)
      return
    }
    // The canvas behind would move its selected nodes.
    event.preventDefault()
    event.stopPropagation()
    if (to) svg.querySelector(`[data-key="${CSS.escape(to.key)}"]`)?.focus({ preventScroll: true })
  })

  return {
    dom,
    update,
    minHeight: () => needed || geometry([], { width: 300, plot, axis }).height,
    hiddenLanes: () => shape?.hiddenLanes ?? 0,
    destroy: () => observer.disconnect()
  }
}

/** Where an arrow key leads from a cell: a cell, null at an edge, undefined for a key that means nothing here. */
export function neighbour(cells, from, key) {
  const row = cells.filter((cell) => cell.lane === from.lane).sort((a, b) => a.bin - b.bin)
  const at = row.indexOf(from)
  if (key === "ArrowRight") return row[at + 1] ?? null
  if (key === "ArrowLeft") return row[at - 1] ?? null
  if (key === "Home") return row[0]
  if (key === "End") return row.at(-1)
  if (key === "ArrowDown" || key === "ArrowUp") {
    const lane = from.lane + (key === "ArrowDown" ? 1 : -1)
    return cells.find((cell) => cell.lane === lane && cell.bin === from.bin) ?? null
  }
  return undefined
}

/** The chart as nested specifications `[tag, key, attributes, children or text]`. */
function picture(shape, runs, words, active) {
  const spec = []
  const at = shape.cells.find((cell) => cell.key === active)

  for (const tick of shape.valueTicks) {
    spec.push(["line", `vt${tick.value}`, { class: "speca-grid", x1: shape.left, x2: shape.right, y1: tick.y, y2: tick.y }])
    spec.push(
      ["text", `vl${tick.value}`, { class: "speca-label", x: shape.left - 6, y: tick.y + 3, "text-anchor": "end" }, words.number(tick.value)]
    )
  }
  for (const tick of shape.callTicks) {
    spec.push(
      ["text", `ct${tick.column}`, { class: "speca-label", x: tick.x, y: shape.bottom + 11, "text-anchor": "middle" }, `${tick.column + 1}`]
    )
  }
  if (shape.valueTicks.length === 0) {
    spec.push(["line", "floor", { class: "speca-grid", x1: shape.left, x2: shape.right, y1: shape.base, y2: shape.base }])
  }
  if (at) {
    const x = at.x + at.w / 2
    spec.push(["line", "cursor", { class: "speca-cursor", x1: x, x2: x, y1: shape.top, y2: shape.bottom }])
  }

  shape.thresholds.forEach((points, run) => {
    if (points.length === 0) return
    const only = points.length === 1
    const drawn = only ? [[points[0][0] - 4, points[0][1]], [points[0][0] + 4, points[0][1]]] : points
    const d = "M" + drawn.map(([x, y]) => `${round(x)},${round(y)}`).join("L")
    spec.push(["path", `threshold${run}`, { class: `speca-threshold speca-run${run}`, d }])
    if (run === 0) {
      const name = words("threshold")
      const { x, y } = labelPlace(shape, drawn, widthOf(name))
      spec.push(["text", "threshold-name", { class: "speca-label", x, y, "text-anchor": "end" }, name])
    }
  })

  // One path for all errors of a kind: a thousand calls would be three thousand elements.
  const size = Math.max(1.6, Math.min(3.2, shape.binPitch * 0.45))
  for (const run of [0, 1]) {
    for (const kind of ["trusted", "accepted", "full", "rejected"]) {
      const marks = shape.marks.filter((mark) => mark.run === run && mark.kind === kind)
      if (marks.length === 0) continue
      const key = `${kind}${run}`
      const kept = `speca-${kind} speca-run${run}`
      const stems = marks.map(({ x, y, base }) => `M${round(x)},${base}V${round(y)}`).join("")
      const head = kind === "rejected" ? (x, y) => triangle(x, y, size * 1.35) : (x, y) => disc(x, y, size)
      const heads = marks.map(({ x, y }) => head(x, y)).join("")
      const beyond = marks
        .filter((mark) => mark.clipped)
        .map(({ x, y }) => `M${round(x - size - 1)},${round(y - size * 1.35 - 2)}h${round(2 * size + 2)}`)
      spec.push(["path", `stems${key}`, { class: `speca-stems ${kept}`, d: stems }])
      spec.push(["path", `heads${key}`, { class: `speca-heads ${kept}`, d: heads, "data-n": String(marks.length) }])
      if (beyond.length > 0) spec.push(["path", `beyond${key}`, { class: `speca-beyond ${kept}`, d: beyond.join("") }])
    }
  }

  if (shape.truths.length > 0) {
    const at = { x1: shape.left, x2: shape.right, y1: shape.truthBase, y2: shape.truthBase }
    spec.push(["line", "truth-floor", { class: "speca-grid", ...at }])
    const small = Math.min(size, 2.4)
    const between = shape.truths.map(({ x, judged, true: truth }) => `M${round(x)},${round(judged)}V${round(truth)}`)
    const dots = shape.truths.map(({ x, judged }) => disc(x, judged, small))
    const rings = shape.truths.map(({ x, true: truth }) => disc(x, truth, small + 0.8))
    spec.push(["path", "truth-between", { class: "speca-stems speca-accepted", d: between.join("") }])
    spec.push(["path", "truth-judged", { class: "speca-judged speca-accepted", d: dots.join("") }])
    spec.push(["path", "truth", { class: "speca-truth", d: rings.join(""), "data-n": String(rings.length) }])
  }

  for (const lane of shape.lanes) {
    if (!shape.labelled) break
    const attributes = { class: "speca-label", x: shape.left - 6, y: lane.y + lane.h / 2 + 3.5, "text-anchor": "end" }
    spec.push(["text", `l${lane.key}`, attributes, laneName(words, lane.label)])
  }
  shape.pending.forEach(({ x, y, w, h, planned }, i) => {
    if (planned) {
      // The place of a computed call's square, hollow until the run gets there.
      const side = Math.min(w, 22) - 1
      const place = { x: x + (w - side) / 2, y: y + 1, width: Math.max(1, side), height: h - 2, rx: 2.5 }
      spec.push(["rect", `p${i}`, { class: "speca-planned", ...place }])
    } else {
      spec.push(["rect", `p${i}`, { class: "speca-pending", x, y: y + h / 2 - 1, width: w, height: 2, rx: 1 }])
    }
  })

  const first = shape.cells[0]?.key
  for (const cell of shape.cells) {
    const attributes = {
      class: `speca-cell speca-${cell.kind} speca-run${cell.run}${cell.key === active ? " speca-active" : ""}`,
      "data-key": cell.key,
      tabindex: cell.key === (active ?? first) ? 0 : -1,
      role: "img",
      "aria-label": labelOf(words, cell, runs[cell.run], shape.lanes[cell.lane].label)
    }
    spec.push(["g", `c${cell.key}`, attributes, cellShape(cell)])
  }
  return spec
}

/** Roughly, at the size of a label: letters of the East are as wide as they are high. */
function widthOf(text) {
  return [...text].reduce((sum, letter) => sum + (letter > "\u2e80" ? 10.5 : 6), 0)
}

/** Where the curve's name covers the fewest errors: over or under it, as far to the right as possible. */
export function labelPlace(shape, points, width) {
  const height = 11
  let best = null
  for (const [x0, y0] of [...points].reverse()) {
    const x = Math.max(x0, shape.left + width)
    const beneath = points.filter((point) => point[0] >= x - width && point[0] <= x).map((point) => point[1])
    const highest = Math.min(y0, ...beneath)
    const lowest = Math.max(y0, ...beneath)
    for (const y of [highest - 5, lowest + height + 1]) {
      if (y - height < 0 || y > shape.base - 2) continue
      const near = shape.marks.filter((mark) => mark.x > x - width - 4 && mark.x < x + 4)
      const covered = near.filter((mark) => mark.y > y - height - 3 && mark.y < y + 4).length
      const crossed = near.filter((mark) => mark.y <= y - height - 3).length
      const cost = 3 * covered + crossed
      if (best === null || cost < best.cost) best = { x, y, cost }
    }
    if (best?.cost === 0) break
  }
  return best ?? { x: shape.right, y: shape.top + height }
}

function cellShape({ x, y, w, h, kind, narrow }) {
  const cx = x + w / 2
  const cy = y + h / 2
  if (narrow) {
    // Too narrow for shapes: heights tell the outcomes apart.
    const tall = { full: [0, h], accepted: [h * 0.36, h * 0.28], trusted: [h * 0.44, h * 0.12], rejected: [-3, h + 3] }[kind]
    const bar = { x, y: y + tall[0], width: w, height: tall[1], rx: Math.min(1, w / 3) }
    if (kind !== "rejected") return [["rect", "bar", { ...bar, class: "speca-body" }]]
    return [
      ["rect", "bar", { ...bar, y, height: h, class: "speca-body" }],
      ["rect", "top", { ...bar, height: 6, class: "speca-sign" }]
    ]
  }
  if (kind === "accepted" || kind === "trusted") {
    return [
      ["rect", "hit", { class: "speca-hit", x, y, width: w, height: h, rx: 3 }],
      ["circle", "dot", { class: "speca-body", cx, cy, r: Math.min(3, w / 2.6) }]
    ]
  }
  const square = Math.min(w, 22)
  const block = ["rect", "block", { class: "speca-body", x: cx - square / 2, y: y + 0.5, width: square, height: h - 1, rx: 2.5 }]
  return kind === "full" ? [block] : [block, ["path", "sign", { class: "speca-sign", d: triangle(cx, cy, Math.min(5, square / 2.4)) }]]
}

function disc(x, y, r) {
  return `M${round(x - r)},${round(y)}a${round(r)},${round(r)} 0 1 0 ${round(2 * r)},0a${round(r)},${round(r)} 0 1 0 ${round(-2 * r)},0z`
}

function triangle(x, y, r) {
  return `M${round(x)},${round(y - r)}L${round(x + r)},${round(y + r * 0.8)}H${round(x - r)}z`
}

function round(value) {
  return Math.round(value * 100) / 100
}

/** Makes `parent`'s children those specified, keeping the elements whose key stays, so that focus survives. */
function patch(parent, spec) {
  const wanted = new Set(spec.map(([, key]) => key))
  const old = new Map()
  for (const node of [...parent.childNodes]) {
    // First, or what stays would have to be moved past it, and an element that is moved loses the focus.
    if (wanted.has(node.specaKey)) old.set(node.specaKey, node)
    else node.remove()
  }
  let next = parent.firstChild
  for (const [tag, key, attributes, content] of spec) {
    let node = old.get(key)
    if (!node || node.localName !== tag) {
      node = document.createElementNS(SVG, tag)
      node.specaKey = key
    } else {
      old.delete(key)
    }
    for (const [name, value] of Object.entries(attributes)) {
      const text = typeof value === "number" ? String(round(value)) : value
      if (node.getAttribute(name) !== text) node.setAttribute(name, text)
    }
    if (typeof content === "string") {
      if (node.textContent !== content) node.textContent = content
    } else if (content) {
      patch(node, content)
    }
    if (node === next) next = next.nextSibling
    else parent.insertBefore(node, next)
  }
  for (const node of old.values()) node.remove()
}
