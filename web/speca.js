/**
 * SpeCa's panel in ComfyUI: on every SpeCa node, and as a tab below the canvas.
 *
 * The only file that touches ComfyUI. Events go through the reducer into one state; the panels are drawn from it.
 */

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { asked, comparisonOf, followed, isLive, nodeOf } from "./compare.js"
import { createNodePanel, createRunsPanel } from "./panel.js"
import { allRuns, emptyState, isIncomplete, reduce, runsOf } from "./reducer.js"
import { makeWords } from "./words.js"

const NODE = "SpeCa"
const TAB = "speca"
const WIDGET_MARGIN = 6
const NODE_WIDTH = 460
const MAX_DEPTH = 12

let state = emptyState()
let dictionaries = {}

/** Node -> its panel and what is chosen in it. */
const panels = new Map()

const runsPanel = createRunsPanel({
  nameOf: (run) => directory().title(run.node_id) ?? (run.node_id === null ? "–" : `${NODE} #${run.node_id}`),
  canCopy: (run) => isOfThisWorkflow(run) && directory().node(run.node_id) !== null,
  copy: copySettings,
  onShow: complete
})

// -- events ------------------------------------------------------------------------------------------------------------

function dispatch(event) {
  const before = state
  try {
    state = reduce(state, event)
  } catch (error) {
    console.warn("[SpeCa] an event was not understood", error)
  }
  if (state !== before) schedule()
}

api.addEventListener("speca", ({ detail }) => {
  dispatch(detail)
  const run = state.runs.get(detail?.run_id)
  // A page that came in the middle of a run, or one row too many for an event: the rest is at the route.
  if (run && (!run.started || hasGap(run) || run.status !== "running")) complete(run)
})

api.addEventListener("executed", ({ detail }) => readOutput(detail?.output))
api.addEventListener("reconnected", () => catchUp())

/** The report node's trace, which ComfyUI keeps in its history. */
function readOutput(output) {
  const reports = Array.isArray(output?.[TAB]) ? output[TAB] : []
  for (const report of reports) {
    try {
      dispatch({ type: "record", record: typeof report === "string" ? JSON.parse(report) : report })
    } catch {
      // Another pack's output of the same name.
    }
  }
}

function hasGap(run) {
  return run.calls.some((call, i) => call.call !== i)
}

const fetched = new Map()

/** Fetches what is missing of a run; at most three times, and not more often than every two seconds. */
async function complete(run) {
  if (!isIncomplete(run)) return
  const before = fetched.get(run.run_id) ?? { times: 0, at: 0 }
  if (before.times >= 3 || Date.now() - before.at < 2000) return
  fetched.set(run.run_id, { times: before.times + 1, at: Date.now() })
  const record = await get(`/speca/runs/${encodeURIComponent(run.run_id)}`)
  if (record) dispatch({ type: "record", record })
}

/** Everything the server still knows; runs it no longer knows do not go on for ever. */
async function catchUp() {
  const running = allRuns(state).filter((run) => run.status === "running")
  const answer = await get("/speca/runs")
  if (!Array.isArray(answer?.runs)) return
  dispatch({ type: "snapshot", runs: answer.runs })
  const known = new Set(answer.runs.map((run) => run?.run_id))
  dispatch({ type: "lost", run_ids: running.map((run) => run.run_id).filter((run_id) => !known.has(run_id)) })
}

async function get(path) {
  try {
    const answer = await api.fetchApi(path, { cache: "no-store" })
    return answer.ok ? await answer.json() : null
  } catch {
    return null
  }
}

// -- which workflow ----------------------------------------------------------------------------------------------------

function rootGraph() {
  return app.rootGraph ?? app.graph ?? null
}

function workflowId() {
  return rootGraph()?.id ?? null
}

const tabOfWorkflow = new WeakMap()
const STORED_TABS = "SpeCa.tabs"
let stored = readStored()

/**
 * A name for the open workflow tab. Two tabs with copies of one workflow have the same workflow id; the tab's object
 * tells them apart, its path finds it again after a reload, and neither a rename nor a save makes it another tab.
 */
function tab() {
  const workflow = app.extensionManager?.workflow?.activeWorkflow
  if (!workflow) return null
  let name = tabOfWorkflow.get(workflow)
  if (name === undefined) {
    name = stored.paths[workflow.path] ?? crypto.randomUUID?.() ?? String(Math.random())
    tabOfWorkflow.set(workflow, name)
  }
  if (stored.paths[workflow.path] !== name) {
    stored.paths[workflow.path] = name
    writeStored()
  }
  return name
}

function readStored() {
  try {
    const { paths, prompts } = JSON.parse(sessionStorage.getItem(STORED_TABS))
    return { paths: { ...paths }, prompts: [...prompts] }
  } catch {
    return { paths: {}, prompts: [] }
  }
}

function writeStored() {
  stored = { paths: Object.fromEntries(Object.entries(stored.paths).slice(-50)), prompts: stored.prompts.slice(-200) }
  try {
    sessionStorage.setItem(STORED_TABS, JSON.stringify(stored))
  } catch {
    // A full or forbidden storage: after a reload two tabs with the same workflow show each other's runs.
  }
}

/** Notes which tab queues which prompt: nothing in the prompt or in the server's events says so. */
function watchQueue() {
  const queuePrompt = api.queuePrompt
  api.queuePrompt = async function (...args) {
    const from = tab()
    const answer = await queuePrompt.apply(this, args)
    const prompt_id = answer?.prompt_id
    if (from && prompt_id) {
      dispatch({ type: "queued", prompt_id, tab: from })
      stored.prompts.push([prompt_id, from])
      writeStored()
    }
    return answer
  }
}

function isOfThisWorkflow(run) {
  return runsOf(state, workflowId(), tab()).includes(run)
}

// -- which node --------------------------------------------------------------------------------------------------------

let listed = null

/**
 * The open workflow's nodes by execution id: "5" at the top, "12:5" for node 5 of the subgraph that node 12 is. A
 * subgraph that is used twice holds one node object under two execution ids.
 */
function directory() {
  if (listed !== null) return listed
  const entries = new Map()
  const walk = (graph, prefix, path, depth) => {
    if (!graph || depth > MAX_DEPTH) return
    for (const node of graph.nodes ?? graph._nodes ?? []) {
      const title = node.title || node.type
      entries.set(`${prefix}${node.id}`, { node, path, title })
      if (node.subgraph) walk(node.subgraph, `${prefix}${node.id}:`, [...path, { id: node.id, title }], depth + 1)
    }
  }
  walk(rootGraph(), "", [], 0)
  const titles = [...entries.values()].map(({ path, title }) => [...path.map((each) => each.title), title].join(" / "))
  listed = {
    node: (id) => entries.get(id)?.node ?? null,
    /** "Upscale / SpeCa"; with the id where two nodes are called the same. */
    title(id) {
      const entry = entries.get(id)
      if (!entry) return null
      const title = [...entry.path.map((each) => each.title), entry.title].join(" / ")
      return titles.filter((each) => each === title).length > 1 ? `${title} #${id}` : title
    },
    /** The subgraph instance that holds the node, "" at the top. */
    place(id) {
      const path = entries.get(id)?.path ?? []
      return path.map((each) => each.title).join(" / ")
    },
    idsOf: (node) => [...entries].filter(([, entry]) => entry.node === node).map(([id]) => id)
  }
  // Only as long as this drawing takes: nodes come, go and are renamed without telling.
  queueMicrotask(() => {
    listed = null
  })
  return listed
}

/** The runs a node can show: the last of every place it stands in and of every sampler it serves, newest first. */
function offers(node) {
  const nodes = directory()
  const ids = new Set(nodes.idsOf(node))
  const offered = new Map()
  for (const run of runsOf(state, workflowId(), tab())) {
    const sampler = nodeOf(run.sampler_node_id)
    const key = `${run.node_id}>${sampler}`
    if (!ids.has(run.node_id) || offered.has(key)) continue
    if (offered.size > 0 && sampler !== null && nodes.node(sampler) === null) continue
    offered.set(key, run)
  }
  const runs = [...offered]
  const places = new Set(runs.map(([, run]) => run.node_id))
  const samplers = new Set(runs.map(([, run]) => nodeOf(run.sampler_node_id)))
  const named = runs.map(([key, run]) => {
    const parts = []
    if (places.size > 1) parts.push(nodes.place(run.node_id) || run.node_id)
    if (samplers.size > places.size || places.size < 2) parts.push(nodes.node(nodeOf(run.sampler_node_id))?.title ?? nodeOf(run.sampler_node_id))
    return { key, run, name: parts.join(" · "), id: places.size > 1 ? run.node_id : nodeOf(run.sampler_node_id) }
  })
  for (const each of named) {
    if (named.some((other) => other !== each && other.name === each.name)) each.label = `${each.name} #${each.id}`
  }
  return named.map(({ key, run, name, label }) => ({ key, run, name: label ?? name }))
}

function copySettings(run) {
  const nodes = directory()
  const node = nodes.node(run.node_id)
  if (node === null) return null
  app.canvas?.emitBeforeChange?.()
  try {
    for (const widget of node.widgets ?? []) {
      if (!Object.hasOwn(run.settings, widget.name)) continue
      const value = run.settings[widget.name]
      if (typeof value !== typeof widget.value) continue
      widget.value = value
      widget.callback?.(value, app.canvas, node)
    }
  } finally {
    app.canvas?.emitAfterChange?.()
  }
  app.canvas?.setDirty?.(true, true)
  return nodes.title(run.node_id)
}

// -- the comparison with the run without SpeCa ---------------------------------------------------------------------------

const MAX_COMPARISONS = 20

/** Newest first. */
let comparisons = []

for (const name of ["status", "execution_start", "progress", "executed", "execution_error", "execution_interrupted"]) {
  api.addEventListener(name, ({ detail }) => {
    const after = comparisons.map((each) => followed(each, name, detail))
    if (after.every((each, i) => each === comparisons[i])) return
    comparisons = after
    schedule()
  })
}

/** What the button does: asks for a comparison of the open graph, or cancels the one that is going on. */
async function compare(run, going) {
  if (going) return cancel(going)
  if (!run) return
  const about = { node_id: run.node_id, sampler_node_id: nodeOf(run.sampler_node_id), tab: tab(), beside: run.run_id }
  let changes
  try {
    // As the graph is: nothing is told that it is queued, so that seeds do not move on.
    const { output, workflow } = await app.graphToPrompt()
    const { prompt, ...refused } = comparisonOf(output, about.node_id, about.sampler_node_id)
    changes = prompt ? { prompt_id: (await api.queuePrompt(0, { output: prompt, workflow })).prompt_id } : { status: "refused", ...refused }
  } catch (error) {
    changes = { status: "failed", why: "failed", values: { error: error?.toString?.() ?? "" } }
  }
  comparisons = [asked(about, changes), ...comparisons].slice(0, MAX_COMPARISONS)
  schedule()
}

async function cancel(comparison) {
  comparisons = comparisons.map((each) => (each === comparison ? { ...each, status: "cancelled" } : each))
  schedule()
  await api.deleteItem("queue", comparison.prompt_id)
  await api.interrupt(comparison.prompt_id)
}

/** The one to show beside a run on a node: one that goes on, one that made the run, or one that came to nothing beside it. */
function comparisonBeside(run) {
  if (run === null) return null
  const here = comparisons.find(
    (each) => each.tab === tab() && each.node_id === run.node_id && each.sampler_node_id === nodeOf(run.sampler_node_id)
  )
  if (!here) return null
  const of = here.status === "done" ? run.run_id === here.run_id : [run.run_id, run.prompt_id].some((id) => [here.beside, here.prompt_id].includes(id))
  return isLive(here) || of ? here : null
}

function phaseOf({ prompt_id }) {
  return allRuns(state).some((run) => run.prompt_id === prompt_id && run.status !== "running") ? "uncached" : "speca"
}

const imageUrl = ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)

// -- drawing -----------------------------------------------------------------------------------------------------------

// Ten pictures a second show a run well enough, and leave the page to the canvas.
const MS_PER_PICTURE = 100

let scheduled = false
let drawnAt = -Infinity

function schedule() {
  if (scheduled) return
  scheduled = true
  const wait = drawnAt + MS_PER_PICTURE - performance.now()
  if (wait > 0) setTimeout(() => requestAnimationFrame(draw), wait)
  else requestAnimationFrame(draw)

  function draw() {
    scheduled = false
    drawnAt = performance.now()
    safely(render)
  }
}

function render() {
  listed = null
  const words = currentWords()
  const colours = theme()
  for (const [node, shown] of panels) {
    shown.panel.dom.dataset.theme = colours
    const choices = offers(node)
    const chosen = choices.find(({ key }) => key === shown.chosen) ?? newest(choices)
    // Places in the order of their ids: a button must not move when another run starts.
    const ordered = [...choices].sort((a, b) => a.key.localeCompare(b.key, undefined, { numeric: true }))
    const buttons = ordered.map((choice) => ({ ...choice, chosen: choice === chosen }))
    const run = chosen?.run ?? null
    shown.run = run
    shown.comparison = comparisonBeside(run)
    const phase = shown.comparison && phaseOf(shown.comparison)
    shown.panel.update({ run, choices: buttons, comparison: shown.comparison, phase, imageUrl }, words)
  }
  if (runsPanel.dom.isConnected) renderRuns()
}

function renderRuns() {
  runsPanel.dom.dataset.theme = theme()
  runsPanel.update(runsOf(state, workflowId(), tab()), allRuns(state), currentWords())
}

/** Never an exception on the canvas. */
function safely(drawing) {
  try {
    drawing()
  } catch (error) {
    console.warn("[SpeCa] the panel could not be drawn", error)
  }
}

let said = { dictionaries: null, locale: null, words: null }

/** The same object as long as nothing changed: what was put into words is remembered with it. */
function currentWords() {
  const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"
  if (said.dictionaries !== dictionaries || said.locale !== locale) {
    said = { dictionaries, locale, words: makeWords(dictionaries, locale) }
  }
  return said.words
}

function newest(choices) {
  return choices.reduce((a, b) => (a === null || b.run.started_at > a.run.started_at ? b : a), null)
}

const themes = new Map()

/** By the theme's own colours: how it is named in the page differs between versions. */
function theme() {
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--bg-color").trim()
  if (!themes.has(ground)) {
    const canvas = document.createElement("canvas").getContext("2d")
    canvas.fillStyle = "#202020"
    canvas.fillStyle = ground
    canvas.fillRect(0, 0, 1, 1)
    const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data
    themes.set(ground, 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "light" : "dark")
  }
  return themes.get(ground)
}

function inVueNodes() {
  return globalThis.LiteGraph?.vueNodesMode === true
}

function addPanel(node) {
  const shown = { chosen: null, run: null, comparison: null, panel: null }
  const panel = createNodePanel({
    onOpen: () => openTab(shown.run?.run_id),
    onCompare: () => compare(shown.run, shown.comparison && isLive(shown.comparison) ? shown.comparison : null),
    onChoose(key) {
      shown.chosen = key
      schedule()
    },
    onHeight: () => fit(node)
  })
  shown.panel = panel
  const widget = node.addDOMWidget("speca_panel", "speca", panel.dom, {
    serialize: false,
    hideOnZoom: false,
    margin: WIDGET_MARGIN,
    getMinHeight: () => panel.minHeight() + 2 * WIDGET_MARGIN,
    getValue: () => "",
    setValue: () => {}
  })
  // The option keeps it out of prompts, this out of saved workflows, whose values would shift.
  widget.serialize = false
  forwardToCanvas(panel.dom)
  panels.set(node, shown)
  const { onRemoved } = node
  node.onRemoved = function (...args) {
    panels.delete(node)
    panel.destroy()
    return onRemoved?.apply(this, args)
  }
  if (node.size[0] < NODE_WIDTH) node.setSize([NODE_WIDTH, node.size[1]])
  fit(node)
  schedule()
}

/** Lets the node grow to what its panel needs; never shrinks what a person has made larger. */
function fit(node) {
  if (inVueNodes() || !node.computeSize) return
  const [, height] = node.computeSize()
  if (node.size[1] < height) node.setSize([node.size[0], height])
  app.canvas?.setDirty?.(true, true)
}

/** In the classic canvas the panel lies over it: what is meant for the canvas goes on to it. */
function forwardToCanvas(dom) {
  const pass = (type, wanted, method) =>
    dom.addEventListener(type, (event) => {
      if (!inVueNodes() && wanted(event)) app.canvas?.[method]?.(event)
    })
  pass("wheel", () => true, "processMouseWheel")
  pass("pointerdown", (event) => event.button === 1, "processMouseDown")
  pass("pointermove", (event) => (event.buttons & 4) === 4, "processMouseMove")
  pass("pointerup", (event) => event.button === 1, "processMouseUp")
}

function openTab(run_id) {
  if (run_id) runsPanel.show(run_id)
  const bottom = app.extensionManager?.bottomPanel
  if (bottom?.activeBottomPanelTab?.id !== TAB) bottom?.toggleBottomPanelTab?.(TAB)
}

function addStyle() {
  const link = document.createElement("link")
  link.rel = "stylesheet"
  link.href = new URL("./panel.css", import.meta.url).href
  link.addEventListener("load", schedule)
  document.head.append(link)
}

app.registerExtension({
  name: "SpeCa.Panel",

  bottomPanelTabs: [
    {
      id: TAB,
      title: "SpeCa",
      type: "custom",
      render(place) {
        place.style.height = "100%"
        // Drawn before it is seen: the next picture may be a tenth of a second away.
        safely(renderRuns)
        if (runsPanel.dom.parentNode !== place) place.replaceChildren(runsPanel.dom)
        // Again once it is in the page: the chart asks how wide it is.
        schedule()
      }
    }
  ],

  async setup() {
    addStyle()
    watchQueue()
    // Another tab's nodes are there some time before the page says that the tab is open, and tells no extension of it.
    app.extensionManager?.workflow?.$onAction?.(({ name, after }) => {
      if (name === "openWorkflow") after(schedule)
    })
    for (const [prompt_id, from] of stored.prompts) dispatch({ type: "queued", prompt_id, tab: from })
    for (const setting of ["Comfy.Locale", "Comfy.ColorPalette"]) {
      // The page applies the setting after it has told of it.
      app.ui?.settings?.addEventListener?.(`${setting}.change`, () => setTimeout(schedule, 100))
    }
    dictionaries = (await get("/i18n")) ?? {}
    schedule()
    await catchUp()
  },

  nodeCreated(node) {
    if (node.comfyClass === NODE) addPanel(node)
  },

  afterConfigureGraph() {
    schedule()
  },

  onNodeOutputsUpdated(outputs) {
    for (const output of Object.values(outputs ?? {})) readOutput(output)
    schedule()
  }
})
