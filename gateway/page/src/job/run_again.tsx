/** The script of a failed job that the gateway kept, and the way to run it again. */
import { useState } from "preact/hooks";
import { getJson, messageOf } from "../core/api.ts";
import type { Bundle } from "../core/types.ts";

export function RunAgain({ path, jobId }: { path: string; jobId: string }) {
  const [bundle, setBundle] = useState<Bundle | null>(null);
  const [problem, setProblem] = useState("");
  function load(): void {
    getJson<Bundle>(path).then(setBundle, (error: unknown) => setProblem(messageOf(error)));
  }
  return (
    <section class="card" aria-label="Run again">
      <div class="row">
        <a class="button" href={`#/playground?job=${encodeURIComponent(jobId)}`}>Run again in the playground</a>
        <span class="faint">or <code>transform-gateway replay {jobId}</code></span>
      </div>
      <details onToggle={(event) => event.currentTarget.open && !bundle && load()}>
        <summary>The script</summary>
        {problem && <p class="bad-text">{problem}</p>}
        {bundle && Object.entries({ "script.py": bundle.code, ...files(bundle.library) }).map(([name, source]) => (
          <div key={name}><h3>{name}</h3><pre tabIndex={0}>{source}</pre></div>
        ))}
      </details>
    </section>
  );
}

function files(library: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(library).map(([name, source]) => [`${name}.py`, source]));
}
