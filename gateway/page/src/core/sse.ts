/** Server-Sent Events read by fetch, because EventSource sends no Authorization header. */
import { parseJson } from "./json.ts";

export interface StreamEvent {
  name: string;
  id: string;
  data: unknown;
}

/** Split text that arrives in pieces into events; a comment yields nothing. */
export class EventParser {
  private rest = "";

  push(piece: string): StreamEvent[] {
    const parts = (this.rest + piece).split("\n\n");
    this.rest = parts.pop() ?? "";
    return parts.map(parse).filter((event) => event !== null);
  }
}

function parse(text: string): StreamEvent | null {
  const fields = new Map<string, string>();
  for (const line of text.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields.set(line.slice(0, at), line.slice(at + 2));
  }
  const data = fields.get("data");
  if (data === undefined) return null;
  return { name: fields.get("event") ?? "message", id: fields.get("id") ?? "", data: parseJson(data) };
}

/** Yield the events of an answer; `onData` is called for each piece of it, also for comments. */
export async function* readEvents(response: Response, onData: () => void): AsyncGenerator<StreamEvent> {
  if (!response.body) return;
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onData();
      yield* parser.push(value);
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}
