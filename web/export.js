/** Runs as files. Pure: text in, text out. */

import { toRecord } from "./reducer.js"

const COLUMNS = [
  "run_id", "call", "step", "sigma", "conds", "window", "sample", "outcome", "reason", "error", "threshold", "limit",
  "judged", "true", "ms", "full_ms"
]

/** The run as the JSON that `SpeCaReport` and the route give. */
export function toJson(run) {
  return JSON.stringify(toRecord(run), null, 1) + "\n"
}

/** One line per call and sample, with a header; missing values are empty. */
export function toCsv(run) {
  const lines = [COLUMNS.join(",")]
  for (const call of run.calls) {
    for (const row of call.rows) {
      const values = { ...call, ...row, run_id: run.run_id, conds: call.conds.join("+") }
      lines.push(COLUMNS.map((name) => field(values[name])).join(","))
    }
  }
  return lines.join("\n") + "\n"
}

/** `speca-20260131-142530-1f2e3d4c.csv` */
export function fileName(run, extension) {
  const at = new Date(run.started_at * 1000)
  const two = (n) => String(n).padStart(2, "0")
  const day = `${at.getFullYear()}${two(at.getMonth() + 1)}${two(at.getDate())}`
  const time = `${two(at.getHours())}${two(at.getMinutes())}${two(at.getSeconds())}`
  return `speca-${day}-${time}-${run.run_id.replace(/[^\w-]/g, "").slice(0, 8)}.${extension}`
}

function field(value) {
  if (value === null || value === undefined) return ""
  const text = String(value)
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
