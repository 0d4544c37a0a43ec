/** The name of a job in lists, and the meaning of its codes in a few words. */
import type { GatewayState, JobSummary } from "./types.ts";

const LONGEST_ID = 20;

export function jobName(job: Pick<JobSummary, "label" | "tables" | "request_id">): string {
  if (job.label) return job.label;
  if (job.tables.length > 0) return job.tables.join(", ");
  return `request ${job.request_id}`;
}

/** A job that somebody cancelled did not fail, although it made nothing. */
export function hasFailed(job: Pick<JobSummary, "state" | "code">): boolean {
  return job.state === "finished" && job.code !== "ok" && job.code !== "cancelled";
}

/** How many jobs have failed; the gateway counts those that somebody cancelled among them. */
export function failures(state: Pick<GatewayState, "failed" | "failures_by_code">): number {
  return state.failed - (state.failures_by_code["cancelled"] ?? 0);
}

/** The caller's id of a job, as far as a list has room for it. */
export function shortId(id: JobSummary["request_id"]): string {
  const text = String(id);
  return text.length > LONGEST_ID ? `${text.slice(0, LONGEST_ID)}…` : text;
}

/** The first line of an error: all that a list has room for. */
export function firstLine(text: string | null | undefined): string {
  return (text ?? "").split("\n", 1)[0] ?? "";
}

/** The line of the user's script that an error names. */
export function lineOf(error: string | null | undefined): number | null {
  const found = /\(script\.py, line (\d+)\)/.exec(error ?? "");
  return found?.[1] ? Number(found[1]) : null;
}

/** The last traceback in the lines of a log, without what came before and after it. */
export function tracebackOf(lines: readonly { stream: string; message: string }[]): string[] {
  const errors = lines.filter((line) => line.stream === "stderr").map((line) => line.message);
  const start = errors.findLastIndex((text) => text.startsWith("Traceback (most recent call last)") || /^ERROR: Failed to import user script/.test(text));
  if (start < 0) return [];
  const end = errors.findIndex((text, at) => at > start && !/^[\s│|+]/.test(text) && /^[\w.]+(Error|Exception|Warning|Exit|Interrupt)?\b.*/.test(text) && !text.startsWith("Traceback") && !text.startsWith("ERROR"));
  return errors.slice(start, end < 0 ? undefined : end + 1);
}
