/** Now: the jobs that run, wait, or have just ended. */
import { useEffect, useState } from "preact/hooks";
import { getJson } from "../core/api.ts";
import { clock, plural, seconds } from "../core/format.ts";
import { failures, firstLine, hasFailed, jobName } from "../core/names.ts";
import { jobLink } from "../core/router.ts";
import { connection, followed, gateway, queued, recent, running, snapshots } from "../core/store.ts";
import { lookAt } from "../core/stream.ts";
import type { GatewayState, JobSummary, StreamedJob } from "../core/types.ts";
import { Badge, CancelButton, nameId, Progress } from "../parts/job_parts.tsx";
import { Lines } from "../parts/log_view.tsx";
import { Empty, Loading } from "../parts/states.tsx";
import { Elapsed, When } from "../parts/time.tsx";
import { Members } from "./members.tsx";
import { expectedWait } from "./expected_wait.ts";

const SHOWN_ENDED = 8;

/** Each has a clock and a button: with thousands of them, a page stands still for half of each second. */
const SHOWN_WAITING = 100;

export function NowView() {
  const state = gateway.value;
  const looked = running.value[0]?.job_id ?? null;
  useEffect(() => lookAt(looked), [looked]);
  if (!state) return <Loading />;
  const idle = running.value.length === 0 && queued.value.length === 0;
  return (
    <>
      <h1>Now</h1>
      {!state.healthy && connection.value !== "lost" && (
        <p class="notice bad" role="alert">
          {whyUnhealthy(state)} <a href="#/system">System</a>
        </p>
      )}
      {state.healthy && state.slots === 0 && <p class="notice bad" role="alert">No machine of the cluster runs jobs. Accepted jobs wait until a member with slots, or a host, joins it.</p>}
      <dl class="tiles">
        <Tile name="Slots" value={`${state.busy_slots} of ${state.slots}`} note={state.cluster ? "busy, of all members" : "busy"} />
        <Tile name="Queue" value={`${state.queue_size} of ${state.max_queue_size}`} note="places taken" />
        <Tile name="Kernels" value={`${state.ready_kernels.ready ?? 0} ready`} note={`${state.ready_kernels.starting ?? 0} starting, ${state.held} held`} />
        <Tile name="Since the start" value={plural(state.completed, "job")} note={`${failures(state)} failed, ${state.rejected} refused`} />
      </dl>
      {idle && <Empty title="No job runs or waits">Jobs appear here as soon as the gateway accepts them. <a href="#/playground">Try a transform</a></Empty>}
      {running.value.map((job) => <Running key={job.job_id} job={job} hasLog={job.job_id === looked} />)}
      {queued.value.length > 0 && <Queue jobs={queued.value} />}
      <Ended />
      {state.cluster && <Members cluster={state.cluster} />}
    </>
  );
}

function whyUnhealthy(state: GatewayState): string {
  if (state.draining) return "The gateway is shutting down and takes no new jobs.";
  if (state.cluster && !state.cluster.connected) return "The broker of the cluster does not answer, so no job can be accepted.";
  if (state.paused) return "The gateway is paused by an operator and takes no new jobs; accepted jobs go on.";
  return "The gateway is not healthy: it cannot run jobs now.";
}

function Tile({ name, value, note }: { name: string; value: string; note: string }) {
  return <div class="tile"><dt>{name}</dt><dd><b>{value}</b> <span class="faint">{note}</span></dd></div>;
}

function Running({ job, hasLog }: { job: StreamedJob; hasLog: boolean }) {
  const log = followed.value;
  return (
    <article class="card running">
      <div class="row">
        <h2><a id={nameId(job)} href={jobLink(job.job_id)}>{jobName(job)}</a></h2>
        <Badge job={job} />
        {job.started_at && <Elapsed since={job.started_at} limit={job.timeout} />}
        {job.host && <span class="faint">on {job.host}</span>}
        <CancelButton job={job} />
      </div>
      <Progress progress={job.progress} />
      {hasLog && log?.jobId === job.job_id && log.lines.length > 0 && <div class="tail"><Lines lines={log.lines} empty="" /></div>}
    </article>
  );
}

function Queue({ jobs }: { jobs: StreamedJob[] }) {
  const state = gateway.value;
  const average = state && state.completed > 0 ? state.execution_seconds / state.completed : null;
  return (
    <section class="card">
      <h2>Waiting</h2>
      <ol class="queue">
        {jobs.slice(0, SHOWN_WAITING).map((job, at) => (
          <li key={job.job_id}>
            <a id={nameId(job)} href={jobLink(job.job_id)}>{jobName(job)}</a>
            <span class="faint"> waits <Elapsed since={job.created_at} />{average !== null && state && `, about ${clock(Math.max(1, expectedWait(at + 1, state.slots, average)))} to go`} </span>
            <CancelButton job={job} />
          </li>
        ))}
      </ol>
      {jobs.length > SHOWN_WAITING && <p class="faint">and {plural(jobs.length - SHOWN_WAITING, "more job")}. <a href="#/jobs?state=queued&sort=created_at">All jobs that wait</a></p>}
    </section>
  );
}

function endOf(job: JobSummary): number {
  return Date.parse(job.finished_at ?? job.created_at);
}

function Ended() {
  const [known, setKnown] = useState<JobSummary[]>([]);
  const seen = snapshots.value;
  useEffect(() => {
    getJson<{ jobs: JobSummary[] }>(`/v1/jobs?state=finished&sort=-finished_at&limit=${SHOWN_ENDED}`).then((page) => setKnown(page.jobs), () => undefined);
  }, [seen]);
  const fresh = recent.value;
  const ids = new Set(fresh.map((job) => job.job_id));
  // some may have ended while the page did not follow the stream
  const jobs = [...fresh, ...known.filter((job) => !ids.has(job.job_id))].sort((a, b) => endOf(b) - endOf(a)).slice(0, SHOWN_ENDED);
  if (jobs.length === 0) return null;
  return (
    <section class="card">
      <div class="row"><h2>Recently finished</h2><a href="#/jobs">All jobs</a></div>
      <ul class="ended">
        {jobs.map((job) => (
          <li key={job.job_id} class={hasFailed(job) ? "failed" : ""}>
            <Badge job={job} />
            <a href={jobLink(job.job_id)}>{jobName(job)}</a>
            <span class="why">{job.code === "ok" ? (job.rows !== null ? plural(job.rows, "row") : "") : firstLine(job.error)}</span>
            <span class="faint">{seconds(job.duration)} · <When iso={job.finished_at} relative /></span>
          </li>
        ))}
      </ul>
    </section>
  );
}
