import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import test from "node:test"

import { asked, comparisonOf, followed, isLive, nodeOf } from "../../web/compare.js"
import { compared, makeWords } from "../../web/words.js"

const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8"))
const languages = ["en", "zh", "ja"]
const dictionaries = Object.fromEntries(languages.map((language) => [language, read(`../../locales/${language}/main.json`)]))
const words = makeWords(dictionaries, "en")

const node = (class_type, inputs) => ({ class_type, inputs })

/** 1 model, 2 SpeCa, 3 sampler, 4 decoder, 5 saver, 6 vae, 7 prompts. */
function graph(sampler = {}) {
  const k = { seed: 7, steps: 20, cfg: 3.5, sampler_name: "euler", scheduler: "simple", denoise: 0.8 }
  return {
    1: node("UNETLoader", { unet_name: "m" }),
    2: node("SpeCa", { model: ["1", 0], threshold: 0.1 }),
    3: node("KSampler", { ...k, model: ["2", 0], positive: ["7", 0], negative: ["7", 1], latent_image: ["8", 0], ...sampler }),
    4: node("VAEDecode", { samples: ["3", 0], vae: ["6", 0] }),
    5: node("SaveImage", { images: ["4", 0], filename_prefix: "x" }),
    6: node("VAELoader", { vae_name: "v" }),
    7: node("TinyPrompts", {}),
    8: node("EmptyLatentImage", { width: 64, height: 64 })
  }
}

test("a KSampler becomes what SpeCa Compare takes, and nothing else of the graph is run", () => {
  const open = graph()
  const before = structuredClone(open)
  const { prompt } = comparisonOf(open, "2", "3")
  assert.deepEqual(open, before)
  const { inputs } = prompt["3.compare"]
  assert.deepEqual(inputs, {
    noise: ["3.noise", 0], guider: ["3.guider", 0], sampler: ["3.sampler", 0], sigmas: ["3.sigmas", 0],
    latent_image: ["8", 0], vae: ["6", 0], true_errors: true
  })
  const made = Object.fromEntries(Object.entries(prompt).filter(([id]) => id.includes(".")).map(([id, each]) => [id, each.inputs]))
  assert.deepEqual(made["3.noise"], { noise_seed: 7 })
  assert.deepEqual(made["3.guider"], { model: ["2", 0], positive: ["7", 0], negative: ["7", 1], cfg: 3.5 })
  assert.deepEqual(made["3.sampler"], { sampler_name: "euler" })
  assert.deepEqual(made["3.sigmas"], { model: ["2", 0], scheduler: "simple", steps: 20, denoise: 0.8 })
  assert.deepEqual(Object.keys(prompt).filter((id) => !id.includes(".")).sort(), ["1", "2", "6", "7", "8"])
  assert.equal(nodeOf("3.compare"), "3")
  assert.equal(nodeOf("12:5.compare"), "12:5")
  assert.equal(nodeOf("3"), "3")
})

test("a custom sampler's parts are taken as they are, and a Compare's own vae", () => {
  const parts = { noise: ["a", 0], guider: ["b", 0], sampler: ["c", 0], sigmas: ["d", 0], latent_image: ["8", 0] }
  const open = { ...graph(), b: node("BasicGuider", { model: ["2", 0] }), 3: node("SamplerCustomAdvanced", parts) }
  assert.deepEqual(comparisonOf(open, "2", "3").prompt["3.compare"].inputs, { ...parts, vae: ["6", 0], true_errors: true })
  const own = { ...open, 3: node("SpeCaCompare", { ...parts, vae: ["9", 0], true_errors: false }) }
  assert.deepEqual(comparisonOf(own, "2", "3").prompt["3.compare"].inputs, { ...parts, vae: ["9", 0], true_errors: true })
})

test("SamplerCustom without noise of its own has none", () => {
  const inputs = {
    model: ["2", 0], add_noise: false, noise_seed: 3, cfg: 1, positive: ["7", 0], negative: ["7", 1], sampler: ["c", 0],
    sigmas: ["d", 0], latent_image: ["8", 0]
  }
  const { prompt } = comparisonOf({ ...graph(), 3: node("SamplerCustom", inputs) }, "2", "3")
  assert.equal(prompt["3.noise"].class_type, "DisableNoise")
  assert.deepEqual(prompt["3.compare"].inputs.sigmas, ["d", 0])
})

const advanced = (changes) => {
  const { seed, denoise, ...rest } = graph()[3].inputs
  const inputs = { ...rest, noise_seed: 7, add_noise: "enable", start_at_step: 0, end_at_step: 10000, return_with_leftover_noise: "disable" }
  return { ...graph(), 3: node("KSamplerAdvanced", { ...inputs, ...changes }) }
}

test("KSamplerAdvanced's part of the steps is split off", () => {
  assert.deepEqual(comparisonOf(advanced(), "2", "3").prompt["3.compare"].inputs.sigmas, ["3.sigmas", 0])
  const first = comparisonOf(advanced({ end_at_step: 10, return_with_leftover_noise: "enable" }), "2", "3").prompt
  assert.deepEqual(first["3.compare"].inputs.sigmas, ["3.until", 0])
  assert.deepEqual(first["3.until"].inputs, { sigmas: ["3.sigmas", 0], step: 10 })
  const second = comparisonOf(advanced({ start_at_step: 10, add_noise: "disable" }), "2", "3").prompt
  assert.deepEqual(second["3.compare"].inputs.sigmas, ["3.from", 1])
  assert.equal(second["3.noise"].class_type, "DisableNoise")
})

test("the vae is found behind nodes that pass samples on, and without one there is none", () => {
  const open = { ...graph(), 9: node("SpeCaReport", { samples: ["3", 0], model: ["2", 0] }) }
  open[4] = node("VAEDecodeTiled", { samples: ["9", 0], vae: ["6", 0] })
  assert.deepEqual(comparisonOf(open, "2", "3").prompt["3.compare"].inputs.vae, ["6", 0])
  delete open[4]
  assert.equal("vae" in comparisonOf(open, "2", "3").prompt["3.compare"].inputs, false)
})

const refusals = [
  ["gone", () => comparisonOf(graph(), "2", "33")],
  ["sampler", () => comparisonOf({ ...graph(), 3: node("FaceDetailer", graph()[3].inputs) }, "2", "3")],
  ["sampler", () => comparisonOf({ ...graph(), 3: node("constructor", graph()[3].inputs) }, "2", "3")],
  ["speca", () => comparisonOf(graph({ model: ["1", 0] }), "2", "3")],
  ["steps", () => comparisonOf(graph({ sampler_name: "dpm_2" }), "2", "3")],
  ["leftover", () => comparisonOf(advanced({ end_at_step: 10 }), "2", "3")],
  ["linked", () => comparisonOf(advanced({ end_at_step: ["9", 0] }), "2", "3")]
]

test("what cannot be compared is refused for a reason that every language has words for", () => {
  for (const [why, refused] of refusals) {
    const answer = refused()
    assert.equal(answer.why, why)
    for (const language of languages) {
      const said = compared(makeWords(dictionaries, language), asked({}, { status: "refused", ...answer }), null)
      assert.ok(said.length > 8 && !/[{}]/.test(said), `${language} ${why}: ${said}`)
    }
  }
  const [, unknown] = refusals[1]
  assert.match(compared(words, asked({}, { status: "refused", ...unknown() }), null), /sampler node FaceDetailer is not known/)
})

// -- what becomes of it ------------------------------------------------------------------------------------------------

const report = { seconds: { uncached: 4, speca: 1.6 }, speedup: 2.5, psnr: 41.26, latent_error: 0.02, run: { run_id: "r1" } }
const image = { filename: "a.png", subfolder: "", type: "temp" }
const executed = { prompt_id: "p", output: { speca_compare: [JSON.stringify(report)], images: [image] } }
const queued = () => asked({ node_id: "2" }, { prompt_id: "p" })
const play = (...events) => events.reduce((state, [name, detail]) => followed(state, name, detail), queued())

test("a comparison is followed from the queue to its result", () => {
  const running = play(["execution_start", { prompt_id: "p" }], ["progress", { prompt_id: "p", value: 3, max: 20 }])
  assert.match(compared(words, running, "speca"), /step 3 of 20 with SpeCa/)
  assert.match(compared(words, running, "uncached"), /step 3 of 20 without SpeCa/)
  const done = followed(running, "executed", executed)
  assert.deepEqual([done.status, done.run_id, done.image], ["done", "r1", image])
  assert.equal(compared(words, done, null), "Without SpeCa 4 s, with it 1.6 s: 2.5×. PSNR 41.3 dB.")
  assert.match(compared(words, { ...done, report: { ...report, psnr: null } }, null), /Latent error 0\.02; no picture/)
  assert.match(compared(words, { ...done, report: { ...report, psnr: "infinite", latent_error: 0 } }, null), /The same to the last digit/)
})

test("one that was cancelled, or failed, or was dropped from the queue does not go on", () => {
  assert.equal(play(["execution_interrupted", { prompt_id: "p" }]).status, "cancelled")
  assert.equal(play(["status", { exec_info: { queue_remaining: 0 } }]).status, "cancelled")
  assert.ok(isLive(play(["status", { exec_info: { queue_remaining: 1 } }], ["status", null])))
  const failed = play(["execution_error", { prompt_id: "p", exception_message: "out of {memory} $&\n" }])
  assert.equal(compared(words, failed, null), "The comparison failed: out of {memory} $&")
  assert.equal(followed(failed, "executed", executed), failed)
})

test("events of other prompts and of other nodes change nothing", () => {
  const before = queued()
  for (const [name, detail] of [["progress", { prompt_id: "q", value: 1, max: 2 }], ["executed", { prompt_id: "q" }],
    ["executed", { prompt_id: "p", output: { images: [image] } }], ["executed", { prompt_id: "p" }], ["progress", null]]) {
    assert.equal(followed(before, name, detail), before)
  }
})
