/** The members of a cluster: who is there, what they run, and how they differ. */
import type { Cluster, Member } from "../core/types.ts";

export function Members({ cluster: { member, members, missing } }: { cluster: Cluster }) {
  const own = members.find((each) => each.name === member);
  return (
    <section class="card" aria-label="Members of the cluster">
      <h2>Members of the cluster</h2>
      <div class="table members" tabIndex={0} role="region" aria-label="Members">
        <table>
          <thead><tr><th scope="col">Member</th><th scope="col">State</th><th scope="col" class="number">Busy slots</th><th scope="col" class="number">Waiting</th><th scope="col">Version</th><th scope="col">Tier</th><th scope="col">Packages</th></tr></thead>
          <tbody>
            {members.map((each) => (
              <tr key={each.name} class={each.healthy ? "" : "failed"}>
                <th scope="row">{each.name}{each === own && <span class="faint"> this one</span>}</th>
                <td><span class={`badge ${each.healthy ? "ok" : "bad"}`}>{each.healthy ? roleOf(each) : "takes no jobs"}</span></td>
                <td class="number">{each.slots > 0 ? `${each.busy} of ${each.slots}` : "–"}</td>
                <td class="number">{each.accepts ? each.waiting : "–"}</td>
                <td>{each.version}{own && each.version !== own.version && <Differs />}</td>
                <td>{each.tier || "–"}</td>
                <td>{each.slots === 0 ? "–" : each.packages === commonPackages(members) ? "the same" : <Differs />}</td>
              </tr>
            ))}
            {missing.map((name) => (
              <tr key={name} class="failed"><th scope="row">{name}</th><td><span class="badge bad">does not answer</span></td>{[0, 1, 2, 3, 4].map((at) => <td key={at} class={at < 2 ? "number" : ""}>–</td>)}</tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function roleOf({ accepts, slots }: Member): string {
  if (slots === 0) return "accepts only";
  return accepts ? "ready" : "runs only";
}

function Differs() {
  return <span class="badge bad">differs</span>;
}

/** The digest that most members with slots have. */
export function commonPackages(members: readonly Member[]): string {
  const counts = new Map<string, number>();
  for (const { packages, slots } of members) if (slots > 0) counts.set(packages, (counts.get(packages) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";
}
