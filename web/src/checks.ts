/** The doctor's examination, as it runs on the console's server. */

import { type Done, events, type Finding } from "./api";

export interface CheckHandlers {
  onBegin(): void;
  onFinding(finding: Finding): void;
  /** `error`: why it came to no end. */
  onEnd(done: Done | null, error: string | null): void;
}

export class Checks {
  readonly #handlers: CheckHandlers;
  #running: AbortController | null = null;
  #again = false;

  constructor(handlers: CheckHandlers) {
    this.#handlers = handlers;
  }

  get running(): boolean {
    return this.#running !== null;
  }

  /** Examines. While an examination is running, another one comes after it: things may have changed meanwhile. */
  run(): void {
    if (this.#running) {
      this.#again = true;
      return;
    }
    this.#again = false;
    const running = new AbortController();
    this.#running = running;
    void this.#examine(running.signal).finally(() => {
      this.#running = null;
      if (this.#again) this.run();
    });
  }

  stop(): void {
    this.#again = false;
    this.#running?.abort();
  }

  async #examine(signal: AbortSignal): Promise<void> {
    this.#handlers.onBegin();
    let done: Done | null = null;
    let failure = "the examination broke off";
    try {
      for await (const event of events("api/checks", signal)) {
        if (event.name === "finding") this.#handlers.onFinding(event.data as unknown as Finding);
        if (event.name === "done") done = event.data as unknown as Done;
        if (event.name === "error") failure = (event.data as { readonly error: string }).error;
      }
      this.#handlers.onEnd(done, done ? null : failure);
    } catch (error) {
      if (signal.aborted) return;
      this.#handlers.onEnd(null, error instanceof Error ? error.message : String(error));
    }
  }
}
