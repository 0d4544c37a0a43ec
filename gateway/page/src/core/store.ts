/** What the page knows of the gateway, as the stream tells it. */
import { computed, signal } from "@preact/signals";
import { hasFailed } from "./names.ts";
import type { GatewayState, JobSummary, LogLine, StreamedJob } from "./types.ts";

/** Finished jobs that the page keeps; the history has all. */
const RECENT_JOBS = 100;

/** Ends of jobs that the page keeps for its rates. */
const KEPT_ENDS = 5000;

export type Connection = "connecting" | "open" | "lost" | "paused";

export const connection = signal<Connection>("connecting");
/** Why it is lost, if the gateway, or a proxy before it, said so; else empty. */
export const lostReason = signal("");
export const gateway = signal<GatewayState | null>(null);
export const live = signal<ReadonlyMap<string, StreamedJob>>(new Map());
export const recent = signal<readonly StreamedJob[]>([]);

export interface JobEnd {
  id: string;
  /** In milliseconds since the epoch. */
  at: number;
  seconds: number;
  failed: boolean;
}

/** Jobs that ended lately, as far as this page has heard of them. */
export const ends = signal<readonly JobEnd[]>([]);

/** Counts snapshots: after one, the page may have missed the end of a job and asks the history again. */
export const snapshots = signal(0);

/** The history as it was last shown, so that the way back from a job leads to the same rows. */
export interface ListedJobs {
  /** The query that the jobs are of. */
  text: string;
  jobs: JobSummary[];
  cursor: string | null;
  missing_members?: string[];
}

export const listed: { page: ListedJobs | null } = { page: null };

export interface FollowedLog {
  jobId: string;
  lines: LogLine[];
  next: number;
}

export const followed = signal<FollowedLog | null>(null);

export const running = computed(() => byAge((job) => job.state === "running"));
export const queued = computed(() => byAge((job) => job.state === "queued"));

function byAge(test: (job: StreamedJob) => boolean): StreamedJob[] {
  return [...live.value.values()].filter(test).sort((a, b) => a.created_at.localeCompare(b.created_at));
}

interface JobsData {
  gateway?: GatewayState;
  jobs: StreamedJob[];
}

interface LogData {
  job_id: string;
  offset: number;
  next_offset: number;
  events: LogLine[];
}

export function forgetJobs(): void {
  gateway.value = null;
  live.value = new Map();
  recent.value = [];
  ends.value = [];
  listed.page = null;
  followed.value = null;
}

export function applyEvent(name: string, data: unknown): void {
  if (name === "log") applyLog(data as LogData);
  else applyJobs(data as JobsData, name === "snapshot");
}

function applyJobs(data: JobsData, isSnapshot: boolean): void {
  if (data.gateway) gateway.value = data.gateway;
  const jobs = new Map(isSnapshot ? [] : live.value);
  const over = data.jobs.filter((job) => job.state === "finished");
  for (const job of data.jobs) {
    if (job.state === "finished") jobs.delete(job.job_id);
    else jobs.set(job.job_id, job);
  }
  live.value = jobs;
  if (isSnapshot) snapshots.value += 1;
  if (over.length === 0) return;
  const ids = new Set(over.map((job) => job.job_id));
  recent.value = [...over.reverse(), ...recent.value.filter((job) => !ids.has(job.job_id))].slice(0, RECENT_JOBS);
  addEnds(over);
}

export function addEnds(jobs: readonly JobSummary[]): void {
  const known = new Set(ends.value.map((end) => end.id));
  const fresh = jobs.filter((job) => !known.has(job.job_id));
  const ended = fresh.map((job) => ({
    id: job.job_id,
    at: Date.parse(job.finished_at ?? job.created_at),
    seconds: job.duration ?? 0,
    failed: hasFailed(job),
  }));
  ends.value = [...ends.value, ...ended].slice(-KEPT_ENDS);
}

function applyLog(data: LogData): void {
  const known = followed.value;
  // lines from 0 on replace what is shown: a restarted gateway runs the job again
  const before = known && known.jobId === data.job_id && data.offset > 0 ? known.lines : [];
  followed.value = { jobId: data.job_id, lines: before.concat(data.events), next: data.next_offset };
}
