import { useEffect, useRef, useState } from "preact/hooks";
import { refused, token } from "../core/session.ts";
import { signIn } from "../core/stream.ts";

export function TokenForm() {
  const [text, setText] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (document.activeElement === document.body) input.current?.focus(); // also after a refusal, for which the form is made anew
  }, []);
  function submit(event: Event): void {
    event.preventDefault();
    signIn(text.trim());
  }
  return (
    <form class="token card" onSubmit={submit}>
      <h1>Sign in</h1>
      <p role="alert" class={token() ? "bad-text" : ""}>{refused.value}</p>
      <label for="token">Token (from AUTH_TOKEN or AUTH_TOKEN_FILE of the gateway)</label>
      <input ref={input} id="token" type="password" autocomplete="off" required value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <button class="primary">Continue</button>
      <p class="faint">It stays in this tab until you close it.</p>
    </form>
  );
}
