// supabase-js itself, against a server that speaks protocol 2.0.0 as Realtime does: [join_ref, ref, topic, event, payload].

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { RealtimeConnection } from "../src/realtime/client";
import type { Change } from "../src/realtime/store";
import { Subscription } from "../src/realtime/subscription";

type Message = [string | null, string | null, string, string, Record<string, unknown>];

/** A browser's WebSocket, and the server at its other end. */
class FakeSocket extends EventTarget {
  static all: FakeSocket[] = [];
  /** What becomes of a new connection: a gateway that stands, one that is stopped, one that hangs. */
  static gateway: "open" | "refuse" | "hang" = "open";
  static silent = false;
  /** Says nothing more, not even that it is gone: a cable was pulled. */
  readyState = 0;
  bufferedAmount = 0;
  binaryType = "blob";
  onopen: (() => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: ((event: Event) => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  readonly received: Message[] = [];

  constructor(readonly url: string) {
    super();
    FakeSocket.all.push(this);
    setTimeout(() => {
      if (FakeSocket.gateway === "open") {
        this.readyState = 1;
        this.onopen?.();
      } else if (FakeSocket.gateway === "refuse") {
        this.onerror?.(new Event("error"));
        this.drop();
      }
    }, 1);
  }

  static get last(): FakeSocket {
    const socket = FakeSocket.all.at(-1);
    if (!socket) throw new Error("no socket was opened");
    return socket;
  }

  close(): void {
    if (FakeSocket.silent) this.readyState = 2;
    else this.drop(1000);
  }

  drop(code = 1006): void {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.onclose?.({ code, reason: "" });
  }

  send(text: string): void {
    const message = JSON.parse(text) as Message;
    this.received.push(message);
    if (FakeSocket.silent) return;
    const [joinRef, ref, topic, event, payload] = message;
    if (event === "phx_join") {
      const config = payload["config"] as { postgres_changes: Array<Record<string, unknown>> };
      const response = { postgres_changes: config.postgres_changes.map((filter) => ({ ...filter, id: 77 })) };
      setTimeout(() => this.say([joinRef, ref, topic, "phx_reply", { status: "ok", response }]), 1);
    } else if (event !== "access_token") {
      setTimeout(() => this.say([joinRef, ref, topic, "phx_reply", { status: "ok", response: {} }]), 1);
    }
  }

  say(message: Message | string): void {
    if (this.readyState === 1)
      this.onmessage?.({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  of(event: string): Message[] {
    return this.received.filter((message) => message[3] === event);
  }

  get topic(): string {
    return this.of("phx_join").at(-1)?.[2] ?? "";
  }

  system(status: string, message: string, extension = "postgres_changes"): void {
    this.say([null, null, this.topic, "system", { extension, status, message, channel: "x" }]);
  }
}

function jwt(seconds: number, role = "authenticated"): string {
  const part = (value: object): string => btoa(JSON.stringify(value)).replaceAll("=", "");
  return `${part({ alg: "HS256" })}.${part({ role, exp: Math.floor(Date.now() / 1000) + seconds, n: tokens })}.signature`;
}

let tokens = 0;
let lifetime = 3600;
let refuseToken = false;
let connection: RealtimeConnection;
let subscription: Subscription;
let changes: Change[];
let live: number;

function token(): Promise<string> {
  if (refuseToken) return Promise.reject(new Error("the console does not answer"));
  tokens += 1;
  return Promise.resolve(jwt(lifetime));
}

function pass(ms: number): Promise<unknown> {
  return vi.advanceTimersByTimeAsync(ms);
}

/** supabase-js asks for the token as soon as it is made. */
function make(source: () => Promise<string> = token): void {
  connection = new RealtimeConnection({ url: "http://127.0.0.1:8000", apiKey: "the-anon-key", token: source });
  subscription = new Subscription(
    connection,
    { schema: "public", name: "wells" },
    { onStatus: () => undefined, onLive: () => (live += 1), onChange: (change) => changes.push(change) },
  );
}

async function becomeLive(): Promise<void> {
  subscription.start();
  await pass(200);
  FakeSocket.last.system("ok", "Subscribed to PostgreSQL");
  expect(subscription.status.state).toBe("live");
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("WebSocket", FakeSocket);
  Object.assign(FakeSocket, { all: [], gateway: "open", silent: false });
  [tokens, lifetime, refuseToken, changes, live] = [0, 3600, false, [], 0];
});

afterEach(async () => {
  subscription.stop();
  await Promise.all([connection.close(), pass(20_000)]);
  vi.useRealTimers();
});

describe("joining", () => {
  test("one socket with the key, a channel with the token and all changes of the table", async () => {
    make();
    expect(FakeSocket.all).toHaveLength(0);
    await becomeLive();
    expect(FakeSocket.all).toHaveLength(1);
    const url = new URL(FakeSocket.last.url);
    expect(url.origin + url.pathname).toBe("ws://127.0.0.1:8000/realtime/v1/websocket");
    expect(url.searchParams.get("apikey")).toBe("the-anon-key");
    const join = FakeSocket.last.of("phx_join")[0]?.[4];
    expect(join?.["config"]).toMatchObject({ postgres_changes: [{ event: "*", schema: "public", table: "wells" }] });
    expect(join?.["access_token"]).toMatch(/^ey/);
  });

  test("asks nothing but the token, and keeps nothing", async () => {
    const fetched = vi.fn();
    const storage = new Proxy({}, { get: () => fetched });
    vi.stubGlobal("fetch", fetched);
    vi.stubGlobal("localStorage", storage);
    make();
    await becomeLive();
    await pass(60_000);
    expect(fetched).not.toHaveBeenCalled();
    expect(tokens).toBe(1);
  });

  test("two subscriptions share the socket", async () => {
    make();
    await becomeLive();
    const handlers = { onStatus: () => undefined, onLive: () => undefined, onChange: () => undefined };
    const other = new Subscription(connection, { schema: "public", name: "visits" }, handlers);
    other.start();
    await pass(200);
    expect(FakeSocket.all).toHaveLength(1);
    expect(FakeSocket.last.of("phx_join")).toHaveLength(2);
    other.stop();
  });
});

describe("changes", () => {
  const event = (record: string, rest = ""): string =>
    `[null,null,"${FakeSocket.last.topic}","postgres_changes",{"ids":[77],"data":{"schema":"public","table":"wells",` +
    `"type":"UPDATE","commit_timestamp":"2026-11-24T02:17:06.123Z","errors":null,` +
    `"columns":[{"name":"id","type":"int8"},{"name":"depth","type":"numeric"},{"name":"at","type":"timestamp"}],` +
    `"record":${record},"old_record":{"id":1}${rest}}}]`;

  test("arrive as Postgres wrote them, with every digit of a bigint", async () => {
    make();
    await becomeLive();
    FakeSocket.last.say(
      event('{"id":9007199254740993,"depth":1.5,"at":"2026-11-24T02:17:06","note":"12345678901234567890"}'),
    );
    expect(changes).toEqual([
      {
        type: "UPDATE",
        at: Date.UTC(2026, 10, 24, 2, 17, 6, 123),
        new: { id: "9007199254740993", depth: 1.5, at: "2026-11-24T02:17:06", note: "12345678901234567890" },
        old: { id: 1 },
        errors: [],
      },
    ]);
  });

  test("without a row say why", async () => {
    make();
    await becomeLive();
    FakeSocket.last.say([
      null,
      null,
      FakeSocket.last.topic,
      "postgres_changes",
      {
        ids: [77],
        data: {
          schema: "public",
          table: "wells",
          type: "INSERT",
          commit_timestamp: null,
          columns: [],
          record: {},
          errors: ["Error 401: Unauthorized"],
        },
      },
    ]);
    expect(changes).toEqual([
      { type: "INSERT", at: Number.NaN, new: {}, old: {}, errors: ["Error 401: Unauthorized"] },
    ]);
  });
});

describe("coming back", () => {
  test("after a gateway that was stopped and started: one who reconnects, and no more", async () => {
    make();
    await becomeLive();
    FakeSocket.gateway = "refuse";
    FakeSocket.last.drop();
    expect(subscription.status.state).toBe("offline");
    await pass(60_000);
    const tried = FakeSocket.all.length;
    expect(tried).toBeGreaterThan(4);
    expect(tried).toBeLessThan(12);
    expect(subscription.status.reason).toBe("http://127.0.0.1:8000 does not open a websocket");
    FakeSocket.gateway = "open";
    await pass(16_000);
    expect(FakeSocket.all.filter((socket) => socket.readyState === 1)).toHaveLength(1);
    FakeSocket.last.system("ok", "Subscribed to PostgreSQL");
    expect(subscription.status.state).toBe("live");
    expect(live).toBe(2);
  });

  test("from a connection that died without a word, within two heartbeats", async () => {
    make();
    await becomeLive();
    FakeSocket.silent = true;
    await pass(10_000);
    expect(subscription.status.state).not.toBe("live");
    FakeSocket.silent = false;
    await pass(10_000);
    FakeSocket.last.system("ok", "Subscribed to PostgreSQL");
    expect(subscription.status.state).toBe("live");
    expect(FakeSocket.all).toHaveLength(2);
  });

  test("from a gateway that takes the connection and never answers", async () => {
    FakeSocket.gateway = "hang";
    make();
    subscription.start();
    await pass(10_100);
    expect(subscription.status).toEqual({ state: "offline", reason: "http://127.0.0.1:8000 does not answer" });
    FakeSocket.gateway = "open";
    await pass(3000);
    FakeSocket.last.system("ok", "Subscribed to PostgreSQL");
    expect(subscription.status.state).toBe("live");
  });

  test("from a channel that the server closed, on the same socket", async () => {
    make();
    await becomeLive();
    const former = FakeSocket.last.topic;
    FakeSocket.last.system("error", "Access token has expired", "system");
    FakeSocket.last.say([null, null, former, "phx_close", {}]);
    expect(subscription.status).toEqual({ state: "connecting", reason: "Access token has expired" });
    await pass(1100);
    expect(FakeSocket.all).toHaveLength(1);
    expect(FakeSocket.last.topic).not.toBe(former);
    FakeSocket.last.system("ok", "Subscribed to PostgreSQL");
    expect(subscription.status.state).toBe("live");
  });
});

describe("the token", () => {
  test("is renewed before it ends, and the channel learns of it", async () => {
    lifetime = 60;
    make();
    await becomeLive();
    await pass(44_000);
    expect(FakeSocket.last.of("access_token")).toHaveLength(0);
    await pass(2000);
    expect(tokens).toBe(2);
    const sent = FakeSocket.last.of("access_token").map((message) => message[4]["access_token"]);
    expect(sent).toHaveLength(1);
    expect(sent[0]).not.toBe(FakeSocket.last.of("phx_join")[0]?.[4]["access_token"]);
    await pass(45_000);
    expect(FakeSocket.last.of("access_token")).toHaveLength(2);
    expect(subscription.status.state).toBe("live");
  });

  test("is asked for again while whoever gives it is away", async () => {
    lifetime = 60;
    make();
    await becomeLive();
    refuseToken = true;
    await pass(50_000);
    expect(FakeSocket.last.of("access_token")).toHaveLength(0);
    refuseToken = false;
    await pass(6000);
    expect(FakeSocket.last.of("access_token")).toHaveLength(1);
  });

  test("that cannot be had is the reason why it does not connect", async () => {
    refuseToken = true;
    const warned = vi.spyOn(console, "warn").mockReturnValue(undefined);
    make();
    subscription.start();
    await pass(100);
    expect(subscription.status).toEqual({ state: "offline", reason: "the console does not answer" });
    expect(FakeSocket.all).toHaveLength(0);
    warned.mockRestore();
  });

  test("of another role takes the place of the first, also of one that is still being fetched", async () => {
    make(async () => {
      await new Promise((resolve) => setTimeout(resolve, 5000));
      return jwt(3600, "authenticated");
    });
    await connection.useToken(() => Promise.resolve(jwt(3600, "anon")));
    await becomeLive();
    await pass(10_000);
    const sent = String(FakeSocket.last.of("phx_join")[0]?.[4]["access_token"]);
    expect(atob(sent.split(".")[1] ?? "")).toContain('"anon"');
    expect(FakeSocket.last.of("access_token")).toHaveLength(0);
  });
});
