/** What stands where there is nothing to show: an empty list, an error, or data on its way. */
import type { ComponentChildren } from "preact";
import { connection } from "../core/store.ts";

/** `isView`: nothing else is in the view, so that this is its heading. */
export function Empty({ title, isView, children }: { title: string; isView?: boolean; children?: ComponentChildren }) {
  return <div class="empty">{isView ? <h1>{title}</h1> : <h2>{title}</h2>}<p>{children}</p></div>;
}

/** Nothing while the connection is lost: the frame of all views says so, and what failed is asked for again afterwards. */
export function Failed({ message, retry }: { message: string; retry: () => void }) {
  if (connection.value === "lost") return null;
  return <div class="notice bad" role="alert">{message} <button onClick={retry}>Try again</button></div>;
}

export function Loading() {
  return <p class="loading" role="status">Loading…</p>;
}
