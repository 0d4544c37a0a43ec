/** The data formats of tables, which the gateway writes into the page. */
import type { Formats } from "./tables.ts";

export const FORMATS = JSON.parse(document.querySelector<HTMLMetaElement>("meta[name=formats]")?.content ?? "{}") as Formats;
