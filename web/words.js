/**
 * Sentences for people. The strings are those of `locales/<language>/main.json`, key `speca`; English stands in for
 * what a language lacks, and the key itself for what nobody translated.
 */

/**
 * @param {object} dictionaries `{en: {speca: {...}}, zh: {...}}`, as ComfyUI's `/i18n` answers
 * @param {string} locale "en", "zh", "ja", "zh-TW", ...
 * @returns {Words} `words(key, values)`, with `words.number(value, digits)` for figures
 */
export function makeWords(dictionaries, locale) {
  const language = String(locale || "en")
  const chain = [language, language.split("-")[0], "en"].map((each) => dictionaries?.[each]?.speca)

  const words = (key, values = {}) => {
    const path = key.split(".")
    for (const dictionary of chain) {
      const sentence = path.reduce((node, part) => (node && Object.hasOwn(node, part) ? node[part] : undefined), dictionary)
      if (typeof sentence === "string") return sentence.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
    }
    return path.at(-1).replaceAll("_", " ")
  }

  words.locale = language
  words.number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : format(language, { maximumSignificantDigits: digits }).format(value)
  words.fixed = (value, digits) =>
    value === null || value === undefined
      ? "–"
      : format(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value)
  return words
}

const formats = new Map()

function format(locale, options) {
  const key = locale + JSON.stringify(options)
  if (!formats.has(key)) {
    let made
    try {
      made = new Intl.NumberFormat(locale, options)
    } catch {
      made = new Intl.NumberFormat("en", options)
    }
    formats.set(key, made)
  }
  return formats.get(key)
}

/** "error 0.31 over 0.22": why one sample of one call was treated as it was. */
export function reason(words, row, settings = {}) {
  const start = settings.start_percent
  const end = settings.end_percent
  if (row.reason === "outside_range" && typeof start === "number" && typeof end === "number") {
    return words("outside_range", { start: words.number(100 * start), end: words.number(100 * end) })
  }
  if (row.reason === "") return ""
  return words(`reason.${row.reason}`, {
    error: row.error === null ? "∞" : words.number(row.error),
    threshold: words.number(row.threshold),
    limit: words.number(row.limit)
  })
}

/** "2.9×", or "" until a speedup has been measured. */
export function speedup(words, totals) {
  return totals.speedup === null ? "" : `${words.fixed(totals.speedup, totals.speedup < 9.95 ? 1 : 0)}×`
}

/** "28 calls: 8 full, 18 accepted, 2 rejected", with what was trusted, if any; or how far a running run is. */
export function counts(words, run, totals) {
  const values = {}
  for (const name of ["calls", "full", "accepted", "trusted", "rejected"]) values[name] = words.number(totals[name], 9)
  values.trusted = totals.trusted > 0 ? words("totals_trusted", values) : ""
  if (run.status !== "running" || !run.steps) return words("totals", values)
  const step = Math.min(run.steps, 1 + (run.calls.at(-1)?.step ?? -1))
  return words("totals_running", { ...values, step: words.number(step, 9), steps: words.number(run.steps, 9) })
}

/**
 * "3× asked: 2.1 s of 6.4 s left, enough for 4 computed calls", or how it ended and at which thresholds: of a run that was
 * asked for a speed, else "".
 */
export function spending(words, run, totals) {
  const { spending: of } = totals
  if (!of) return ""
  const target = words.number(of.target)
  if (run.status !== "running") {
    const ended = of.missed ? words("spending.missed", { why: of.missed }) : words("spending.kept", { target })
    if (of.threshold === null) return ended
    return `${ended} ${words("spending.threshold", { threshold: words.number(of.threshold, 2) })}`
  }
  const seconds = (value) => words.number(value, 2)
  return words("spending.left", {
    target, left: seconds(Math.max(0, of.left)), seconds: seconds(of.seconds), computed: words.number(Math.floor(of.computed), 4)
  })
}

/** "True errors: 0.9 times the judged ones (median), 1.6 times at most.": of a run that a witness saw, else "". */
export function truth(words, run) {
  const ratios = []
  for (const { rows } of run.calls) {
    for (const row of rows) if (row.true !== null && row.judged > 0) ratios.push(row.true / row.judged)
  }
  if (ratios.length === 0) return ""
  ratios.sort((a, b) => a - b)
  const middle = (ratios[(ratios.length - 1) >> 1] + ratios[ratios.length >> 1]) / 2
  return words("truth", { median: words.number(middle, 2), most: words.number(ratios.at(-1), 2) })
}

/** Of a comparison: how far it is, what it found, or why there is none. `phase`: "queued", "speca" or "uncached". */
export function compared(words, { status, value, max, report, why, values }, phase) {
  if (status === "queued" || (status === "running" && max <= 1)) return words("compare.queued")
  if (status === "running") return words(`compare.${phase}`, { step: words.number(value, 9), steps: words.number(max, 9) })
  if (status === "cancelled") return words("compare.cancelled")
  if (status !== "done") return words(`compare.why.${why}`, values)
  const seconds = (of) => words.number(report.seconds?.[of], 3)
  const found = { uncached: seconds("uncached"), speca: seconds("speca"), speedup: words.fixed(report.speedup, 1) }
  const close = report.latent_error === 0
    ? words("compare.same")
    : words(report.psnr === null ? "compare.latent" : "compare.psnr", {
        psnr: words.fixed(report.psnr, 1), error: words.number(report.latent_error, 2)
      })
  return `${words("compare.seconds", found)} ${close}`
}

/** "9.8 s · 0.17 GB"; of a run that goes on only the time, to leave room for how far it is. */
export function cost(words, run, totals) {
  const parts = []
  if (totals.seconds !== null) parts.push(`${totals.seconds < 100 ? words.number(totals.seconds, 2) : words.fixed(totals.seconds, 0)} s`)
  if (totals.cache_bytes && run.status !== "running") parts.push(bytes(words, totals.cache_bytes))
  return parts.join(" · ")
}

/** 182000000 -> "0.18 GB"; small caches in MB or kB, so that they do not read as nothing. */
export function bytes(words, n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6]]) {
    if (n >= 0.1 * size) return `${words.number(n / size, 2)} ${unit}`
  }
  return `${words.number(n / 1e3, 2)} kB`
}
