/** One connection to `/v1/stream`: opened again when it is lost, and closed while the tab is hidden. */
import { call, Refusal } from "./api.ts";
import { forgetToken, refused, setToken } from "./session.ts";
import { readEvents } from "./sse.ts";
import { applyEvent, connection, followed, forgetJobs, lostReason } from "./store.ts";

const FIRST_RETRY_MS = 300;
const LONGEST_RETRY_MS = 5000;

/** The gateway sends something at least every 15 seconds: after this silence, the connection leads nowhere. */
const SILENCE_MS = 40_000;

/** A browser has six connections for all tabs of one gateway, so a tab that nobody sees gives its own back. */
const HIDDEN_MS = 5000;

let wanted: string | null = null;
let lastId = "";
let attempt: AbortController | null = null;
let retryMs = FIRST_RETRY_MS;
let timer = 0;

/** Look at the log of a job, or of none. */
export function lookAt(jobId: string | null): void {
  if (jobId === wanted) return;
  wanted = jobId;
  followed.value = jobId === null ? null : { jobId, lines: [], next: 0 };
  lastId = lastId.replace(/\d+$/, "0");
  if (connection.value !== "paused") connect();
}

/** Begin, or begin anew: with another token, or after a refusal. */
export function connect(): void {
  clearTimeout(timer);
  attempt?.abort();
  attempt = new AbortController();
  void read(attempt.signal);
}

export function signIn(token: string): void {
  setToken(token);
  beginAnew();
  connect();
}

export function signOut(): void {
  clearTimeout(timer);
  attempt?.abort();
  forgetToken();
  beginAnew();
}

/** Another token may not see the jobs that this one saw. */
function beginAnew(): void {
  lastId = "";
  forgetJobs();
  if (wanted !== null) followed.value = { jobId: wanted, lines: [], next: 0 };
}

export function pauseWhileHidden(): void {
  let hiding = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = window.setTimeout(() => {
        clearTimeout(timer);
        attempt?.abort();
        connection.value = "paused";
      }, HIDDEN_MS);
    } else if (connection.value === "paused") {
      connection.value = "connecting";
      connect();
    }
  });
}

async function read(signal: AbortSignal): Promise<void> {
  const headers: Record<string, string> = lastId ? { "Last-Event-ID": lastId } : {};
  let reason = "";
  const query = wanted === null ? "" : `?job=${encodeURIComponent(wanted)}`;
  const silence = new AbortController();
  signal.addEventListener("abort", () => silence.abort());
  let silent = 0;
  const onData = (): void => {
    clearTimeout(silent);
    silent = window.setTimeout(() => silence.abort(), SILENCE_MS);
  };
  try {
    onData();
    const response = await call(`/v1/stream${query}`, { headers, signal: silence.signal });
    for await (const event of readEvents(response, onData)) {
      if (signal.aborted) return;
      connection.value = "open";
      retryMs = FIRST_RETRY_MS;
      refused.value = "";
      lastId = event.id;
      applyEvent(event.name, event.data);
    }
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Refusal && error.status === 404 && wanted !== null) {
      wanted = null; // the job was forgotten; its view says so
      connect();
      return;
    }
    if (error instanceof Refusal && error.status === 401) return; // the view asks for a token
    if (error instanceof Refusal && error.status !== 0) reason = error.message;
  } finally {
    clearTimeout(silent);
  }
  if (signal.aborted) return;
  lostReason.value = reason;
  connection.value = "lost";
  timer = window.setTimeout(connect, retryMs);
  retryMs = Math.min(2 * retryMs, LONGEST_RETRY_MS);
}
