import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import test from "node:test"

import { describe, geometry, labelPlace, laneName, MAX_LANES, neighbour, SPACE } from "../../web/chart.js"
import { emptyState, reduce, totalsOf } from "../../web/reducer.js"
import { bytes, cost, counts, makeWords, reason, speedup, spending, truth } from "../../web/words.js"

const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8"))
const languages = ["en", "zh", "ja"]
const dictionaries = Object.fromEntries(languages.map((language) => [language, read(`../../locales/${language}/main.json`)]))
const words = makeWords(dictionaries, "en")
const { run_started, record, reasons } = read("./fixtures/events.json")

const WIDTH = 400
const row = (outcome, error = null, threshold = 0.2, sample = 0) => {
  const reason = { full: "warm_up", accepted: "within", trusted: "unchecked", rejected: "over" }[outcome]
  return { sample, outcome, reason, ...(error === null ? {} : { error, threshold }) }
}

/** A run of the given calls: each a list of rows, or `{rows, ...}`. */
function run(calls, changes = {}) {
  const header = { ...record, run_id: "r", status: "finished", steps: calls.length, totals: null, ...changes }
  const made = calls.map((each, i) => ({
    call: i, step: i, sigma: 1 - i / 1000, conds: [0, 1], ms: 5, full_ms: 4, n_samples: 1,
    ...(Array.isArray(each) ? { rows: each } : each)
  }))
  return reduce(emptyState(), { type: "record", record: { ...header, calls: made } }).runs.get("r")
}

function insideOf(shape) {
  for (const cell of shape.cells) {
    assert.ok(cell.w > 0 && cell.x >= shape.left - 0.01 && cell.x + cell.w <= shape.right + 0.01, "cell beyond the edge")
    assert.ok(cell.y + cell.h <= shape.height)
  }
  for (const mark of shape.marks) {
    assert.ok(Number.isFinite(mark.x) && Number.isFinite(mark.y))
    assert.ok(mark.y >= shape.top - 0.01 && mark.y <= shape.base + 0.01, "mark outside the plot")
  }
  for (const [x, y] of shape.thresholds.flat()) assert.ok(Number.isFinite(x) && y >= shape.top - 0.01 && y <= shape.base)
}

test("a run without calls has room for its steps", () => {
  const shape = geometry([run([], { steps: 20, status: "running" })], { width: WIDTH })
  assert.equal(shape.cells.length, 0)
  assert.equal(shape.pending.length, 20)
  insideOf(shape)
})

const asked = (changes) => ({
  calls: 2, full: 2, accepted: 0, rejected: 0, seconds: 2, speedup: 1, cache_bytes: 0,
  spending: { target: 3, seconds: 6.67, left: 4.67, computed: 4.6, plan: [2, 5], threshold: null, missed: null, ...changes }
})

test("calls that a plan will compute are marked before the run gets there", () => {
  const calls = [[row("full")], [row("full")]]
  const shape = geometry([run(calls, { steps: 10, status: "running", totals: asked() })], { width: WIDTH })
  assert.equal(shape.pending.length, 8)
  // Columns 0 and 1 are made: 2 and 5 from now are the second and the fifth of those to come.
  assert.deepEqual(shape.pending.map((each) => each.planned), [false, true, false, false, true, false, false, false])
  const binned = geometry([run(calls, { steps: 2000, status: "running", totals: asked({ plan: [40, 1000] }) })], { width: WIDTH })
  assert.ok(binned.perBin > 1)
  assert.equal(binned.pending.filter((each) => each.planned).length, 2)
  const ended = geometry([run(calls, { steps: 10, status: "interrupted", totals: asked() })], { width: WIDTH })
  assert.ok(!ended.pending.some((each) => each.planned))
})

test("what a run may take and what is left of it, in words", () => {
  const running = run([[row("full")]], { steps: 10, status: "running", totals: asked() })
  assert.equal(spending(words, running, running.totals), "3× asked: 4.7 of 6.7 s left, enough for 4 computed calls.")
  const over = run([[row("full")]], { status: "running", totals: asked({ left: -0.3, computed: 0 }) })
  assert.match(spending(words, over, over.totals), /: 0 of 6\.7 s left, enough for 0 computed calls/)
  const kept = run([[row("full")]], { totals: asked() })
  assert.equal(spending(words, kept, kept.totals), "3× asked and kept.")
  const missed = run([[row("full")]], { totals: asked({ missed: "3x was asked for, 2x reached: so it is" }) })
  assert.equal(spending(words, missed, missed.totals), "3x was asked for, 2x reached: so it is.")
  const dear = run([[row("full")]], { totals: asked({ threshold: 2.618 }) })
  assert.equal(spending(words, dear, dear.totals), "3× asked and kept. About as good as with a threshold of 2.6.")
  assert.equal(spending(words, run([[row("full")]]), { spending: null }), "")
  for (const language of languages) {
    const said = spending(makeWords(dictionaries, language), running, running.totals)
    assert.match(said, /3×.*4/)
    assert.doesNotMatch(said, /[{}]/)
  }
})

const seen = (judged, truly) => ({ ...row("accepted", 0.1), judged, true: truly })

test("where a call has picture and sound, a cell tells the error of both", () => {
  const told = (cell) => {
    const shown = run([[cell]])
    return describe(words, { items: [{ call: shown.calls[0], row: shown.calls[0].rows[0] }] }, shown)
  }
  assert.match(told({ ...row("accepted", 0.3), tensors: [0.3, 0.125] }), /picture and sound: 0\.3, 0\.125/)
  assert.match(told({ ...row("rejected", 0.5), tensors: [0.1, null] }), /picture and sound: 0\.1, ∞/)
  assert.doesNotMatch(told(row("accepted", 0.3)), /sound/)
})

test("true errors stand beside the judged ones, on one scale, in a place of their own", () => {
  const calls = [[row("full")], [seen(0.02, 0.04)], [seen(0.03, 0.03)], [row("rejected", 0.3)]]
  const shown = run(calls)
  const shape = geometry([shown], { width: WIDTH })
  assert.deepEqual(shape.truths.map(({ x }) => x), shape.marks.slice(0, 2).map(({ x }) => x))
  const height = (y) => shape.truthBase - y
  const [first, second] = shape.truths
  assert.ok(Math.abs(height(first.true) / height(first.judged) - 2) < 1e-9)
  assert.equal(second.judged, second.true)
  for (const { judged, true: truly } of shape.truths) {
    for (const y of [judged, truly]) assert.ok(y > shape.base && y <= shape.truthBase)
  }
  assert.ok(shape.lanes[0].y > shape.truthBase)
  insideOf(shape)
  assert.match(describe(words, shape.cells[1], shown), / · alone: judged 0.02, truly 0.04 · /)

  const without = geometry([run([[row("full")], [row("accepted", 0.1)]])], { width: WIDTH })
  assert.deepEqual(without.truths, [])
  assert.equal(shape.height - without.height, SPACE.truth + SPACE.gap)
  assert.deepEqual(geometry([shown, shown], { width: WIDTH }).truths, [])
})

test("how true the judged errors were, in words", () => {
  const shown = run([[row("full")], [seen(0.02, 0.04)], [seen(0.03, 0.03)], [seen(0.1, 0.05)], [seen(0, 0.1)]])
  assert.equal(truth(words, shown), "True errors: 1 times the judged ones (median), at most 2 times.")
  assert.equal(truth(words, run([[row("full")], [row("accepted", 0.1)]])), "")
  for (const language of languages) assert.match(truth(makeWords(dictionaries, language), shown), /1 .*2/)
})

test("no run at all is drawn as nothing", () => {
  const shape = geometry([], { width: WIDTH })
  assert.deepEqual([shape.cells, shape.marks, shape.pending], [[], [], []])
  assert.ok(shape.height > SPACE.plot)
})

test("one call is one cell over the whole width", () => {
  const shape = geometry([run([[row("full")]])], { width: WIDTH })
  assert.equal(shape.cells.length, 1)
  assert.ok(shape.cells[0].w > 0.9 * WIDTH)
  assert.equal(shape.marks.length, 0)
  insideOf(shape)
})

test("a thousand calls are binned, and a rejected one among them is not lost", () => {
  const calls = Array.from({ length: 1000 }, (_, i) => [i === 501 ? row("rejected", 0.3) : row("accepted", 0.1)])
  const shape = geometry([run(calls)], { width: WIDTH })
  assert.ok(shape.perBin > 1)
  assert.ok(shape.cells.length <= WIDTH / SPACE.narrowest)
  assert.equal(shape.cells.reduce((sum, cell) => sum + cell.items.length, 0), 1000)
  assert.equal(shape.cells.filter((cell) => cell.kind === "rejected").length, 1)
  assert.equal(shape.marks.length, 1000)
  insideOf(shape)
  const cell = shape.cells.find((each) => each.kind === "rejected")
  assert.match(describe(words, cell, run(calls)), /^calls 497–504 · 7 accepted · 1 rejected$/)
})

test("an error under the threshold is drawn under it, one over it over it", () => {
  const shape = geometry([run([[row("full")], [row("accepted", 0.1)], [row("rejected", 0.25)]])], { width: WIDTH })
  const [accepted, rejected] = shape.marks
  const [first, second] = shape.thresholds[0]
  assert.ok(accepted.y > first[1])
  assert.ok(rejected.y < second[1])
  assert.equal(accepted.x, first[0])
  // Half the threshold, half the height.
  assert.ok(Math.abs((shape.base - accepted.y) / (shape.base - first[1]) - 0.5) < 1e-9)
})

test("errors far above the threshold, or not finite, stay in the picture and are marked", () => {
  const odd = { rows: [{ sample: 0, outcome: "rejected", reason: "not_finite", threshold: 0.2 }] }
  const shape = geometry([run([[row("accepted", 0.1)], [row("rejected", 900)], odd])], { width: WIDTH })
  assert.deepEqual(shape.marks.map((mark) => mark.clipped), [false, true, true])
  assert.ok(shape.base - shape.marks[0].y > SPACE.plot * 0.2, "the small error is still to be seen")
  insideOf(shape)
})

test("one threshold far above the others does not press the rest to the floor", () => {
  const calls = [0.05, 0.06, 0.07, 40].map((threshold) => [row("accepted", 0.04, threshold)])
  const shape = geometry([run(calls)], { width: WIDTH })
  assert.ok(shape.base - shape.marks[0].y > SPACE.plot * 0.2)
  insideOf(shape)
  const strictLate = [0.4, 0.2, 0.1].map((threshold) => [row("accepted", 0.04, threshold)])
  const heights = geometry([run(strictLate)], { width: WIDTH }).thresholds[0].map(([, y]) => y)
  assert.ok(heights[0] < heights[1] && heights[1] < heights[2], "thresholds that fall by halves are all to be seen")
})

test("errors of zero and thresholds of zero divide nothing", () => {
  insideOf(geometry([run([[row("accepted", 0, 0)], [row("accepted", 0, 0)]])], { width: WIDTH }))
})

test("samples that agree share a row, samples that differ have their own", () => {
  const same = [[row("full", null, null, 0), row("full", null, null, 1)], [row("accepted", 0.1, 0.2, 0), row("accepted", 0.15, 0.2, 1)]]
  const agreed = geometry([run(same)], { width: WIDTH })
  assert.equal(agreed.lanes.length, 1)
  assert.equal(agreed.labelled, false)
  assert.equal(agreed.cells[1].items[0].row.error, 0.15, "the larger error stands for both")

  const differing = [...same, [row("accepted", 0.1, 0.2, 0), row("rejected", 0.3, 0.2, 1)]]
  const shape = geometry([run(differing)], { width: WIDTH })
  assert.deepEqual(shape.lanes.map((lane) => laneName(words, lane.label)), ["1", "2"])
  assert.deepEqual(shape.cells.map((cell) => cell.kind), ["full", "accepted", "accepted", "full", "accepted", "rejected"])
  insideOf(shape)
})

test("cond and uncond in separate calls are two rows of one column each", () => {
  const calls = []
  for (let step = 0; step < 5; step += 1) {
    for (const cond of [1, 0]) calls.push({ rows: [row("full")], conds: [cond], step, sigma: 5 - step })
  }
  const shape = geometry([run(calls, { steps: 5 })], { width: WIDTH })
  assert.deepEqual(shape.lanes.map((lane) => laneName(words, lane.label)), ["pos", "neg"])
  assert.equal(shape.nBins, 5)
  assert.deepEqual([0, 1].map((lane) => shape.cells.filter((cell) => cell.lane === lane).length), [5, 5])
  assert.equal(shape.cells[0].x, shape.cells[5].x)
})

test("a call of one conditioning alone does not shift the others", () => {
  const calls = [
    { rows: [row("full")], conds: [0], sigma: 3 }, { rows: [row("full")], conds: [1], sigma: 3 },
    { rows: [row("full")], conds: [0], sigma: 2 },
    { rows: [row("full")], conds: [0], sigma: 1 }, { rows: [row("full")], conds: [1], sigma: 1 }
  ]
  const shape = geometry([run(calls)], { width: WIDTH })
  assert.deepEqual(shape.cells.filter((cell) => cell.lane === 1).map((cell) => cell.bin), [0, 2])
})

test("two calls of one conditioning at one sigma are two columns", () => {
  const calls = [{ rows: [row("full")], sigma: 1 }, { rows: [row("full")], sigma: 1 }]
  assert.equal(geometry([run(calls)], { width: WIDTH }).nBins, 2)
})

test("context windows have a row each", () => {
  const calls = [0, 1, 2].map((window) => ({ rows: [row("full")], window, sigma: 1 }))
  const shape = geometry([run(calls)], { width: WIDTH })
  assert.equal(shape.nBins, 1)
  assert.deepEqual(shape.lanes.map((lane) => laneName(words, lane.label)), ["w1 pos+neg", "w2 pos+neg", "w3 pos+neg"])
})

test("a large batch is drawn as far as there is room, the rest is counted", () => {
  const rows = Array.from({ length: 64 }, (_, i) => row(i % 2 ? "accepted" : "rejected", 0.2, 0.2, i))
  const shape = geometry([run([rows])], { width: WIDTH })
  assert.equal(shape.lanes.length, MAX_LANES)
  assert.equal(shape.hiddenLanes, 64 - MAX_LANES)
  insideOf(shape)
})

test("an interrupted run keeps the place of what did not happen", () => {
  const calls = Array.from({ length: 6 }, () => [row("full")])
  const shape = geometry([run(calls, { steps: 20, status: "interrupted" })], { width: WIDTH })
  assert.equal(shape.pending.length, 14)
  assert.equal(geometry([run(calls, { steps: 20 })], { width: WIDTH }).pending.length, 0)
})

test("a sampler with two calls per step is given room for them while it runs", () => {
  const calls = Array.from({ length: 6 }, (_, i) => ({ rows: [row("full")], step: Math.floor(i / 2), sigma: 10 - i }))
  assert.equal(geometry([run(calls, { steps: 10, status: "running" })], { width: WIDTH }).nBins, 20)
})

test("two runs laid over each other share scale and columns", () => {
  const a = run([[row("full")], [row("accepted", 0.1)]])
  const b = run([[row("full")], [row("accepted", 0.1, 0.4)], [row("rejected", 0.5, 0.4)], [row("full")]])
  const shape = geometry([a, b], { width: WIDTH })
  assert.deepEqual(shape.lanes.map((lane) => laneName(words, lane.label)), ["A", "B"])
  const [of_a, of_b] = [0, 1].map((index) => shape.marks.find((mark) => mark.run === index))
  assert.deepEqual([of_a.x, of_a.y], [of_b.x, of_b.y])
  assert.equal(shape.thresholds.length, 2)
  insideOf(shape)
})

test("figures at the axes are round and within the plot", () => {
  const shape = geometry([run([[row("accepted", 0.1)], [row("rejected", 0.9, 0.7)]])], { width: WIDTH, axis: true })
  assert.deepEqual(shape.valueTicks.map((tick) => tick.value), [0, 0.5])
  assert.deepEqual(shape.callTicks.map((tick) => tick.column), [0, 1])
  const long = geometry([run(Array.from({ length: 50 }, () => [row("full")]))], { width: WIDTH, axis: true })
  assert.deepEqual(long.callTicks.map((tick) => tick.column + 1), [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50])
})

test("a place of no width breaks nothing", () => {
  for (const width of [0, 1, 30]) geometry([run([[row("full")], [row("accepted", 0.1)]])], { width })
})

test("the curve's name stays in the picture", () => {
  const calls = Array.from({ length: 28 }, (_, i) => [row(i % 3 ? "accepted" : "rejected", 0.1 + (i % 3 ? 0 : 0.3), 0.2)])
  const shape = geometry([run(calls)], { width: WIDTH })
  const { x, y } = labelPlace(shape, shape.thresholds[0], 54)
  assert.ok(x - 54 >= shape.left && x <= shape.right && y > 8 && y < shape.base)
})

test("arrow keys lead from cell to cell", () => {
  const shape = geometry([run([[row("full", null, null, 0), row("full", null, null, 1)],
    [row("accepted", 0.1, 0.2, 0), row("rejected", 0.3, 0.2, 1)]])], { width: WIDTH })
  const [a0, a1, b0, b1] = shape.cells
  assert.equal(neighbour(shape.cells, a0, "ArrowRight"), a1)
  assert.equal(neighbour(shape.cells, a0, "ArrowLeft"), null)
  assert.equal(neighbour(shape.cells, a0, "ArrowDown"), b0)
  assert.equal(neighbour(shape.cells, b1, "ArrowUp"), a1)
  assert.equal(neighbour(shape.cells, b1, "Home"), b0)
  assert.equal(neighbour(shape.cells, a0, "End"), a1)
  assert.equal(neighbour(shape.cells, a0, "Tab"), undefined)
})

// -- words -------------------------------------------------------------------------------------------------------------

test("a cell says all there is to know", () => {
  const calls = Array.from({ length: 16 }, (_, i) => ({ rows: [row(i === 15 ? "rejected" : "full", i === 15 ? 0.154 : null, 0.123)], sigma: 0.62, ms: 1214.3 }))
  const shown = run(calls)
  const { cells } = geometry([shown], { width: 1000 })
  assert.equal(describe(words, cells[15], shown), "call 16 · σ 0.62 · rejected: error 0.154 over 0.123 · 1,214 ms")
  assert.equal(describe(words, cells[0], shown), "call 1 · σ 0.62 · computed: warm-up · 1,214 ms")
})

test("every reason of every event is said in words, in every language", () => {
  const filled = { sample: 0, outcome: "full", error: 0.31, threshold: 0.22, limit: 8 }
  for (const language of languages) {
    const say = makeWords(dictionaries, language)
    for (const code of Object.keys(reasons)) {
      const sentence = reason(say, { ...filled, reason: code })
      assert.ok(sentence && !/[{}_]/.test(sentence), `${language} ${code}: ${sentence}`)
      for (const [figure, name] of [["0.31", "error"], ["0.22", "threshold"], ["8", "limit"]]) {
        if (reasons[code].includes(`{${name}`)) assert.ok(sentence.includes(figure), `${language} ${code}: ${sentence}`)
      }
    }
  }
  assert.equal(reason(words, { ...filled, reason: "run_limit" }), "8 in a row")
  assert.equal(reason(words, { ...filled, reason: "over" }), "error 0.31 over 0.22")
  assert.equal(reason(words, { ...filled, reason: "outside_range" }, { start_percent: 0, end_percent: 0.95 }), "outside 0–95 %")
  assert.equal(reason(words, { ...filled, reason: "of_the_future" }), "of the future")
})

test("every language says the same things with the same figures", () => {
  const flat = (node, path = "") => Object.entries(node).flatMap(([key, value]) =>
    typeof value === "string" ? [[path + key, value.match(/\{\w+\}/g)?.sort().join() ?? ""]] : flat(value, `${path}${key}.`))
  const english = flat(dictionaries.en)
  for (const language of languages) {
    assert.deepEqual(flat(dictionaries[language]), english, language)
    // The page's own translator reads these as its syntax.
    for (const sentence of JSON.stringify(dictionaries[language])) assert.ok(!"@|".includes(sentence), language)
  }
})

test("every key that the code asks for is in the locale", () => {
  const code = ["chart", "compare", "panel", "words", "speca"].map((name) => readFileSync(new URL(`../../web/${name}.js`, import.meta.url), "utf8")).join("\n")
  for (const [, key] of code.matchAll(/words\("([\w.]+)"/g)) {
    assert.equal(typeof key.split(".").reduce((node, part) => node?.[part], dictionaries.en.speca), "string", key)
  }
})

test("a language that is not there is English, and no dictionary at all breaks nothing", () => {
  assert.equal(makeWords(dictionaries, "fr")("threshold"), "threshold")
  assert.equal(makeWords(dictionaries, "zh-TW")("threshold"), "阈值")
  assert.equal(makeWords(null, "en")("reason.warm_up"), "warm up")
  assert.equal(makeWords({}, "not a locale!").number(0.5), "0.5")
})

test("what was not checked says so, and is no accepted call", () => {
  const calls = [[row("full")], [row("accepted", 0.05)], [row("trusted", 0.12)]]
  const shown = run(calls)
  const shape = geometry([shown], { width: WIDTH })
  assert.deepEqual(shape.cells.map((cell) => cell.kind), ["full", "accepted", "trusted"])
  assert.match(describe(words, shape.cells[2], shown), /trusted: not checked; an error of about 0\.12 was expected, within 0\.2/)
  assert.deepEqual(shape.marks.map((mark) => mark.kind), ["accepted", "trusted"])
  assert.equal(counts(words, shown, totalsOf(shown)), "3 calls: 1 full, 1 accepted, 1 trusted, 0 rejected")
  // One call of two samples is what its dearest is.
  const both = run([[row("full")], [row("trusted", 0.1, 0.2, 0), row("accepted", 0.1, 0.2, 1)]])
  assert.equal(both.calls[1].outcome, "accepted")
})

test("totals in a line", () => {
  const shown = run([[row("full")]], { totals: { calls: 28, full: 8, accepted: 18, rejected: 2, seconds: 9.8, speedup: 2.94, cache_bytes: 170e6 } })
  assert.equal(counts(words, shown, shown.totals), "28 calls: 8 full, 18 accepted, 2 rejected")
  assert.equal(speedup(words, shown.totals), "2.9×")
  assert.equal(speedup(words, { speedup: null }), "")
  assert.deepEqual([170e6, 30e3, 2.5e9].map((n) => bytes(words, n)), ["0.17 GB", "30 kB", "2.5 GB"])
  const running = { ...shown, status: "running", steps: 28 }
  assert.equal(cost(words, shown, shown.totals), "9.8 s · 0.17 GB")
  assert.equal(cost(words, shown, { seconds: 1234.5678, cache_bytes: 0 }), "1,235 s")
  assert.equal(cost(words, running, shown.totals), "9.8 s")
  assert.equal(counts(words, running, shown.totals), "step 1 of 28: 8 full, 18 accepted, 2 rejected")
})
