/** The view and its parameters, in the URL's fragment: `#/jobs/ID`, `#/jobs?code=failed`. */
import { computed, signal } from "@preact/signals";

export interface Route {
  view: string;
  id: string;
  query: URLSearchParams;
}

export function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [view = "", id = ""] = path.split("/");
  return { view: view || "now", id: decoded(id), query: new URLSearchParams(query) };
}

/** A fragment that somebody typed may have a % that encodes nothing. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const hash = signal(location.hash);
window.addEventListener("hashchange", () => (hash.value = location.hash));

export const route = computed(() => parseRoute(hash.value));

export function jobLink(jobId: string): string {
  return `#/jobs/${encodeURIComponent(jobId)}`;
}

/** Change the query of the present view without an entry in the browser's history. */
export function setQuery(query: URLSearchParams): void {
  const text = query.toString();
  history.replaceState(null, "", `#/${route.value.view}${text ? `?${text}` : ""}`);
  hash.value = location.hash;
}
