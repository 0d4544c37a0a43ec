/** Requests to the gateway that serves this page. */
import { parseJson } from "./json.ts";
import { refused, token } from "./session.ts";

/** Pauses before what was lost is read again. An outage that is longer is for the stream to notice. */
const PAUSES_MS = [300, 1500];

export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

/** Send a request with the token. A refusal, or an unreachable gateway, is thrown as `Refusal`. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const sent = token();
  // a header has no place for other characters, so no gateway has such a token
  if (/[^\x20-\x7e]/.test(sent)) {
    refused.value = "The gateway does not accept this token.";
    throw new Refusal(401, "unauthorized", refused.value);
  }
  if (sent) headers.set("Authorization", `Bearer ${sent}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refusal(0, "unreachable", "The gateway does not answer.");
  }
  if (response.ok) return response;
  const refusal = await refusalOf(response);
  if (refusal.code === "insufficient_scope") throw new Refusal(refusal.status, refusal.code, scopeMessage(refusal.message));
  // the answer to an earlier token may be late
  if (refusal.status === 401 && sent === token()) refused.value = sent ? "The gateway does not accept this token." : "This gateway needs a token.";
  throw refusal;
}

/** Whether the answer, or the rest of it, was lost: `fetch` throws a `TypeError` while it reads a body. */
export function isLost(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof Refusal && error.status === 0);
}

/** Read, and read again if the answer was lost: most views ask once. */
export async function retried<T>(read: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  for (const pause of PAUSES_MS) {
    try {
      return await read();
    } catch (error) {
      if (!isLost(error)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    signal?.throwIfAborted();
  }
  return read();
}

export function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return retried(async () => parseJson(await (await call(path, signal ? { signal } : {})).text()) as T, signal);
}

export async function postJson<T>(path: string, body: unknown): Promise<T> {
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await (await call(path, init)).json()) as T;
}

/** The gateway names the kind of the token and the kind that a request needs. */
export function scopeMessage(text: string): string {
  if (/is of kind 'read'/.test(text)) return "This token may only read. A token of kind run is needed.";
  return /needs a token of kind 'admin'/.test(text) ? "This token may not do this. A token of kind admin is needed." : text;
}

async function refusalOf(response: Response): Promise<Refusal> {
  const text = await response.text();
  try {
    const body = JSON.parse(text) as { error?: string; code?: string };
    return new Refusal(response.status, body.code ?? "", body.error ?? `The gateway answered ${response.status}.`);
  } catch {
    return new Refusal(response.status, "", `The gateway answered ${response.status}.`);
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
