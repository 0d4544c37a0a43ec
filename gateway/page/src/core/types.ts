/** The gateway's answers, as far as the page reads them; `/openapi.json` describes them in full. */
import type { LongNumber } from "./json.ts";

export type JobState = "queued" | "running" | "finished";

export interface StageProgress {
  stage: string;
  table: string | null;
  rows: number | null;
  bytes: number | null;
  bar: number | null;
  description: string;
  done: number | null;
  total: number | null;
}

export interface JobSummary {
  job_id: string;
  request_id: number | string | LongNumber;
  label: string | null;
  tables: string[];
  state: JobState;
  stage: string | null;
  code: string | null;
  error: string | null;
  attempts: number;
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
  duration: number | null;
  rows: number | null;
  bytes_in: number | null;
  bytes_out: number | null;
  peak_memory_bytes: number | null;
  /** In a cluster: the member that accepted the job, and the one that runs it or ran it. */
  member?: string;
  host?: string;
}

export interface StreamedJob extends JobSummary {
  progress: StageProgress[];
  timeout: number | null;
}

export interface HeldKernel {
  id: string;
  attach: string;
  host?: string;
  request_id: number | string | LongNumber | null;
  code: string | null;
  held_at: string;
  expires_at: string;
}

export interface JobResult {
  code: string;
  error?: string;
  retryable: boolean;
  execution_time: number;
  stages: Record<string, number>;
  rows?: number;
  fields?: number;
  bytes_in: number;
  bytes_out?: number;
  data_format?: string;
  peak_memory_bytes?: number | null;
  results?: { output?: string; manifest?: string; events: string };
  held?: HeldKernel;
  not_held?: string;
}

/** What the gateway keeps of a failed job. */
export interface Bundle {
  code: string;
  library: Record<string, string>;
  tables: BundledTable[];
  output_schema: Record<string, unknown> | null;
  timeout: number;
}

export interface BundledTable {
  name: string;
  data_format: string;
  used: boolean;
  kept: "whole" | "first_rows" | "nothing";
  bytes: number | null;
  table_id: number | null;
  manifest: Manifest | null;
  columns: ManifestField[];
}

export interface InputTable {
  name: string;
  rows: number;
  bytes: number;
  columns: ManifestField[];
}

/** One stage of a job, in seconds since it was accepted; `parent` contains it. */
export interface StageSpan {
  name: string;
  begin: number;
  end: number;
  parent: string | null;
}

export interface ColumnProfile {
  name: string;
  base_type: string;
  nulls: number;
  distinct: number | null;
  smallest: string | null;
  largest: string | null;
  quartiles: string[] | null;
  histogram: number[] | null;
}

/** What the columns of a result contain, of its first `rows` rows. */
export interface Profile {
  type: "profile";
  rows: number;
  columns: ColumnProfile[];
}

export interface JobDetail extends JobSummary {
  progress: StageProgress[];
  inputs: InputTable[];
  /** Of the result. */
  columns: ManifestField[];
  result: JobResult | null;
  bundle: string | null;
  waterfall: StageSpan[];
}

export interface GatewayState {
  version: string;
  healthy: boolean;
  draining: boolean;
  paused: boolean;
  slots: number;
  busy_slots: number;
  queue_size: number;
  max_queue_size: number;
  ready_kernels: { ready?: number; starting?: number; hits?: number; misses?: number };
  held: number;
  held_limit: number;
  completed: number;
  failed: number;
  rejected: number;
  execution_seconds: number;
  failures_by_code: Record<string, number>;
  outbox_jobs: number;
  cluster?: Cluster;
}

/** A gateway of a cluster. */
export interface Member {
  name: string;
  version: string;
  tier: string;
  slots: number;
  busy: number;
  healthy: boolean;
  waiting: number;
  accepts: boolean;
  /** Digest of the packages that were added to it; the same means the same packages. */
  packages: string;
}

export interface Cluster {
  /** The member that this page is of. */
  member: string;
  connected: boolean;
  members: Member[];
  missing: string[];
}

export interface LogLine {
  timestamp: string;
  stream: "stdout" | "stderr";
  message: string;
}

export interface ManifestField {
  name: string;
  base_type: string;
}

export interface Manifest {
  fields: ManifestField[];
}

export interface Layer {
  layer: string;
  state: "on" | "degraded" | "off";
  promise: string;
  why: string;
  remedy: string;
}

export interface Status {
  healthy: boolean;
  draining: boolean;
  version: string;
  slots: number;
  sandbox: {
    tier?: string;
    tier_name?: string;
    allow_network?: boolean;
    gateway_has_root?: boolean;
    layers?: Layer[];
    proofs?: { name: string; held: boolean; detail: string }[];
  };
  fork_server: { state?: string; reason?: string; restarts?: number };
  outbox: { jobs?: number; bytes?: number; retries?: number };
  internal_s3: { healthy?: boolean } | null;
  limits: Record<string, number>;
  ready_kernels: Record<string, number>;
}
