/**
 * The Compare button's prompt, and what becomes of it. Pure: a prompt in, another out; the one given is not changed.
 *
 * The sampler of the open graph is taken apart into what `SpeCaCompare` takes, with ComfyUI's own nodes, and of the rest
 * only what these need is queued: nothing is saved, and no node of the graph shows another picture.
 */

/** Marks the ids of nodes that are in no graph: "3.compare" stands for node 3. */
const MARK = "."

const PARTS = ["noise", "guider", "sampler", "sigmas", "latent_image"]

/** `comfy/samplers.py` KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS: steps that no scheduler node gives. */
const OTHER_STEPS = ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"]

class CannotError extends Error {
  constructor(why, values = {}) {
    super(why)
    Object.assign(this, { why, values })
  }
}

/** Sampler node -> (inputs, add) -> the inputs of `SpeCaCompare`; `add(name, class_type, inputs)` is a link to a new node. */
const TAKEN_APART = {
  SamplerCustomAdvanced: (inputs) => picked(inputs),
  SpeCaCompare: (inputs) => picked(inputs),
  SamplerCustom: (inputs, add) => ({
    ...picked(inputs), noise: noiseOf(inputs.add_noise, inputs.noise_seed, add), guider: guiderOf(inputs, add)
  }),
  KSampler: (inputs, add) => ({
    noise: noiseOf(true, inputs.seed, add),
    guider: guiderOf(inputs, add),
    sampler: samplerOf(inputs, add),
    sigmas: sigmasOf(inputs, inputs.denoise, add),
    latent_image: inputs.latent_image
  }),
  KSamplerAdvanced(inputs, add) {
    const { add_noise, steps, start_at_step: start, end_at_step: end, return_with_leftover_noise: leftover } = inputs
    let sigmas = sigmasOf(inputs, 1, add)
    if ([steps, start, end, leftover, add_noise].some(isLink)) throw new CannotError("linked")
    if (end < steps) {
      // Its last step then goes to zero, over noise that the others leave.
      if (leftover !== "enable") throw new CannotError("leftover")
      sigmas = add("until", "SplitSigmas", { sigmas, step: end })
    }
    if (start > 0) sigmas = [add("from", "SplitSigmas", { sigmas, step: start })[0], 1]
    return {
      noise: noiseOf(add_noise === "enable", inputs.noise_seed, add),
      guider: guiderOf(inputs, add),
      sampler: samplerOf(inputs, add),
      sigmas,
      latent_image: inputs.latent_image
    }
  }
}

const picked = (inputs) => Object.fromEntries(PARTS.filter((name) => name in inputs).map((name) => [name, inputs[name]]))

const noiseOf = (wanted, seed, add) =>
  wanted ? add("noise", "RandomNoise", { noise_seed: seed }) : add("noise", "DisableNoise", {})

const guiderOf = ({ model, positive, negative, cfg }, add) => add("guider", "CFGGuider", { model, positive, negative, cfg })

function samplerOf({ sampler_name }, add) {
  if (OTHER_STEPS.includes(sampler_name)) throw new CannotError("steps", { sampler: sampler_name })
  return add("sampler", "KSamplerSelect", { sampler_name })
}

const sigmasOf = ({ model, scheduler, steps }, denoise, add) => add("sigmas", "BasicScheduler", { model, scheduler, steps, denoise })

/**
 * A prompt that does with the sampler what `SpeCaCompare` does.
 *
 * @param {object} prompt the open graph in API format: id -> {class_type, inputs}
 * @param {string} speca the SpeCa node's id in it @param {string} sampler the sampler's
 * @returns {{prompt: object} | {why: string, values: object}} `why`: a key of the locale's `compare.why`
 */
export function comparisonOf(prompt, speca, sampler) {
  const node = prompt[sampler]
  if (!node) return { why: "gone", values: {} }
  const takenApart = Object.hasOwn(TAKEN_APART, node.class_type) ? TAKEN_APART[node.class_type] : null
  if (takenApart === null) return { why: "sampler", values: { node: node.class_type } }
  const made = { ...prompt }
  const add = (name, class_type, inputs) => {
    const id = `${sampler}${MARK}${name}`
    made[id] = { class_type, inputs }
    return [id, 0]
  }
  const vae = isLink(node.inputs.vae) ? node.inputs.vae : vaeAfter(prompt, sampler)
  try {
    const inputs = { ...takenApart(node.inputs, add), ...(vae && { vae }), true_errors: true }
    const [target] = add("compare", "SpeCaCompare", inputs)
    const needed = ancestors(made, target)
    if (!needed.has(speca)) return { why: "speca", values: {} }
    return { prompt: Object.fromEntries([...needed].map((id) => [id, made[id]])) }
  } catch (error) {
    if (error instanceof CannotError) return { why: error.why, values: error.values }
    throw error
  }
}

/** The node of the graph that a run's sampler stands for. */
export function nodeOf(id) {
  return id === null ? null : id.split(MARK)[0]
}

function isLink(value) {
  return Array.isArray(value) && value.length === 2
}

/** The vae of the nearest node after the sampler that has one. */
function vaeAfter(prompt, sampler) {
  const reached = [sampler]
  for (const from of reached) {
    for (const [id, { inputs }] of Object.entries(prompt)) {
      if (reached.includes(id) || !Object.values(inputs).some((value) => isLink(value) && value[0] === from)) continue
      if (isLink(inputs.vae)) return inputs.vae
      reached.push(id)
    }
  }
  return null
}

function ancestors(prompt, target) {
  const found = new Set([target])
  for (const id of found) {
    for (const value of Object.values(prompt[id]?.inputs ?? {})) {
      if (isLink(value) && value[0] in prompt) found.add(String(value[0]))
    }
  }
  return found
}

// -- what becomes of it ------------------------------------------------------------------------------------------------

/**
 * A comparison that has been asked for.
 *
 * `status`: refused (never queued), queued, running, done, failed, cancelled. `value` of `max` steps of the run that is being
 * made. `run_id`: SpeCa's run in it. `report`: what `SpeCaCompare` reports. `image`: the picture as `/view` finds it.
 */
export function asked(about, changes) {
  return {
    ...about, prompt_id: null, status: "queued", value: 0, max: 0, why: null, values: {}, run_id: null, report: null,
    image: null, ...changes
  }
}

export function isLive({ status }) {
  return status === "queued" || status === "running"
}

/** `name` and `detail` of an event of ComfyUI's websocket -> the comparison after it; the same object where nothing changed. */
export function followed(comparison, name, detail) {
  if (!isLive(comparison)) return comparison
  if (name === "status") return detail?.exec_info?.queue_remaining === 0 ? { ...comparison, status: "cancelled" } : comparison
  if (detail?.prompt_id !== comparison.prompt_id) return comparison
  switch (name) {
    case "execution_start":
      return { ...comparison, status: "running" }
    case "progress":
      return { ...comparison, status: "running", value: detail.value, max: detail.max }
    case "executed":
      return withResult(comparison, detail.output)
    case "execution_error":
      return { ...comparison, status: "failed", why: "failed", values: { error: String(detail.exception_message).trim() } }
    case "execution_interrupted":
      return { ...comparison, status: "cancelled" }
    default:
      return comparison
  }
}

function withResult(comparison, output) {
  try {
    const report = JSON.parse(output.speca_compare[0])
    return { ...comparison, status: "done", report, run_id: report.run?.run_id ?? null, image: output.images?.[0] ?? null }
  } catch {
    return comparison // of another node of the prompt
  }
}
