/** Playground: write a transform, drop tables, run it as production does, and look at what it made. */
import { useEffect, useRef, useState } from "preact/hooks";
import { isLost, messageOf } from "../core/api.ts";
import { lineOf } from "../core/names.ts";
import { jobLink, route, setQuery } from "../core/router.ts";
import { token } from "../core/session.ts";
import { followed, live, recent, snapshots } from "../core/store.ts";
import { lookAt } from "../core/stream.ts";
import { Displays } from "../parts/displays.tsx";
import { Badge, CancelButton } from "../parts/job_parts.tsx";
import { LogView } from "../parts/log_view.tsx";
import { Elapsed } from "../parts/time.tsx";
import { loadBundle, type Setup } from "./bundle.ts";
import { createEditor, type Editor } from "./editor.ts";
import { OutcomeView } from "./outcome.tsx";
import { FORMATS } from "./formats.ts";
import { outcomeOf, submit, type Outcome } from "./run.ts";
import { TablesCard } from "./tables_card.tsx";
import { firstScript, numbered, readTable, type PlaygroundTable } from "./tables.ts";

const CODE_KEY = "playground.code";
const JOB_KEY = "playground.job";

/** Pause after which an outcome that could not be read is asked for again. */
const ASK_AGAIN_MS = 2000;

/** The editor, tables and outcomes stay while other views are looked at; files cannot outlive a reload. */
let editor: Editor | null = null;
let keptTables: PlaygroundTable[] = [];
let keptSetup: Setup | null = null;
let keptOutcomes: [Outcome | null, Outcome | null] = [null, null];

/** Run what the view shows: the editor outlives the view that made it. */
let runShown = (): Promise<void> => Promise.resolve();

/** Bundles that were asked for; an answer that comes late must not replace a later one. */
let bundles = 0;

let keptFor = token();

/** Another token may not see what this one saw of jobs; the job itself is asked for again. */
function forgetJobs(): void {
  keptFor = token();
  if (keptSetup) keptTables = [];
  keptSetup = null;
  keptOutcomes = [null, null];
}

export function PlaygroundView() {
  if (keptFor !== token()) forgetJobs();
  const [tables, setTables] = useState(keptTables);
  const [setup, setSetup] = useState(keptSetup);
  const [jobId, setJobId] = useState(sessionStorage.getItem(JOB_KEY) ?? "");
  const [isRunning, setRunning] = useState(jobId !== "" && keptOutcomes[0]?.job.job_id !== jobId);
  const [[outcome, before], setOutcomes] = useState(keptOutcomes);
  const [problem, setProblem] = useState("");
  const [attempt, setAttempt] = useState(0);
  const [replaced, setReplaced] = useState<string[]>([]);
  keptTables = tables;
  keptSetup = setup;
  keptOutcomes = [outcome, before];

  runShown = async () => {
    if (isRunning) return;
    setProblem("");
    editor?.mark(null, "");
    setRunning(true);
    try {
      const id = await submit(editor?.text() ?? "", tables, setup);
      sessionStorage.setItem(JOB_KEY, id);
      setJobId(id);
    } catch (error) {
      setProblem(messageOf(error));
      setRunning(false);
    }
  };

  useEffect(() => lookAt(jobId || null), [jobId]);
  const isOver = recent.value.some((job) => job.job_id === jobId);
  useEffect(() => {
    if (!jobId || !isRunning) return;
    let timer = 0;
    let isStale = false; // the end of a short job comes while the first answer is read, and is read again
    outcomeOf(jobId).then(
      (found) => {
        if (isStale || found.job.state !== "finished") return;
        setOutcomes(([last]) => [found, last]);
        setRunning(false);
        editor?.mark(lineOf(found.job.error), found.job.error ?? "");
      },
      (error: unknown) => {
        if (isStale) return;
        if (isLost(error)) timer = window.setTimeout(() => setAttempt(attempt + 1), ASK_AGAIN_MS);
        else setProblem(messageOf(error)), setRunning(false);
      },
    );
    return () => {
      isStale = true;
      clearTimeout(timer);
    };
  }, [jobId, isOver, snapshots.value, attempt]);

  function take(taken: PlaygroundTable[]): void {
    const names = new Set(taken.map((table) => table.name));
    const known = keptTables.map((table) => table.name).filter((name) => names.has(name));
    replaceTables([...keptTables.filter((table) => !names.has(table.name)), ...taken]);
    setReplaced(known);
    setProblem("");
  }

  function replaceTables(all: PlaygroundTable[]): void {
    if (editor?.text() === firstScript(keptTables)) editor.replace(firstScript(all));
    keptTables = all; // files that are read at the same time must not forget each other
    setTables(all);
    setReplaced([]);
  }

  async function add(files: Iterable<File>): Promise<void> {
    const read = await Promise.allSettled([...files].map((file) => readTable(file, FORMATS)));
    take(numbered(read.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []))));
    setProblem(read.flatMap((each) => (each.status === "rejected" ? [messageOf(each.reason)] : [])).join("; "));
  }

  const again = route.value.query.get("job");
  useEffect(() => {
    if (!again) return;
    setQuery(new URLSearchParams()); // a reload must not replace the script that was changed meanwhile
    const asked = (bundles += 1);
    loadBundle(again).then(
      (found) => {
        if (asked !== bundles) return; // another one was asked for meanwhile
        editor?.replace(found.code);
        setTables(found.tables);
        setSetup(found.setup);
        setProblem("");
      },
      (error: unknown) => setProblem(messageOf(error)),
    );
  }, [again]);

  const job = live.value.get(jobId);
  const log = followed.value;
  return (
    <div onDragOver={(event) => event.preventDefault()} onDrop={(event) => (event.preventDefault(), void add(event.dataTransfer?.files ?? []))}>
      <h1>Playground</h1>
      <TablesCard tables={tables} add={add} take={take} remove={(name) => replaceTables(tables.filter((table) => table.name !== name))} />
      {replaced.length > 0 && <p class="notice" role="status">Replaced by the new file: {replaced.join(", ")}</p>}
      {setup && <SetupNotice setup={setup} tables={tables} forget={() => setSetup(null)} />}
      <Script />
      <div class="row actions">
        <button class="primary" disabled={isRunning} onClick={() => void runShown()}>{isRunning ? "Running…" : "Run"}</button>
        <span class="faint">Ctrl+Enter runs it; Esc, then Tab leaves the editor</span>
        {job && <><Badge job={job} />{job.started_at && <Elapsed since={job.started_at} limit={job.timeout} />}<CancelButton job={job} /></>}
        <button onClick={() => save(editor?.text() ?? "")}>Download script</button>
      </div>
      {problem && <p class="notice bad" role="alert">{problem}</p>}
      {outcome && !isRunning && <OutcomeView outcome={outcome} before={before} />}
      {outcome && !isRunning && <Displays key={outcome.job.job_id} jobId={outcome.job.job_id} rows={outcome.job.rows ?? 0} />}
      {log && log.jobId === jobId && <LogView lines={log.lines} name="playground" isLive={isRunning} />}
    </div>
  );
}

/** What comes from a failed job besides its script and tables, so that nothing of a run is hidden. */
function SetupNotice({ setup, tables, forget }: { setup: Setup; tables: PlaygroundTable[]; forget: () => void }) {
  const modules = Object.keys(setup.library).map((name) => `module ${name}`);
  const parts = [...modules, ...(setup.outputSchema ? ["output contract"] : []), `timeout ${setup.timeout} s`];
  const names = new Set(tables.map((table) => table.name));
  const lost = setup.lost.filter(({ name }) => !names.has(name));
  return (
    <div class="notice" role="status">
      From <a href={jobLink(setup.jobId)}>the failed job</a>: {parts.join(", ")}. <button class="plain" onClick={forget}>forget</button>
      {lost.length > 0 && <p>Not kept: {lost.map(({ name, reason }) => `${name} (${reason})`).join(", ")}. Drop a file of this name to run the script.</p>}
    </div>
  );
}

function Script() {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    editor ??= createEditor({
      text: sessionStorage.getItem(CODE_KEY) ?? firstScript([]),
      words: () => keptTables.flatMap((table) => [table.name, ...table.columns]),
      onRun: () => void runShown(),
      onChange: (next) => sessionStorage.setItem(CODE_KEY, next),
    });
    box.current?.append(editor.element);
  }, []);
  return <div class="editor" ref={box} />;
}

/** `transform-gateway run transform.py --table NAME=FILE` runs the file on a machine without a page. */
function save(code: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([code], { type: "text/x-python" }));
  link.download = "transform.py";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
