/** Figures at a glance: jobs a minute, how long they take, and which fail. */
import { useEffect } from "preact/hooks";
import { getJson } from "../core/api.ts";
import { count, plural, seconds } from "../core/format.ts";
import { failures } from "../core/names.ts";
import { addEnds, ends, gateway, snapshots, type JobEnd } from "../core/store.ts";
import type { JobSummary } from "../core/types.ts";

const MINUTE_MS = 60_000;
const SHOWN_MINUTES = 60;
/** Ends that the history is asked for; with more in the last hour, its earlier part is empty. */
const ASKED = 500;

interface Rates {
  /** Jobs and failures of each minute, the last one at the end. */
  minutes: { jobs: number; failed: number }[];
  jobs: number;
  median: number | null;
  slowest: number | null;
}

export function ratesOf(all: readonly JobEnd[], nowMs: number): Rates {
  const minutes = Array.from({ length: SHOWN_MINUTES }, () => ({ jobs: 0, failed: 0 }));
  const durations: number[] = [];
  for (const { at, seconds: duration, failed } of all) {
    const minute = minutes[SHOWN_MINUTES - 1 - Math.max(0, Math.floor((nowMs - at) / MINUTE_MS))];
    if (!minute) continue;
    minute.jobs += 1;
    minute.failed += failed ? 1 : 0;
    durations.push(duration);
  }
  durations.sort((a, b) => a - b);
  const quantile = (part: number): number | null => durations[Math.ceil(part * durations.length) - 1] ?? null;
  return { minutes, jobs: durations.length, median: quantile(0.5), slowest: quantile(0.95) };
}

export function Figures() {
  useEffect(() => {
    getJson<{ jobs: JobSummary[] }>(`/v1/jobs?state=finished&sort=-finished_at&limit=${ASKED}`).then((page) => addEnds(page.jobs), () => undefined);
  }, [snapshots.value]);
  const state = gateway.value;
  if (!state) return null;
  const { minutes, jobs, median, slowest } = ratesOf(ends.value, Date.now());
  const codes = Object.entries(state.failures_by_code).sort((a, b) => b[1] - a[1]);
  const kernels = (state.ready_kernels.hits ?? 0) + (state.ready_kernels.misses ?? 0);
  return (
    <section class="card">
      <h2>Jobs</h2>
      <div class="columns">
        <div>
          <h3>Last hour</h3>
          <dl class="facts">
            <div><dt>Jobs</dt><dd>{count(jobs)}</dd></div>
            <div><dt>Last minute</dt><dd>{minutes.at(-1)?.jobs}</dd></div>
            <div><dt>Median duration</dt><dd>{seconds(median)}</dd></div>
            <div><dt>95th percentile</dt><dd>{seconds(slowest)}</dd></div>
          </dl>
          <Minutes minutes={minutes} />
        </div>
        <div>
          <h3>Since the start</h3>
          <dl class="facts">
            <div><dt>Jobs</dt><dd>{count(state.completed)}</dd></div>
            <div><dt>Failed</dt><dd>{count(failures(state))}</dd></div>
            <div><dt>Refused</dt><dd>{count(state.rejected)}</dd></div>
            {kernels > 0 && <div><dt>Kernel was ready</dt><dd>{count(state.ready_kernels.hits ?? 0)} of {plural(kernels, "time")}</dd></div>}
          </dl>
          {codes.length > 0 && <ul class="bars">{codes.map(([code, number]) => <li key={code}><a href={`#/jobs?code=${code}`}>{code.replaceAll("_", " ")}</a> <span class="number">{count(number)}</span></li>)}</ul>}
        </div>
      </div>
    </section>
  );
}

function Minutes({ minutes }: Pick<Rates, "minutes">) {
  const most = Math.max(1, ...minutes.map((each) => each.jobs));
  const text = `Jobs in each of the last ${minutes.length} minutes, at most ${most}`;
  return (
    <div class="minutes" role="img" aria-label={text} title={text}>
      {minutes.map(({ jobs, failed }, at) => (
        <span key={at}><span class="bad-bar" style={{ height: `${(100 * failed) / most}%` }} /><span style={{ height: `${(100 * (jobs - failed)) / most}%` }} /></span>
      ))}
    </div>
  );
}
