/** A log: only the lines in sight are in the document, so that 20,000 lines scroll and search without delay. */
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { plural, shownLine, utcTime } from "../core/format.ts";
import type { LogLine } from "../core/types.ts";

const LINE_PIXELS = 20;
const MARGIN_LINES = 30;

type Shown = "all" | "stdout" | "stderr";

export function selectLines(lines: readonly LogLine[], stream: Shown, text: string): readonly LogLine[] {
  if (stream === "all" && !text) return lines;
  const wanted = text.toLowerCase();
  return lines.filter((line) => (stream === "all" || line.stream === stream) && shownLine(line.message).toLowerCase().includes(wanted));
}

export function LogView({ lines, name, isLive }: { lines: readonly LogLine[]; name: string; isLive: boolean }) {
  const [stream, setStream] = useState<Shown>("all");
  const [text, setText] = useState("");
  const found = useMemo(() => selectLines(lines, stream, text), [lines, stream, text]);
  return (
    <section class="log" aria-label="Log">
      <div class="bar">
        <select aria-label="Stream" value={stream} onChange={(event) => setStream(event.currentTarget.value as Shown)}>
          <option value="all">both streams</option><option>stdout</option><option>stderr</option>
        </select>
        <input type="search" placeholder="Search the log" aria-label="Search the log" value={text} onInput={(event) => setText(event.currentTarget.value)} />
        <span class="faint" role="status">{text || stream !== "all" ? `${found.length.toLocaleString("en-US")} of ${plural(lines.length, "line")}` : plural(lines.length, "line")}</span>
        <button onClick={() => download(lines, name)} disabled={lines.length === 0}>Download</button>
      </div>
      <Lines lines={found} empty={lines.length > 0 ? "No line matches." : isLive ? "Nothing printed yet." : "No log: nothing was printed, or it is no longer kept."} />
    </section>
  );
}

export function Lines({ lines, empty }: { lines: readonly LogLine[]; empty: string }) {
  const box = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(400);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    setHeight(element.clientHeight);
    if (atEnd.current) element.scrollTop = element.scrollHeight;
  }, [lines]);
  function onScroll(): void {
    const element = box.current;
    if (!element) return;
    atEnd.current = element.scrollTop + element.clientHeight >= element.scrollHeight - LINE_PIXELS;
    setTop(element.scrollTop);
    setHeight(element.clientHeight);
  }
  const first = Math.max(0, Math.floor(top / LINE_PIXELS) - MARGIN_LINES);
  const last = Math.min(lines.length, Math.ceil((top + height) / LINE_PIXELS) + MARGIN_LINES);
  return (
    <div class="lines" ref={box} onScroll={onScroll} tabIndex={0} role="log" aria-live="off" aria-label="Lines of the log">
      {lines.length === 0 && <p class="faint">{empty}</p>}
      <div style={{ height: `${lines.length * LINE_PIXELS}px` }}>
        <div style={{ transform: `translateY(${first * LINE_PIXELS}px)` }}>
          {lines.slice(first, last).map((line, at) => (
            <div key={first + at} class={`line ${line.stream}`} title={utcTime(line.timestamp)}>{shownLine(line.message) || " "}</div>
          ))}
        </div>
      </div>
    </div>
  );
}

function download(lines: readonly LogLine[], name: string): void {
  const text = lines.map((line) => `${line.timestamp} ${line.stream} ${line.message}\n`).join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = `${name}.log`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
