/**
 * A subscription to the changes of one table that says truthfully whether changes flow, and comes back by itself.
 *
 *   Live        changes reach this page
 *   Connecting  there is a connection, or the first one is being made; changes do not flow yet
 *   Offline     there is no connection, or somebody who knows said that nothing flows (hold)
 *
 * supabase-js's SUBSCRIBED only means that the channel was joined. Changes flow seconds later, when the server says
 * "Subscribed to PostgreSQL" in a `system` message, and what is committed before is never sent. Nor is anything sent
 * again that was missed. Hence: Live from that message on, and `onLive` each time, upon which to read the rows anew.
 *
 * Every attempt is a new channel: a rejoin of the old one makes the server close the channel that was just joined.
 */

import type { Change } from "./store";

export type State = "live" | "connecting" | "offline";

export interface Status {
  readonly state: State;
  /** Why it is not Live, one line; empty when it is. */
  readonly reason: string;
}

export interface Table {
  readonly schema: string;
  readonly name: string;
}

/** What a channel's server says about it (lib/realtime_web/channels/realtime_channel.ex, push_system_message). */
export interface SystemMessage {
  readonly extension: string;
  readonly status: string;
  readonly message: string;
}

export interface Listener {
  system(message: SystemMessage): void;
  change(change: Change): void;
  /** The channel is over; nothing comes after it. */
  ended(reason: string): void;
}

/** One websocket for all subscriptions (client.ts). */
export interface Connection {
  readonly isOpen: boolean;
  /** Resolves when channels can be joined, with a token that is good for a while. Rejects with what failed. */
  open(): Promise<void>;
  /** Joins a new channel. Returns what leaves it, after which the listener hears nothing more. */
  join(table: Table, listener: Listener): () => void;
}

export interface Clock {
  /** ms */
  now(): number;
  /** Returns what cancels it. */
  after(ms: number, run: () => void): () => void;
}

export interface Handlers {
  /** The state or its reason changed. */
  onStatus(status: Status): void;
  /** Changes flow from here on, and some may have been missed before: read the rows. */
  onLive(why: string): void;
  onChange(change: Change): void;
}

/** realtime_channel.ex, handle_info(:postgres_subscribe). */
const SUBSCRIBED_TO_POSTGRESQL = "Subscribed to PostgreSQL";
/** The first subscriber waits up to 5 s for the server to make its replication slot; a retry of the server's takes 10. */
const LIVE_WITHIN_MS = 20_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;
/** A subscription that was Live for so long begins with the shortest delay again; one that flaps does not. */
const STEADY_MS = 10_000;
/** After such a sleep the rows are read anew, though the connection seems to have lived. */
const NAP_MS = 10_000;

export const systemClock: Clock = {
  now: () => Date.now(),
  after: (ms, run) => {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
};

export class Subscription {
  readonly #connection: Connection;
  readonly #table: Table;
  readonly #handlers: Handlers;
  readonly #clock: Clock;
  readonly #random: () => number;

  #running = false;
  /** What an earlier attempt still hears is not for this one. */
  #attempt = 0;
  #waiting = false;
  #failures = 0;
  #leave: () => void = () => undefined;
  #cancelTimer: () => void = () => undefined;
  /** Since when the server has been sending changes; null while it does not. */
  #flowingSince: number | null = null;
  #everLive = false;
  #held: string | null = null;
  #generation: string | null = null;
  #readAt = 0;
  #failure = "";
  #reconnects = 0;
  #status: Status = { state: "connecting", reason: "not started" };

  constructor(
    connection: Connection,
    table: Table,
    handlers: Handlers,
    clock: Clock = systemClock,
    random: () => number = Math.random,
  ) {
    this.#connection = connection;
    this.#table = table;
    this.#handlers = handlers;
    this.#clock = clock;
    this.#random = random;
  }

  get status(): Status {
    return this.#status;
  }

  /** How often it became Live again after it had not been. */
  get reconnects(): number {
    return this.#reconnects;
  }

  start(): void {
    if (this.#running) return;
    this.#running = true;
    void this.#try();
  }

  /** Leaves the channel. The connection stays: others may use it. */
  stop(): void {
    this.#running = false;
    this.#abandon();
  }

  /** Somebody who can see the server's side says that nothing flows: a stopped database leaves the socket open. */
  hold(reason: string): void {
    this.#held = reason;
    this.#report();
  }

  /** It flows again. Another generation than the last one means that it had stopped in between, unnoticed. */
  release(generation: string): void {
    const changed = this.#generation !== null && this.#generation !== generation;
    this.#generation = generation;
    this.#held = null;
    this.#report(changed ? "changes may have been missed" : undefined);
  }

  /** The network or the page is back: tries at once what it would have tried later. */
  wake(): void {
    if (!this.#running) return;
    if (this.#waiting) {
      this.#failures = 0;
      void this.#try();
    } else if (this.#status.state === "live" && this.#clock.now() - this.#readAt > NAP_MS) {
      this.#live("the page has slept");
    }
  }

  async #try(): Promise<void> {
    this.#abandon();
    const attempt = this.#attempt;
    const current = (): boolean => this.#running && attempt === this.#attempt;
    this.#report();
    try {
      await this.#connection.open();
    } catch (error) {
      if (current()) this.#failed(error instanceof Error ? error.message : String(error));
      return;
    }
    if (!current()) return;
    this.#cancelTimer = this.#clock.after(LIVE_WITHIN_MS, () => {
      this.#failed(`the server has not begun to send changes within ${LIVE_WITHIN_MS / 1000} s`);
    });
    this.#leave = this.#connection.join(this.#table, {
      system: (message) => current() && this.#heard(message),
      change: (change) => current() && this.#handlers.onChange(change),
      ended: (reason) => current() && this.#failed(reason),
    });
    if (current()) this.#report();
  }

  #heard(message: SystemMessage): void {
    if (message.status === "error") {
      this.#failed(message.message);
    } else if (message.extension === "postgres_changes" && message.message === SUBSCRIBED_TO_POSTGRESQL) {
      this.#cancelTimer();
      this.#failure = "";
      // Said again in mid-life, it means that the server made the subscription anew (another publication, another
      // database connection, another token), and nobody knows what was sent in between.
      const again = this.#flowingSince !== null;
      this.#flowingSince ??= this.#clock.now();
      this.#report(again ? "the server subscribed again" : undefined);
    }
  }

  #failed(reason: string): void {
    if (this.#flowingSince !== null && this.#clock.now() - this.#flowingSince >= STEADY_MS) this.#failures = 0;
    this.#abandon();
    this.#failure = reason;
    this.#waiting = true;
    this.#cancelTimer = this.#clock.after(this.#delay(), () => void this.#try());
    this.#failures += 1;
    this.#report();
  }

  /** Grows twofold; at random between half of it and all, lest all pages come at once to a server that is back. */
  #delay(): number {
    const longest = Math.min(LONGEST_DELAY_MS, 2 * FIRST_DELAY_MS * 2 ** this.#failures);
    return longest * (0.5 + 0.5 * this.#random());
  }

  #abandon(): void {
    this.#attempt += 1;
    this.#waiting = false;
    this.#flowingSince = null;
    this.#cancelTimer();
    this.#cancelTimer = () => undefined;
    const leave = this.#leave;
    this.#leave = () => undefined;
    leave();
  }

  #live(why: string): void {
    this.#readAt = this.#clock.now();
    this.#handlers.onLive(why);
  }

  /** Works out the state; says so if it is another one. `gap`: why rows may have been missed, although it is Live. */
  #report(gap?: string): void {
    const before = this.#status;
    this.#status = this.#now();
    if (before.state !== this.#status.state || before.reason !== this.#status.reason) {
      this.#handlers.onStatus(this.#status);
    }
    if (this.#status.state !== "live") return;
    if (before.state !== "live") {
      if (this.#everLive) this.#reconnects += 1;
      this.#live(this.#everLive ? "changes flow again" : "changes flow");
      this.#everLive = true;
    } else if (gap !== undefined) {
      this.#live(gap);
    }
  }

  #now(): Status {
    if (this.#held !== null) return { state: "offline", reason: this.#held };
    if (this.#flowingSince !== null) return { state: "live", reason: "" };
    if (this.#connection.isOpen) {
      return { state: "connecting", reason: this.#failure || "waiting for the server to send changes" };
    }
    return this.#failure
      ? { state: "offline", reason: this.#failure }
      : { state: "connecting", reason: "opening the connection" };
  }
}

/** Wakes a subscription when the browser is back from wherever it was. Returns what ends that. */
export function wakeWithPage(subscription: Pick<Subscription, "wake">, page: Window): () => void {
  const wake = (): void => {
    if (page.document.visibilityState === "visible") subscription.wake();
  };
  const away = new AbortController();
  const { signal } = away;
  page.addEventListener("online", wake, { signal });
  page.addEventListener("pageshow", wake, { signal });
  page.document.addEventListener("visibilitychange", wake, { signal });
  // Of a page that the browser had frozen; it need not have been hidden.
  page.document.addEventListener("resume", wake, { signal });
  return () => away.abort();
}
