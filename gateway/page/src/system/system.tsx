/** System: the sandbox, the limits, and figures at a glance. */
import { useEffect, useState } from "preact/hooks";
import { getJson, messageOf } from "../core/api.ts";
import { bytes, clock, count, memory } from "../core/format.ts";
import { snapshots } from "../core/store.ts";
import type { Layer, Status } from "../core/types.ts";
import { Failed, Loading } from "../parts/states.tsx";
import { Figures } from "./figures.tsx";
import { Packages } from "./packages.tsx";

export function SystemView() {
  const [status, setStatus] = useState<Status | null>(null);
  const [problem, setProblem] = useState("");
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    getJson<Status>("/v1/status").then((found) => (setStatus(found), setProblem("")), (error: unknown) => setProblem(messageOf(error)));
  }, [snapshots.value, attempt]);
  if (problem) return <Failed message={problem} retry={() => setAttempt(attempt + 1)} />;
  if (!status) return <Loading />;
  const hasMachine = status.sandbox.tier !== undefined;
  return (
    <>
      <h1>System</h1>
      <Figures />
      <section class="card">
        <h2>Sandbox{hasMachine && `: tier ${status.sandbox.tier} (${status.sandbox.tier_name})`}</h2>
        {status.sandbox.gateway_has_root && <p class="notice bad">The gateway keeps root.</p>}
        {hasMachine ? <Layers layers={status.sandbox.layers ?? []} /> : <p>This member of the cluster only accepts jobs; those with slots run them.</p>}
      </section>
      <div class="columns">
        <section class="card"><h2>Limits of a job</h2><Limits limits={status.limits} /></section>
        <section class="card">
          <h2>Parts</h2>
          <dl class="facts">
            <div><dt>Version</dt><dd>{status.version}</dd></div>
            {hasMachine && <div><dt>Fork server</dt><dd>{status.fork_server.state}{status.fork_server.restarts ? `, ${status.fork_server.restarts} restarts` : ""}</dd></div>}
            <div><dt>Results to deliver</dt><dd>{status.outbox.jobs ?? 0}</dd></div>
            {hasMachine && <div><dt>Network of jobs</dt><dd>{status.sandbox.allow_network ? "allowed" : "none"}</dd></div>}
            {status.internal_s3 && <div><dt>Embedded S3 server</dt><dd>{status.internal_s3.healthy ? "healthy" : "down"}</dd></div>}
          </dl>
          <p><a href="/docs">HTTP API</a> · <a href="/metrics">Metrics</a></p>
        </section>
      </div>
      {hasMachine && <Packages />}
    </>
  );
}

function Layers({ layers }: { layers: Layer[] }) {
  return (
    <ul class="layers">
      {layers.map((layer) => (
        <li key={layer.layer}>
          <span class={`badge ${layer.state === "on" ? "ok" : layer.state === "off" && !layer.remedy ? "cancelled" : "bad"}`}>{layer.state}</span>
          <span><b>{layer.layer.replaceAll("_", " ")}</b>: {layer.promise}{layer.why && <span class="faint"> ({layer.why})</span>}{layer.remedy && <span class="why">{layer.remedy}</span>}</span>
        </li>
      ))}
    </ul>
  );
}

function Limits({ limits }: { limits: Record<string, number> }) {
  return (
    <dl class="facts">
      {Object.entries(limits).map(([name, value]) => {
        const unit = /_(bytes|seconds)$/.exec(name)?.[1];
        const size = name.startsWith("memory") ? memory : bytes;
        const shown = unit === "bytes" ? size(value) : unit === "seconds" ? clock(value) : count(value);
        return <div key={name}><dt>{name.replace(/_(bytes|seconds)$/, "").replaceAll("_", " ")}</dt><dd>{shown}</dd></div>;
      })}
    </dl>
  );
}
