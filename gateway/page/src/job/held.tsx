/** The kernel that was kept of a failed job: the command that attaches to it, and the end of it. */
import { useEffect, useState } from "preact/hooks";
import { getJson, messageOf, postJson } from "../core/api.ts";
import { gateway } from "../core/store.ts";
import type { HeldKernel } from "../core/types.ts";
import { When } from "../parts/time.tsx";

export function Held({ held }: { held: HeldKernel }) {
  const [state, setState] = useState("");
  const [problem, setProblem] = useState("");
  const host = held.host && held.host !== gateway.value?.cluster?.member ? held.host : "";
  useEffect(() => {
    if (host) return; // only the host lists and releases it
    getJson<{ held: HeldKernel[] }>("/v1/held").then((list) => list.held.some((each) => each.id === held.id) || setState("It has ended."), () => undefined);
  }, [held.id, host]);
  async function release(): Promise<void> {
    setState("Releasing…");
    setProblem("");
    try {
      await postJson("/v1/release", { id: held.id });
      setState("It was released.");
    } catch (error) {
      setState("");
      setProblem(messageOf(error));
    }
  }
  return (
    <section class="card" aria-label="Held kernel">
      <h2>Held kernel</h2>
      {state ? <p role="status">{state}</p> : (
        <>
          <p>The variables of the failed job can be inspected until <When iso={held.expires_at} />. Run this on {host ? <>the machine of <b>{host}</b></> : "the gateway's machine"}:</p>
          <pre tabIndex={0}>{held.attach}</pre>
          <p><CopyButton text={held.attach} /> {!host && <button class="danger" onClick={() => void release()}>Release</button>}</p>
          {problem && <p class="bad-text" role="alert">{problem}</p>}
        </>
      )}
    </section>
  );
}

/** Absent where the page comes by plain HTTP from another machine: browsers then have no clipboard for it. */
function CopyButton({ text }: { text: string }) {
  const [isCopied, setCopied] = useState(false);
  if (!("clipboard" in navigator)) return null;
  return <button onClick={() => void navigator.clipboard.writeText(text).then(() => setCopied(true), () => undefined)}>{isCopied ? "Copied" : "Copy"}</button>;
}
