/** Jobs: the history, with filters in the URL. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { getJson, messageOf } from "../core/api.ts";
import { count, seconds } from "../core/format.ts";
import { firstLine, hasFailed, jobName, shortId } from "../core/names.ts";
import { jobLink, route, setQuery } from "../core/router.ts";
import { listed, live, recent, snapshots, type ListedJobs } from "../core/store.ts";
import type { JobSummary } from "../core/types.ts";
import { Badge } from "../parts/job_parts.tsx";
import { Empty, Failed, Loading } from "../parts/states.tsx";
import { When } from "../parts/time.tsx";
import { historyQuery } from "./history_query.ts";

/** Least time between two requests: of fast typing, and of many jobs that end. A single change is asked for at once. */
const PAUSE_MS = 200;

/** Filters with their labels; the names are the parameters of `/v1/jobs`. */
const INPUTS = [
  ["label", "Name contains", "text"],
  ["request_id", "Request id", "text"],
  ["min_duration", "Minimum seconds", "decimal"],
  ["min_rows", "Minimum rows", "numeric"],
] as const;

/** The codes that are usual; another one in the URL is added to the list. */
const CODES = ["user_error", "syntax_error", "timeout", "memory_limit", "cancelled", "input_unavailable", "queue_timeout"];

const PERIODS = { "": "any time", "1": "last hour", "24": "last day", "168": "last week" };

type Page = Omit<ListedJobs, "text">;

export function JobsView() {
  const query = route.value.query;
  const text = query.toString();
  const [page, setPage] = useState(listed.page?.text === text ? listed.page : null);
  const [problem, setProblem] = useState("");
  const [attempt, setAttempt] = useState(0);
  const askedAt = useRef(-PAUSE_MS);
  // a job that was accepted or ended, or a stream that began anew, changes the list
  const changes = `${snapshots.value} ${recent.value[0]?.job_id ?? ""} ${[...live.value.keys()].at(-1) ?? ""}`;
  const shown = useRef(0); // a change of the list must not take away what "Show more" brought
  shown.current = page?.text === text ? page.jobs.length : 0;
  useEffect(() => {
    listed.page = page;
  }, [page]);
  useLayoutEffect(() => scrollTo(0, topOf(history.state)), []);
  // what changes during a request is asked for after it: an answer that is given up for each change would never come
  const [isAsking, setAsking] = useState(true);
  const [asked, setAsked] = useState(changes);
  useEffect(() => {
    if (!isAsking) setAsked(changes);
  }, [isAsking, changes]);
  useEffect(() => {
    const aborter = new AbortController();
    setAsking(true);
    const timer = setTimeout(() => {
      askedAt.current = performance.now();
      const shownBefore = shown.current;
      getJson<Page>(`/v1/jobs?${historyQuery(query, Date.now(), shownBefore)}`, aborter.signal)
        .then(
          (found) => {
            setProblem("");
            if (shown.current > shownBefore) setAttempt((number) => number + 1); // "Show more" was faster: ask for as many
            else setPage({ ...found, text });
          },
          (error: unknown) => aborter.signal.aborted || setProblem(messageOf(error)),
        )
        .finally(() => aborter.signal.aborted || setAsking(false));
    }, page ? Math.max(0, askedAt.current + PAUSE_MS - performance.now()) : 0);
    return () => (clearTimeout(timer), aborter.abort());
  }, [text, asked, attempt]);

  async function more(): Promise<void> {
    if (!page?.cursor) return;
    const sent = historyQuery(query, Date.now());
    sent.set("cursor", page.cursor);
    try {
      const next = await getJson<Page>(`/v1/jobs?${sent}`);
      setPage((now) => {
        if (now?.text !== text) return now; // other filters were chosen meanwhile
        const known = new Set(now.jobs.map((job) => job.job_id));
        return { ...next, text, jobs: [...now.jobs, ...next.jobs.filter((job) => !known.has(job.job_id))] };
      });
    } catch (error) {
      setProblem(messageOf(error));
    }
  }

  return (
    <>
      <h1>Jobs</h1>
      <Filters query={query} />
      {problem && <Failed message={problem} retry={() => setAttempt(attempt + 1)} />}
      {!!page?.missing_members?.length && <p class="notice bad" role="alert">This list lacks jobs: {page.missing_members.join(", ")} {page.missing_members.length === 1 ? "does" : "do"} not answer.</p>}
      {!page && !problem && <Loading />}
      {page?.jobs.length === 0 && <Empty title={text ? "No job matches" : "No jobs yet"}>{text ? <a href="#/jobs">Remove all filters</a> : <>Each job that this gateway accepts is listed here. <a href="#/playground">Run the first one</a></>}</Empty>}
      {page && page.jobs.length > 0 && <Table jobs={page.jobs} query={query} />}
      {page?.cursor && <p class="center"><button onClick={() => void more()}>Show more</button></p>}
    </>
  );
}

/** Where the list was left for a job; a browser restores the place before the rows are there. */
function topOf(state: unknown): number {
  return (state as { top?: number } | null)?.top ?? 0;
}

function change(name: string, value: string): void {
  const query = new URLSearchParams(route.value.query);
  if (value) query.set(name, value);
  else query.delete(name);
  setQuery(query);
}

function Filters({ query }: { query: URLSearchParams }) {
  return (
    <form class="filters" onSubmit={(event) => event.preventDefault()}>
      <label>State
        <select value={query.get("state") ?? ""} onChange={(event) => change("state", event.currentTarget.value)}>
          <option value="">all</option><option>queued</option><option>running</option><option>finished</option>
        </select>
      </label>
      <label>Outcome
        <select value={query.get("code") ?? ""} onChange={(event) => change("code", event.currentTarget.value)}>
          <option value="">all</option><option value="failed">all failures</option><option>ok</option>
          {[...new Set([...CODES, query.get("code") ?? ""])].filter((code) => !["", "ok", "failed"].includes(code)).map((code) => <option key={code} value={code}>{code.replaceAll("_", " ")}</option>)}
        </select>
      </label>
      <label>Accepted
        <select value={query.get("hours") ?? ""} onChange={(event) => change("hours", event.currentTarget.value)}>
          {Object.entries(PERIODS).map(([hours, name]) => <option key={hours} value={hours}>{name}</option>)}
        </select>
      </label>
      {INPUTS.map(([name, label, mode]) => (
        <label key={name}>{label}<input inputMode={mode} value={query.get(name) ?? ""} onInput={(event) => change(name, event.currentTarget.value)} /></label>
      ))}
    </form>
  );
}

const COLUMNS = [["", "Job"], ["", "Outcome"], ["created_at", "Accepted"], ["duration", "Duration"], ["rows", "Rows"]] as const;

function Table({ jobs, query }: { jobs: JobSummary[]; query: URLSearchParams }) {
  const sort = query.get("sort") ?? "-created_at";
  return (
    <div class="table history" tabIndex={0} role="region" aria-label="Jobs" onClick={() => history.replaceState({ top: scrollY }, "")}>
      <table>
        <thead>
          <tr>
            {COLUMNS.map(([key, name]) => (
              <th key={name} scope="col" class={key === "duration" || key === "rows" ? "number" : undefined} aria-sort={sort === key ? "ascending" : sort === `-${key}` ? "descending" : undefined}>
                {key ? <button class="plain" onClick={() => change("sort", sort === `-${key}` ? key : `-${key}`)}>{name}{sort === key ? " ↑" : sort === `-${key}` ? " ↓" : ""}</button> : name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <tr key={job.job_id} class={hasFailed(job) ? "failed" : ""}>
              <td>
                <a href={jobLink(job.job_id)}><bdi>{jobName(job)}</bdi></a>
                <span class="faint"> {job.label ? job.tables.join(", ") : ""} <span title={`request id ${job.request_id}`}>#{shortId(job.request_id)}</span>{job.host && ` on ${job.host}`}</span>
                {job.error && <span class="why">{firstLine(job.error)}</span>}
              </td>
              <td><Badge job={job} /></td>
              <td><When iso={job.created_at} /></td>
              <td class={`number ${job.duration === null ? "none" : ""}`} data-name="ran">{seconds(job.duration)}</td>
              <td class={`number ${job.rows === null ? "none" : ""}`} data-name="rows">{count(job.rows)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
