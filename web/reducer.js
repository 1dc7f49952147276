/**
 * What the panel knows of runs: (state, event) -> state. Pure: no browser, no ComfyUI, nothing changed in place.
 *
 * Events are those of `speca/events.py`, in any order, doubled, or incomplete; a newer version is shown as far as it is
 * understood. What is not understood is left out, never thrown over.
 */

export const VERSION = 1
export const OUTCOMES = ["full", "accepted", "trusted", "rejected"]
/** A call of several samples is what its dearest one is. */
export const DEAREST_FIRST = ["rejected", "full", "accepted", "trusted"]
export const STATUSES = ["running", "finished", "interrupted", "failed"]

const NO_ID = "00000000-0000-0000-0000-000000000000"
const KEPT_RUNS = 60
const MAX_CALLS = 20000
const MAX_ROWS = 4096

/**
 * @returns {State} `runs`: Map of run id to run; `tabs`: Map of prompt id to the workflow tab that queued it; `seen`:
 *   how many runs there were so far, which orders runs that started in the same millisecond
 */
export function emptyState() {
  return { runs: new Map(), tabs: new Map(), seen: 0 }
}

/**
 * @param {State} state
 * @param {object} event one of `run_started`, `calls`, `run_ended` (from the server), `snapshot` (`{runs}`, from the
 *   route), `record` (`{record}`, one whole run), `queued` (`{prompt_id, tab}`) or `lost` (`{run_ids}`: no longer
 *   known to the server)
 * @returns {State} the same object when nothing changed
 */
export function reduce(state, event) {
  if (!isObject(event)) return state
  switch (event.type) {
    case "run_started":
      return withRun(state, event, (run) => withHeader(run, event))
    case "calls":
      return withRun(state, event, (run) => withTotals(withCalls(run, event.calls), event.totals))
    case "run_ended":
      return withRun(state, event, (run) => withEnd(run, event))
    case "record":
      return withRecord(state, event.record)
    case "snapshot":
      return Array.isArray(event.runs) ? event.runs.reduce(withRecord, state) : state
    case "queued":
      return withTab(state, event)
    case "lost":
      return withLost(state, event.run_ids)
    default:
      return state
  }
}

/** The runs of one workflow, newest first; without those that another tab with a copy of the workflow queued. */
export function runsOf(state, workflowId, tab = null) {
  return allRuns(state).filter((run) => belongs(state, run, workflowId, tab))
}

/** Every run known, newest first. */
export function allRuns(state) {
  return [...state.runs.values()].sort((a, b) => b.started_at - a.started_at || b.seen - a.seen)
}

/** Calls the server has made known by number but whose rows have not all arrived. */
export function isIncomplete(run) {
  if (!run.started) return true
  if (run.totals && run.totals.calls > run.calls.length) return true
  return run.calls.some((call, i) => call.call !== i || call.rows.length < Math.min(call.n_samples, MAX_ROWS))
}

const UNKNOWN = { seconds: null, speedup: null, cache_bytes: null }

/** How often each outcome occurred: the server's count, or what the calls say where it is missing. */
export function totalsOf(run) {
  if (run.totals) return run.totals
  const totals = { calls: run.calls.length, full: 0, accepted: 0, trusted: 0, rejected: 0, ...UNKNOWN }
  for (const call of run.calls) totals[call.outcome] += 1
  return totals
}

/** A run as the JSON of `RunRecord`, for a file. */
export function toRecord(run) {
  const { started, newer, seen, ...record } = run
  return { version: VERSION, ...record }
}

// -- runs --------------------------------------------------------------------------------------------------------------

function emptyRun(event, seen) {
  return {
    run_id: event.run_id,
    started_at: number(event.started_at) ?? 0,
    prompt_id: id(event.prompt_id),
    workflow_id: id(event.workflow_id),
    node_id: id(event.node_id),
    sampler_node_id: id(event.sampler_node_id),
    model: null,
    architecture: null,
    experimental: false,
    n_blocks: null,
    steps: null,
    sampler: null,
    n_samples: null,
    settings: {},
    native: null,
    note: null,
    status: "running",
    totals: null,
    calls: [],
    started: false,
    newer: false,
    seen
  }
}

function withRun(state, event, change) {
  const run_id = id(event.run_id)
  if (run_id === null || !Number.isInteger(event.version) || event.version < 1) return state
  const before = state.runs.get(run_id) ?? emptyRun({ ...event, run_id }, state.seen)
  let after = change(before)
  if (event.version > VERSION && !after.newer) after = { ...after, newer: true }
  if (state.runs.get(run_id) === after) return state
  const runs = new Map(state.runs)
  runs.set(run_id, after)
  return { ...state, runs: withoutOldest(runs), seen: state.seen + 1 }
}

function withoutOldest(runs) {
  if (runs.size <= KEPT_RUNS) return runs
  const oldest = [...runs.values()].sort((a, b) => a.started_at - b.started_at || a.seen - b.seen)
  for (const run of oldest.slice(0, runs.size - KEPT_RUNS)) runs.delete(run.run_id)
  return runs
}

function withHeader(run, event) {
  if (run.started) return run
  return {
    ...run,
    started: true,
    started_at: number(event.started_at) ?? run.started_at,
    prompt_id: id(event.prompt_id) ?? run.prompt_id,
    workflow_id: id(event.workflow_id) ?? run.workflow_id,
    node_id: id(event.node_id) ?? run.node_id,
    sampler_node_id: id(event.sampler_node_id) ?? run.sampler_node_id,
    model: text(event.model),
    architecture: text(event.architecture),
    experimental: event.experimental === true,
    n_blocks: count(event.n_blocks),
    steps: count(event.steps),
    sampler: text(event.sampler),
    n_samples: count(event.n_samples),
    settings: settings(event.settings),
    native: run.native ?? text(event.native),
    note: text(event.note)
  }
}

function withCalls(run, calls) {
  if (!Array.isArray(calls)) return run
  let known = null
  for (const value of calls) {
    const call = callOf(value)
    if (call === null) continue
    known ??= new Map(run.calls.map((each) => [each.call, each]))
    const before = known.get(call.call)
    if (!before && known.size >= MAX_CALLS) continue
    known.set(call.call, before ? withMore(before, call) : call)
  }
  if (known === null) return run
  const sorted = [...known.values()].sort((a, b) => a.call - b.call)
  const same = sorted.length === run.calls.length && sorted.every((call, i) => call === run.calls[i])
  return same ? run : { ...run, calls: sorted }
}

/** A doubled event changes nothing; what it knows beyond the first (more rows, true errors) is added. */
function withMore(before, call) {
  const fresh = call.rows.filter((row, i) => i >= before.rows.length || (row.true !== null && before.rows[i].true === null))
  if (fresh.length === 0) return before
  const rows = Array.from({ length: Math.max(before.rows.length, call.rows.length) }, (_, i) =>
    fresh.includes(call.rows[i]) ? call.rows[i] : before.rows[i]
  )
  return { ...before, n_samples: Math.max(before.n_samples, call.n_samples), rows }
}

function withTotals(run, value) {
  if (!isObject(value)) return run
  const calls = count(value.calls)
  // Totals only grow: an older event that comes late must not take them back.
  if (calls === null || (run.totals && calls < run.totals.calls)) return run
  const totals = {
    calls,
    full: count(value.full) ?? 0,
    accepted: count(value.accepted) ?? 0,
    trusted: count(value.trusted) ?? 0,
    rejected: count(value.rejected) ?? 0,
    seconds: number(value.seconds),
    speedup: number(value.speedup),
    cache_bytes: number(value.cache_bytes)
  }
  const spending = spendingOf(value.spending)
  if (spending !== null) totals.spending = spending
  return JSON.stringify(totals) === JSON.stringify(run.totals) ? run : { ...run, totals }
}

/** Of a run that was asked for a speed: what it may take, what is left, and which columns after now will be computed. */
function spendingOf(value) {
  const target = isObject(value) ? number(value.target) : null
  if (target === null) return null
  const plan = Array.isArray(value.plan) ? value.plan.slice(0, MAX_ROWS).filter((each) => Number.isInteger(each) && each > 0) : []
  return {
    target,
    seconds: number(value.seconds),
    left: number(value.left),
    computed: number(value.computed),
    plan,
    threshold: number(value.threshold),
    missed: text(value.missed)
  }
}

function withEnd(run, event) {
  const ended = withTotals(run, event.totals)
  const status = STATUSES.includes(event.status) && event.status !== "running" ? event.status : null
  const native = text(event.native) ?? ended.native
  if (status === null && native === ended.native) return ended
  if (ended.status !== "running" && native === ended.native) return ended
  return { ...ended, native, status: ended.status === "running" ? (status ?? "running") : ended.status }
}

function withRecord(state, record) {
  if (!isObject(record)) return state
  return withRun(state, record, (run) => {
    const told = withTotals(withCalls(withHeader(run, record), record.calls), record.totals)
    return withEnd(told, record)
  })
}

function withTab(state, event) {
  const prompt_id = id(event.prompt_id)
  const tab = id(event.tab)
  if (prompt_id === null || tab === null || state.tabs.get(prompt_id) === tab) return state
  const tabs = new Map(state.tabs)
  tabs.set(prompt_id, tab)
  while (tabs.size > 4 * KEPT_RUNS) tabs.delete(tabs.keys().next().value)
  return { ...state, tabs }
}

function withLost(state, run_ids) {
  if (!Array.isArray(run_ids)) return state
  const lost = run_ids.map((each) => state.runs.get(each)).filter((run) => run?.status === "running")
  if (lost.length === 0) return state
  const runs = new Map(state.runs)
  for (const run of lost) runs.set(run.run_id, { ...run, status: "interrupted" })
  return { ...state, runs }
}

function belongs(state, run, workflowId, tab) {
  const queuedBy = state.tabs.get(run.prompt_id)
  if (run.workflow_id !== id(workflowId)) return false
  // A workflow that has never been saved may have no id, or the id that all such workflows have.
  if (run.workflow_id === null || run.workflow_id === NO_ID) return queuedBy !== undefined && queuedBy === tab
  return tab === null || queuedBy === undefined || queuedBy === tab
}

// -- what comes from outside --------------------------------------------------------------------------------------------

function callOf(value) {
  if (!isObject(value)) return null
  const index = count(value.call)
  if (index === null || !Array.isArray(value.rows)) return null
  const rows = []
  for (const each of value.rows.slice(0, MAX_ROWS)) {
    if (!isObject(each) || !OUTCOMES.includes(each.outcome)) continue
    rows.push({
      sample: count(each.sample) ?? rows.length,
      outcome: each.outcome,
      reason: text(each.reason) ?? "",
      error: number(each.error),
      threshold: number(each.threshold),
      limit: number(each.limit),
      judged: number(each.judged),
      true: number(each.true),
      tensors: Array.isArray(each.tensors) ? each.tensors.map(number) : null
    })
  }
  if (rows.length === 0) return null
  const dearest = DEAREST_FIRST.find((outcome) => rows.some((row) => row.outcome === outcome))
  return {
    call: index,
    step: count(value.step),
    sigma: number(value.sigma),
    conds: Array.isArray(value.conds) ? value.conds.filter(Number.isInteger) : [],
    window: count(value.window),
    ms: number(value.ms),
    full_ms: number(value.full_ms),
    outcome: OUTCOMES.includes(value.outcome) ? value.outcome : dearest,
    n_samples: Math.max(count(value.n_samples) ?? 0, rows.length),
    rows
  }
}

function settings(value) {
  if (!isObject(value)) return {}
  const kept = {}
  for (const [name, setting] of Object.entries(value).slice(0, 64)) {
    if (name === "__proto__") continue
    if (["number", "string", "boolean"].includes(typeof setting)) kept[name] = setting
  }
  return kept
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null
}

function count(value) {
  return Number.isInteger(value) && value >= 0 ? value : null
}

function text(value) {
  return typeof value === "string" && value !== "" ? value.slice(0, 500) : null
}

function id(value) {
  if (Number.isInteger(value)) return String(value)
  return typeof value === "string" && value !== "" && value.length <= 200 ? value : null
}
