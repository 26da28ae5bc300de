/**
 * The one supabase-js client of a page, as a Connection for subscriptions.
 *
 * Three things about supabase-js (2.109) decide what is written here:
 *
 * - It reconnects by itself, in steps of its own and not while the page is hidden. Two who reconnect get into each
 *   other's way, so it is told never to; Subscription does it, and opens the socket by `open`.
 * - It takes a token that was given once for one "set manually" and never asks for another. Asking is done here:
 *   before every join and in time before the token ends. A token that ends takes the channel with it.
 * - It turns values into JavaScript's by their column's type, which rounds a bigint beyond 2^53 (lib/transformers.ts).
 *   Realtime's JSON is that of Postgres's to_jsonb already, so the values are left as they came.
 *
 * With `accessToken` supabase-js makes no auth client: nothing is kept in localStorage, no session is refreshed.
 */

import { createClient, type SupabaseClient } from "@supabase/supabase-js";
import { type Json, parseJson } from "./json";
import type { Change, Row } from "./store";
import {
  type Clock,
  type Connection,
  type Listener,
  type SystemMessage,
  systemClock,
  type Table,
} from "./subscription";

export interface ConnectionOptions {
  /** Of the gateway, like http://127.0.0.1:8000. */
  readonly url: string;
  /** Opens the websocket; the anon key. */
  readonly apiKey: string;
  /** A JWT for the channels, valid for a while yet. Its role and claims decide which rows are seen. */
  readonly token: () => Promise<string>;
  readonly clock?: Clock;
}

/** A connection that is silent for twice as long is dead. */
const HEARTBEAT_MS = 5000;
const OPEN_WITHIN_MS = 10_000;
const JOIN_WITHIN_MS = 10_000;
const POLL_MS = 25;
/** setTimeout's longest, 24 days. */
const NEVER_MS = 2 ** 31 - 1;
/** A token is renewed when a quarter of its time is left, though not more often than this. */
const RENEW_AFTER_MS = 5000;

interface Token {
  readonly jwt: string;
  readonly renewAt: number;
  readonly expires: number;
}

export class RealtimeConnection implements Connection {
  readonly #client: SupabaseClient;
  readonly #url: string;
  readonly #clock: Clock;
  #source: () => Promise<string>;
  #token: Token | null = null;
  #fetching: Promise<Token> | null = null;
  #opening: Promise<void> | null = null;
  #cancelRenewal: () => void = () => undefined;
  #channels = 0;
  #closed = false;

  constructor(options: ConnectionOptions) {
    this.#url = options.url;
    this.#source = options.token;
    this.#clock = options.clock ?? systemClock;
    this.#client = createClient(options.url, options.apiKey, {
      // Asked with every heartbeat too, so it answers from memory.
      accessToken: async () => (await this.#validToken()).jwt,
      realtime: {
        heartbeatIntervalMs: HEARTBEAT_MS,
        timeout: JOIN_WITHIN_MS,
        reconnectAfterMs: () => NEVER_MS,
        decode: (data: ArrayBuffer | string, deliver: (message: never) => void) => {
          // Binary are only broadcasts.
          if (typeof data === "string") deliver(decoded(data) as never);
          else this.#client.realtime.serializer.decode(data, deliver);
        },
      },
    });
  }

  get isOpen(): boolean {
    return this.#client.realtime.isConnected();
  }

  open(): Promise<void> {
    this.#opening ??= this.#open().finally(() => {
      this.#opening = null;
    });
    return this.#opening;
  }

  join(table: Table, listener: Listener): () => void {
    this.#channels += 1;
    // A topic of its own: messages that are still under way for an earlier channel do not reach this one.
    const channel = this.#client.channel(`${table.schema}.${table.name}.${this.#channels}`);
    let left = false;
    const leave = (): void => {
      if (left) return;
      left = true;
      void this.#client.removeChannel(channel);
    };
    channel
      .on("postgres_changes", { event: "*", schema: table.schema, table: table.name }, (payload) => {
        if (!left) listener.change(change(payload));
      })
      .on("system", {}, (payload: SystemMessage) => {
        if (!left) listener.system(payload);
      })
      .subscribe((status, error) => {
        if (left || status === "SUBSCRIBED") return;
        leave();
        listener.ended(this.#why(status, error));
      }, JOIN_WITHIN_MS);
    return leave;
  }

  /** Another role from here on. Channels that are joined learn of it; stop their subscriptions before, or read anew. */
  async useToken(source: () => Promise<string>): Promise<void> {
    this.#source = source;
    this.#token = null;
    this.#fetching = null;
    this.#cancelRenewal();
    if (this.isOpen) await this.#client.realtime.setAuth();
  }

  /** For good: when the page goes. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#cancelRenewal();
    await this.#client.removeAllChannels();
  }

  async #open(): Promise<void> {
    const realtime = this.#client.realtime;
    await this.#validToken();
    if (this.#closed) throw new Error("the connection was closed");
    if (!realtime.isConnected()) {
      // Forgets what is left of a lost socket, without which connect() does nothing (phoenix, socket.js).
      await realtime.disconnect();
      const deadline = this.#clock.now() + OPEN_WITHIN_MS;
      while (realtime.isDisconnecting()) await this.#pause();
      realtime.connect();
      while (realtime.isConnecting()) {
        if (this.#clock.now() > deadline) {
          void realtime.disconnect();
          throw new Error(`${this.#url} does not answer`);
        }
        await this.#pause();
      }
      // A browser does not say why: refused connection, no Realtime behind the gateway, and a bad key look the same.
      if (!realtime.isConnected()) throw new Error(`${this.#url} does not open a websocket`);
    }
    await realtime.setAuth();
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => this.#clock.after(POLL_MS, resolve));
  }

  #why(status: string, error: Error | undefined): string {
    if (!this.isOpen) return `the connection to ${this.#url} was lost`;
    if (status === "TIMED_OUT") return `Realtime did not answer within ${JOIN_WITHIN_MS / 1000} s`;
    return error?.message ?? "Realtime closed the channel";
  }

  async #validToken(): Promise<Token> {
    for (;;) {
      const source = this.#source;
      if (this.#token && this.#clock.now() < this.#token.renewAt) return this.#token;
      try {
        this.#fetching ??= this.#fetchToken();
        const token = await this.#fetching;
        // Not if another role was asked for meanwhile.
        if (source === this.#source) return token;
      } catch (error) {
        if (source !== this.#source) continue;
        // Good for a while yet: the renewal tries again.
        if (this.#token && this.#clock.now() < this.#token.expires) return this.#token;
        throw error;
      }
    }
  }

  async #fetchToken(): Promise<Token> {
    const source = this.#source;
    try {
      const jwt = await source();
      const [now, expires] = [this.#clock.now(), expiry(jwt)];
      const token = { jwt, expires, renewAt: now + Math.max(RENEW_AFTER_MS, 0.75 * (expires - now)) };
      if (source !== this.#source) return token;
      this.#token = token;
      this.#renewIn(token.renewAt - now);
      return token;
    } finally {
      if (source === this.#source) this.#fetching = null;
    }
  }

  #renewIn(ms: number): void {
    this.#cancelRenewal();
    if (this.#closed) return;
    this.#cancelRenewal = this.#clock.after(Math.min(ms, NEVER_MS), () => {
      const before = this.#token;
      // setAuth asks for the token, and tells the channels of it if it is another one.
      void this.#client.realtime.setAuth().finally(() => {
        if (this.#token === before) this.#renewIn(RENEW_AFTER_MS);
      });
    });
  }
}

/** A message of protocol 2.0.0: [join_ref, ref, topic, event, payload]. */
function decoded(text: string): Record<string, unknown> {
  const [join_ref, ref, topic, event, payload] = parseJson(text) as readonly Json[];
  if (event === "postgres_changes" && isObject(payload) && isObject(payload["data"])) {
    // No columns, no conversion.
    return { join_ref, ref, topic, event, payload: { ...payload, data: { ...payload["data"], columns: [] } } };
  }
  return { join_ref, ref, topic, event, payload };
}

function isObject(value: Json | undefined): value is { readonly [name: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

interface Payload {
  readonly eventType: Change["type"];
  readonly commit_timestamp: string | null;
  readonly new: object;
  readonly old: object;
  readonly errors: readonly string[] | string | null;
}

function change(payload: Payload): Change {
  const errors = payload.errors ?? [];
  return {
    type: payload.eventType,
    // Realtime sends null with an event that the role may not read.
    at: Date.parse(payload.commit_timestamp ?? ""),
    new: payload.new as Row,
    old: payload.old as Row,
    errors: typeof errors === "string" ? [errors] : errors,
  };
}

/** The claim exp, in ms. A token that cannot be read is left for the server to refuse. */
function expiry(jwt: string): number {
  const claims = jwt.split(".")[1] ?? "";
  try {
    const decodedClaims = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/"))) as { exp?: unknown };
    return typeof decodedClaims.exp === "number" ? decodedClaims.exp * 1000 : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
