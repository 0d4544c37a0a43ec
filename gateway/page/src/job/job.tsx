/** One job: its state, what it took, why it failed, its result and its log. */
import { useEffect, useState } from "preact/hooks";
import { getJson, messageOf, Refusal } from "../core/api.ts";
import { seconds } from "../core/format.ts";
import { jobName, tracebackOf } from "../core/names.ts";
import { followed, live, snapshots } from "../core/store.ts";
import { lookAt } from "../core/stream.ts";
import type { JobDetail, LogLine } from "../core/types.ts";
import { Displays } from "../parts/displays.tsx";
import { Badge, CancelButton, HoldButton, nameId } from "../parts/job_parts.tsx";
import { LogView } from "../parts/log_view.tsx";
import { Empty, Failed, Loading } from "../parts/states.tsx";
import { Elapsed, When } from "../parts/time.tsx";
import { Held } from "./held.tsx";
import { Inputs } from "./inputs.tsx";
import { RunAgain } from "./run_again.tsx";
import { Result } from "./result.tsx";
import { Waterfall } from "./waterfall.tsx";

export function JobView({ jobId }: { jobId: string }) {
  const [job, setJob] = useState<JobDetail | null>(null);
  const [problem, setProblem] = useState<unknown>(null);
  const [attempt, setAttempt] = useState(0);
  const streamed = live.value.get(jobId);
  const lines = followed.value?.jobId === jobId ? followed.value.lines : [];
  const name = job ? jobName(job) : "";
  useEffect(() => {
    if (name) document.title = `${name} · Transform Gateway`;
  }, [name]);
  const phase = `${streamed?.state} ${snapshots.value} ${attempt}`;
  useEffect(() => lookAt(jobId), [jobId]);
  useEffect(() => {
    let isStale = false;
    getJson<JobDetail>(`/v1/jobs/${encodeURIComponent(jobId)}`).then(
      (found) => isStale || (setJob(found), setProblem(null)),
      (error: unknown) => isStale || setProblem(error),
    );
    return () => {
      isStale = true;
    };
  }, [jobId, phase]);
  if (problem instanceof Refusal && problem.status === 404) {
    return <Empty title="This job is not known" isView>It was removed from the history, or never ran here. <a href="#/jobs">All jobs</a></Empty>;
  }
  if (problem && !job) return <Failed message={messageOf(problem)} retry={() => setAttempt(attempt + 1)} />;
  if (!job) return <Loading />;
  const shown = streamed ? { ...job, ...streamed } : job;
  return (
    <>
      <p class="crumb"><a href="#/jobs">Jobs</a></p>
      <div class="row"><h1 id={nameId(shown)}>{jobName(shown)}</h1><Badge job={shown} />{shown.state !== "finished" && <span class="row">{shown.stage === "execute" && <HoldButton job={shown} />}<CancelButton job={shown} /></span>}</div>
      <Facts job={shown} timeout={streamed?.timeout ?? null} />
      {shown.error && <Failure job={shown} error={shown.error} lines={lines} />}
      {job.bundle && <RunAgain path={job.bundle} jobId={jobId} />}
      {job.result?.held && <Held held={job.result.held} />}
      {job.result?.not_held && <p class="notice">The kernel is not held: {job.result.not_held}</p>}
      <div class="columns">
        {job.waterfall.length > 0 && <section class="card"><h2>Stages</h2><Waterfall spans={job.waterfall} /></section>}
        <Inputs job={shown} />
      </div>
      <Result job={job} />
      {job.state === "finished" && <Displays jobId={jobId} rows={job.rows ?? 0} />}
      <LogView lines={lines} name={`job-${jobId}`} isLive={shown.state !== "finished"} />
    </>
  );
}

function Facts({ job, timeout }: { job: JobDetail; timeout: number | null }) {
  return (
    <dl class="facts">
      <div><dt>Request id</dt><dd>{String(job.request_id)}</dd></div>
      <div><dt>Accepted</dt><dd><When iso={job.created_at} /></dd></div>
      {job.finished_at && <div><dt>Finished</dt><dd><When iso={job.finished_at} /></dd></div>}
      <div><dt>Duration</dt><dd>{job.state === "running" && job.started_at ? <Elapsed since={job.started_at} limit={timeout} /> : seconds(job.duration)}</dd></div>
      {job.attempts > 1 && <div><dt>Attempts</dt><dd>{job.attempts}</dd></div>}
      {job.host && <div><dt>{job.state === "finished" ? "Ran on" : "Runs on"}</dt><dd>{job.host}</dd></div>}
      {job.member && job.member !== job.host && <div><dt>Accepted by</dt><dd>{job.member}</dd></div>}
      <div><dt>Job id</dt><dd class="id">{job.job_id}</dd></div>
    </dl>
  );
}

function Failure({ job, error, lines }: { job: JobDetail; error: string; lines: readonly LogLine[] }) {
  const traceback = tracebackOf(lines);
  const title = job.code === "cancelled" ? "Why it ended" : "Why it failed";
  return (
    <section class={`card ${job.code === "cancelled" ? "" : "failure"}`} aria-label={title}>
      <h2>{title}</h2>
      <p>{error}</p>
      {traceback.length > 0 && (
        <pre tabIndex={0}>{traceback.map((text, at) => <span key={at} class={text.includes('File "script.py"') || traceback[at - 1]?.includes('File "script.py"') ? "own" : ""}>{text}{"\n"}</span>)}</pre>
      )}
    </section>
  );
}
