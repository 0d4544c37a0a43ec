import { render } from "preact";
import { App } from "./app.tsx";
import { connect, pauseWhileHidden } from "./core/stream.ts";

const root = document.getElementById("page");
if (root) {
  root.replaceChildren();
  render(<App />, root);
  pauseWhileHidden();
  connect();
}
