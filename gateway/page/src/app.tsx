/** The frame of all views: navigation, the state of the connection, and the form for the token. */
import { useEffect, useRef } from "preact/hooks";
import { route } from "./core/router.ts";
import { refused, token } from "./core/session.ts";
import { connection, gateway, lostReason, queued, running } from "./core/store.ts";
import { lookAt, signOut } from "./core/stream.ts";
import { JobView } from "./job/job.tsx";
import { JobsView } from "./jobs/jobs.tsx";
import { NowView } from "./now/now.tsx";
import { Empty } from "./parts/states.tsx";
import { TokenForm } from "./parts/token_form.tsx";
import { LazyPlayground } from "./playground/lazy.tsx";
import { SystemView } from "./system/system.tsx";

const VIEWS = [
  ["now", "Now", "#/"],
  ["jobs", "Jobs", "#/jobs"],
  ["playground", "Playground", "#/playground"],
  ["system", "System", "#/system"],
] as const;

export function App() {
  const { view, id } = route.value;
  useEffect(() => {
    document.title = `${VIEWS.find(([name]) => name === view)?.[1] ?? "Now"} · Transform Gateway`;
    if (view === "jobs" && !id) lookAt(null);
    if (view === "system") lookAt(null);
  }, [view, id]);
  const isFirst = useRef(true);
  useEffect(() => {
    // the link that was followed went away with its view, and the keyboard would begin at the top of the page
    if (!isFirst.current && document.activeElement === document.body) document.getElementById("main")?.focus({ preventScroll: true });
    isFirst.current = false;
  }, [view, id]);
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>Skip to content</a>
      <header class="top">
        <span class="brand"><span class="mark" aria-hidden="true" />Transform Gateway</span>
        <nav aria-label="Views">
          {VIEWS.map(([name, text, href]) => (
            <a key={name} href={href} aria-current={view === name ? "page" : undefined}>
              {text}
              {name === "now" && running.value.length + queued.value.length > 0 && (
                <span class="bubble">{running.value.length + queued.value.length}</span>
              )}
            </a>
          ))}
        </nav>
        <Connection />
      </header>
      <main id="main" tabIndex={-1}>
        {connection.value === "lost" && !refused.value && <p class="notice bad gone" role="status">{lostReason.value || "The gateway does not answer."} The page shows its last known state and reconnects by itself.</p>}
        {refused.value ? <TokenForm /> : <View view={view} id={id} />}</main>
    </>
  );
}

function View({ view, id }: { view: string; id: string }) {
  switch (view) {
    case "now":
      return <NowView />;
    case "jobs":
      return id ? <JobView key={id} jobId={id} /> : <JobsView />;
    case "playground":
      return <LazyPlayground />;
    case "system":
      return <SystemView />;
    default:
      return <Empty title="There is no such view" isView><a href="#/">Go to Now</a></Empty>;
  }
}

const STATES = { connecting: "connecting", open: "live", lost: "gateway does not answer", paused: "paused" };

function Connection() {
  const state = connection.value;
  const text = state === "open" && gateway.value?.draining ? "shutting down" : state === "lost" && lostReason.value ? "not connected" : STATES[state];
  return (
    <span class="connection">
      {!refused.value && <span role="status" class={`dot ${state}`}>{text}</span>}
      {token() && !refused.value && <button class="plain" onClick={signOut}>Forget token</button>}
    </span>
  );
}

function skip(event: Event): void {
  event.preventDefault(); // the fragment of the URL names the view
  document.getElementById("main")?.focus();
}
