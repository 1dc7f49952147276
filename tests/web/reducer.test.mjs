import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import test from "node:test"

import { toCsv, toJson, fileName } from "../../web/export.js"
import { allRuns, emptyState, isIncomplete, reduce, runsOf, totalsOf, VERSION } from "../../web/reducer.js"

// What `speca/events.py` writes; `tests/test_live.py` checks that it still does.
const written = JSON.parse(readFileSync(new URL("./fixtures/events.json", import.meta.url), "utf8"))
const { run_started, calls, run_ended, record } = written

const play = (...events) => events.reduce(reduce, emptyState())
const runOf = (state) => state.runs.get("fixture")

/** Fails on any change in place. */
function frozen(value) {
  if (value instanceof Map) {
    for (const each of value.values()) frozen(each)
    return value
  }
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    Object.values(value).forEach(frozen)
  }
  return value
}

function header(run_id, changes = {}) {
  return { ...run_started, run_id, ...changes }
}

function call(index, rows = [{ sample: 0, outcome: "full", reason: "warm_up" }]) {
  return { call: index, step: index, sigma: 1, conds: [0], ms: 1, full_ms: 1, outcome: "full", n_samples: rows.length, rows }
}

test("a run told event by event is the run told at once", () => {
  const told = runOf(play(run_started, calls, run_ended))
  const known = runOf(play({ type: "record", record }))
  assert.deepEqual({ ...told, seen: 0 }, { ...known, seen: 0 })
  assert.equal(told.status, "finished")
  assert.equal(told.calls.length, 3)
  assert.equal(isIncomplete(told), false)
})

test("what a run may spend arrives, and odd values of it break nothing", () => {
  const told = (spending) => runOf(play(run_started, { ...calls, totals: { ...calls.totals, spending } })).totals.spending
  const spending = { target: 3, seconds: 6.5, left: 2.1, computed: 4.2, plan: [2, 5], threshold: 0.125, missed: null }
  assert.deepEqual(told(spending), spending)
  assert.deepEqual(told({ ...spending, plan: [2, "5", -1, 0, 1.5, null] }).plan, [2])
  assert.deepEqual(told({ target: 2 }), { target: 2, seconds: null, left: null, computed: null, plan: [], threshold: null, missed: null })
  for (const odd of [null, 3, "x", [], {}, { target: "3" }]) assert.equal(told(odd), undefined)
  const before = play(run_started, { ...calls, totals: { ...calls.totals, spending } })
  assert.equal(reduce(before, { ...calls, totals: { ...calls.totals, spending: { ...spending } } }), before)
})

test("everything that Python writes arrives", () => {
  const run = runOf(play(run_started, calls, run_ended))
  for (const name of ["started_at", "prompt_id", "workflow_id", "node_id", "sampler_node_id", "model", "architecture",
    "experimental", "n_blocks", "steps", "sampler", "n_samples", "settings", "native"]) {
    assert.deepEqual(run[name], run_started[name], name)
  }
  assert.deepEqual(run.totals, run_ended.totals)
  run.calls.forEach((each, i) => {
    for (const [name, value] of Object.entries(calls.calls[i])) {
      if (name !== "rows") assert.deepEqual(each[name], value, name)
    }
    each.rows.forEach((row, k) => {
      for (const [name, value] of Object.entries(calls.calls[i].rows[k])) assert.deepEqual(row[name], value, name)
    })
  })
  assert.equal(run_started.version, VERSION)
})

test("events in any order give the same run", () => {
  const parts = [run_started, { ...calls, calls: [calls.calls[0]] }, { ...calls, calls: calls.calls.slice(1) }, run_ended]
  const expected = { ...runOf(play(...parts)), seen: 0 }
  const orders = [[3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2], [0, 3, 2, 1]]
  for (const order of orders) assert.deepEqual({ ...runOf(play(...order.map((i) => parts[i]))), seen: 0 }, expected)
})

test("doubled events change nothing", () => {
  const once = play(run_started, calls, run_ended)
  for (const event of [run_started, calls, run_ended, { type: "record", record }]) assert.equal(reduce(once, event), once)
})

test("a call that is told again with its true errors has them, in whatever order, and keeps its other rows", () => {
  const rows = [0, 1].map((sample) => ({ sample, outcome: "accepted", reason: "within", error: 0.1, threshold: 0.2 }))
  const first = { ...calls, calls: [call(0, rows)] }
  const seen = { ...calls, calls: [call(0, [{ ...rows[0], judged: 0.1, true: 0.09 }])] }
  for (const order of [[first, seen], [seen, first], [first, seen, first, seen]]) {
    const told = runOf(play(run_started, ...order)).calls[0]
    assert.deepEqual(told.rows.map((row) => [row.judged, row.true]), [[0.1, 0.09], [null, null]])
  }
})

test("nothing is changed in place", () => {
  let state = frozen(emptyState())
  for (const event of [run_started, calls, run_ended, { type: "queued", prompt_id: "p", tab: "t" }]) {
    const before = [...state.runs.keys()].join()
    const next = reduce(state, frozen(structuredClone(event)))
    assert.equal([...state.runs.keys()].join(), before)
    state = frozen(next)
  }
})

test("a late event does not take the totals back, nor an ended run up again", () => {
  const early = { ...calls, totals: { ...calls.totals, calls: 1, full: 1 } }
  const run = runOf(play(run_started, calls, run_ended, early, run_started))
  assert.equal(run.totals.calls, 3)
  assert.equal(run.status, "finished")
})

test("an interrupted run is shown as such", () => {
  assert.equal(runOf(play(run_started, calls, { ...run_ended, status: "interrupted" })).status, "interrupted")
})

test("a run that the server no longer knows does not go on", () => {
  const state = play(run_started, calls, { type: "lost", run_ids: ["fixture", "unknown"] })
  assert.equal(runOf(state).status, "interrupted")
  const ended = play(run_started, run_ended, { type: "lost", run_ids: ["fixture"] })
  assert.equal(runOf(ended).status, "finished")
})

test("what is not an event is ignored", () => {
  const state = play(run_started)
  const nothing = [null, undefined, 3, "text", [], {}, { type: "other" }, { type: "calls" }, { ...calls, version: undefined },
    { ...calls, version: "1" }, { ...calls, run_id: null }, { ...calls, run_id: "" }, { ...calls, run_id: {} },
    { type: "snapshot" }, { type: "snapshot", runs: [null, 1, {}] }, { type: "record" }, { type: "record", record: [] },
    { type: "lost" }, { type: "queued" }]
  for (const event of nothing) assert.equal(reduce(state, event), state, JSON.stringify(event))
})

test("what is wrong inside an event is left out, the rest is shown", () => {
  const odd = {
    ...calls,
    totals: "many",
    calls: [null, { call: -1, rows: [] }, { call: 7, rows: "none" }, { ...call(4), sigma: "high", conds: "both", ms: NaN },
      { ...call(5), rows: [{ outcome: "exploded" }, { outcome: "accepted", error: Infinity, reason: 9 }] }]
  }
  const run = runOf(play(run_started, odd))
  assert.deepEqual(run.calls.map((each) => each.call), [4, 5])
  assert.deepEqual([run.calls[0].sigma, run.calls[0].conds, run.calls[0].ms], [null, [], null])
  assert.deepEqual(run.calls[1].rows, [{ sample: 0, outcome: "accepted", reason: "", error: null, threshold: null, limit: null, judged: null, true: null, tensors: null }])
})

test("a newer version is shown as far as it is understood, and says so", () => {
  const newer = { ...calls, version: VERSION + 1, calls: [{ ...call(0), colour: "blue" }], mood: "good" }
  const run = runOf(play({ ...run_started, version: VERSION + 1 }, newer))
  assert.equal(run.newer, true)
  assert.equal(run.calls.length, 1)
  assert.equal("colour" in run.calls[0], false)
})

test("names that are dangerous in objects are only names", () => {
  const state = play(header("__proto__"), header("constructor"), {
    ...header("x"),
    settings: JSON.parse('{"__proto__": {"polluted": 1}, "threshold": 0.5}')
  })
  assert.equal(state.runs.size, 3)
  assert.equal({}.polluted, undefined)
  assert.deepEqual(state.runs.get("x").settings, { threshold: 0.5 })
})

test("runs of a workflow are told apart from others", () => {
  const state = play(
    header("a", { workflow_id: "w1", started_at: 1 }),
    header("b", { workflow_id: "w2", started_at: 2 }),
    header("c", { workflow_id: "w1", started_at: 3 }),
    header("d", { workflow_id: null, started_at: 4 })
  )
  assert.deepEqual(runsOf(state, "w1").map((run) => run.run_id), ["c", "a"])
  assert.deepEqual(runsOf(state, "w2").map((run) => run.run_id), ["b"])
  assert.deepEqual(runsOf(state, null).map((run) => run.run_id), [])
  assert.deepEqual(allRuns(state).map((run) => run.run_id), ["d", "c", "b", "a"])
})

test("two tabs with copies of one workflow are told apart by the prompts they queued", () => {
  const state = play(
    header("a", { prompt_id: "p1", workflow_id: "w" }),
    header("b", { prompt_id: "p2", workflow_id: "w" }),
    header("c", { prompt_id: "elsewhere", workflow_id: "w" }),
    { type: "queued", prompt_id: "p1", tab: "left" },
    { type: "queued", prompt_id: "p2", tab: "right" }
  )
  const seen = (tab) => runsOf(state, "w", tab).map((run) => run.run_id).sort()
  assert.deepEqual(seen("left"), ["a", "c"])
  assert.deepEqual(seen("right"), ["b", "c"])
})

test("workflows without an id of their own show only what their tab queued", () => {
  const none = "00000000-0000-0000-0000-000000000000"
  const state = play(
    header("a", { prompt_id: "p1", workflow_id: none }),
    header("b", { prompt_id: "p2", workflow_id: none }),
    { type: "queued", prompt_id: "p1", tab: "left" }
  )
  assert.deepEqual(runsOf(state, none, "left").map((run) => run.run_id), ["a"])
  assert.deepEqual(runsOf(state, none, "right"), [])
  assert.deepEqual(runsOf(state, none, null), [])
})

test("a run of which parts are missing is known to be incomplete", () => {
  const late = { ...calls, calls: [call(5)], totals: { ...calls.totals, calls: 6 } }
  assert.equal(isIncomplete(runOf(play(late))), true)
  assert.equal(isIncomplete(runOf(play(run_started, late))), true)
  const cut = { ...calls, calls: [{ ...call(0), n_samples: 40 }], totals: { ...calls.totals, calls: 1 } }
  const run = runOf(play(run_started, cut))
  assert.equal(isIncomplete(run), true)
  const rows = Array.from({ length: 40 }, (_, sample) => ({ sample, outcome: "full", reason: "warm_up" }))
  const whole = { ...record, calls: [call(0, rows)], totals: { ...record.totals, calls: 1 } }
  assert.equal(isIncomplete(runOf(play(run_started, cut, { type: "record", record: whole }))), false)
})

test("memory is bounded", () => {
  let state = emptyState()
  for (let i = 0; i < 200; i += 1) state = reduce(state, header(`r${i}`, { started_at: i }))
  assert.equal(state.runs.size, 60)
  assert.equal(allRuns(state)[0].run_id, "r199")
})

test("a thousand calls, one by one", () => {
  let state = reduce(emptyState(), run_started)
  for (let i = 0; i < 1000; i += 1) {
    state = reduce(state, { ...calls, calls: [call(i)], totals: { ...calls.totals, calls: i + 1 } })
  }
  assert.equal(runOf(state).calls.length, 1000)
  assert.equal(isIncomplete(runOf(state)), false)
})

test("without totals the calls are counted", () => {
  const totals = totalsOf(runOf(play({ ...calls, totals: null })))
  assert.deepEqual([totals.calls, totals.full, totals.accepted, totals.trusted, totals.rejected], [3, 1, 0, 0, 2])
  assert.equal(totals.speedup, null)
})

test("a run exported as JSON is the record it came from", () => {
  const exported = JSON.parse(toJson(runOf(play({ type: "record", record }))))
  for (const name of Object.keys(record)) if (name !== "calls") assert.deepEqual(exported[name], record[name], name)
  assert.deepEqual(reduce(emptyState(), { type: "record", record: exported }).runs.get("fixture").calls,
    runOf(play({ type: "record", record })).calls)
})

test("a run exported as CSV has a line per call and sample", () => {
  const lines = toCsv(runOf(play({ type: "record", record }))).trimEnd().split("\n").map((line) => line.split(","))
  assert.equal(lines.length, 1 + 6)
  const column = (name) => lines.slice(1).map((line) => line[lines[0].indexOf(name)])
  assert.deepEqual(column("call"), ["0", "0", "1", "1", "2", "2"])
  assert.deepEqual(column("sample"), ["0", "1", "0", "1", "0", "1"])
  assert.deepEqual(column("error"), ["", "", "0.05", "0.31", "", ""])
  assert.deepEqual(column("true"), ["", "", "0.034", "", "", ""])
  assert.deepEqual(column("conds"), ["0+1", "0+1", "0+1", "0+1", "1", "1"])
  assert.ok(lines.every((line) => line.length === lines[0].length))
})

test("a file is named after the run, whatever its id holds", () => {
  const run = runOf(play(run_started))
  assert.match(fileName({ ...run, run_id: "../../x?y" }, "csv"), /^speca-\d{8}-\d{6}-xy\.csv$/)
})
