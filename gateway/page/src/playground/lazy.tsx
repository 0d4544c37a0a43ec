/** Loads the playground when it is first opened: the editor is most of the page's size. */
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Failed, Loading } from "../parts/states.tsx";

export function LazyPlayground() {
  const [View, setView] = useState<ComponentType | null>(null);
  const [hasFailed, setFailed] = useState(false);
  useEffect(() => {
    import("./playground.tsx").then((module) => setView(() => module.PlaygroundView), () => setFailed(true));
  }, []);
  if (hasFailed) return <Failed message="The playground could not be loaded." retry={() => location.reload()} />;
  return View ? <View /> : <Loading />;
}
