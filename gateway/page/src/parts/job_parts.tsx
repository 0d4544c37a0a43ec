/** Small pieces that several views show of a job. */
import { useState } from "preact/hooks";
import { call, messageOf, postJson } from "../core/api.ts";
import { bytes, count, doneOf } from "../core/format.ts";
import type { JobSummary, StageProgress } from "../core/types.ts";

export function Badge({ job }: { job: Pick<JobSummary, "state" | "code" | "stage"> }) {
  const [kind, text] =
    job.state !== "finished"
      ? [job.state, job.state === "running" && job.stage ? job.stage : job.state]
      : [job.code === "ok" ? "ok" : job.code === "cancelled" ? "cancelled" : "bad", job.code ?? ""];
  return <span class={`badge ${kind}`}>{text.replaceAll("_", " ")}</span>;
}

export function Progress({ progress }: { progress: StageProgress[] }) {
  if (progress.length === 0) return null;
  return (
    <ul class="progress">
      {progress.map((each) => (
        <li key={`${each.stage} ${each.table} ${each.bar}`}>
          <b>{each.stage}</b> {each.table} {each.rows !== null && `${count(each.rows)} rows`} {each.bytes !== null && bytes(each.bytes)}
          {each.description} {each.done !== null && doneOf(each.done, each.total)}
          {each.done !== null && !!each.total && <progress value={each.done} max={each.total} aria-label={each.description || each.stage} />}
        </li>
      ))}
    </ul>
  );
}

export function CancelButton({ job }: { job: Pick<JobSummary, "job_id"> }) {
  // not by request_id, which jobs of several names may have at the same time
  return <AskButton job={job} ask={() => call(`/v1/jobs/${job.job_id}/cancel`, { method: "POST" })} name="Cancel" asked="Cancelling…" />;
}

/** Its kernel has the variables of the job; the job's view then shows the command that attaches to it. */
export function HoldButton({ job }: { job: Pick<JobSummary, "job_id"> }) {
  return <AskButton job={job} ask={() => postJson(`/v1/jobs/${job.job_id}/hold`, {})} name="Cancel and hold" asked="Holding…" />;
}

/** The id of the element with the name of a job, which describes its buttons: a view has several of the same name. */
export function nameId(job: Pick<JobSummary, "job_id">): string {
  return `name-${job.job_id}`;
}

function AskButton({ job, ask, name, asked }: { job: Pick<JobSummary, "job_id">; ask: () => Promise<unknown>; name: string; asked: string }) {
  const [isAsked, setAsked] = useState(false);
  const [problem, setProblem] = useState("");
  async function onClick(): Promise<void> {
    setAsked(true);
    setProblem("");
    try {
      await ask();
    } catch (error) {
      setProblem(messageOf(error));
      setAsked(false);
    }
  }
  return (
    <>
      {problem && <span class="bad-text" role="alert">{problem}</span>}
      <button class="danger" aria-describedby={nameId(job)} disabled={isAsked} onClick={() => void onClick()}>{isAsked ? asked : name}</button>
    </>
  );
}
