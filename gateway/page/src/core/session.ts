/** The token: typed once, kept for this tab, sent as a header and never in a URL. */
import { signal } from "@preact/signals";

const KEY = "token";

/** Why the gateway does not let this tab in; empty if it does. */
export const refused = signal("");

export function token(): string {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setToken(text: string): void {
  sessionStorage.setItem(KEY, text);
  refused.value = "";
}

export function forgetToken(): void {
  sessionStorage.removeItem(KEY);
  refused.value = "The token was removed from this tab.";
}
