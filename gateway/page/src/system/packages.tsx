/** The packages that jobs can import. */
import { useEffect, useState } from "preact/hooks";
import { getJson, messageOf } from "../core/api.ts";
import { plural } from "../core/format.ts";

interface Package {
  name: string;
  version: string;
  preloaded: boolean;
}

export function Packages() {
  const [packages, setPackages] = useState<Package[] | null>(null);
  const [problem, setProblem] = useState("");
  const [text, setText] = useState("");
  useEffect(() => {
    getJson<{ packages: Package[] }>("/v1/packages").then((found) => setPackages(found.packages), (error: unknown) => setProblem(messageOf(error)));
  }, []);
  const found = (packages ?? []).filter((each) => each.name.toLowerCase().includes(text.trim().toLowerCase()));
  return (
    <section class="card" aria-label="Packages of jobs">
      <div class="row">
        <h2>Packages of jobs</h2>
        <input type="search" aria-label="Find a package" placeholder="Find a package" value={text} onInput={(event) => setText(event.currentTarget.value)} />
        {packages && <span class="faint" role="status">{text ? `${found.length} of ${plural(packages.length, "package")}` : plural(packages.length, "package")}; those in bold are loaded before a job begins</span>}
      </div>
      {problem && <p class="faint">{problem}</p>}
      <ul class="schema packages">{found.map((each) => <li key={each.name}>{each.preloaded ? <b>{each.name}</b> : each.name} <span class="faint">{each.version}</span></li>)}</ul>
    </section>
  );
}
