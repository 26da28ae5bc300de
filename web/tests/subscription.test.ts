import { beforeEach, describe, expect, test } from "vitest";
import type { Change } from "../src/realtime/store";
import { type Connection, type Listener, Subscription, type Table, wakeWithPage } from "../src/realtime/subscription";
import { FakeClock, settled } from "./clock";

// What Realtime says (lib/realtime_web/channels/realtime_channel.ex of v2.32.12 and v2.129.8).
const SUBSCRIBED = { extension: "postgres_changes", status: "ok", message: "Subscribed to PostgreSQL" };
const REPLICATION = { extension: "system", status: "ok", message: "Replication connection established" };
const NOT_PUBLISHED = {
  extension: "postgres_changes",
  status: "error",
  message:
    "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [event: *, schema: public, table: wells]",
};
const EXPIRED = { extension: "system", status: "error", message: "Access token has expired: [message: Invalid token]" };
const CHANGE: Change = { type: "INSERT", at: 1, new: { id: 1 }, old: {}, errors: [] };

/** A gateway with a Realtime behind it. */
class FakeConnection implements Connection {
  isOpen = false;
  /** Why it cannot be reached; null when it can. */
  refusal: string | null = null;
  /** Whether it answers at all. */
  hanging = false;
  opened = 0;
  readonly channels: Array<{ readonly table: Table; readonly listener: Listener; left: boolean }> = [];

  open(): Promise<void> {
    this.opened += 1;
    if (this.hanging) return new Promise(() => undefined);
    if (this.refusal !== null) return Promise.reject(new Error(this.refusal));
    this.isOpen = true;
    return Promise.resolve();
  }

  join(table: Table, listener: Listener): () => void {
    const channel = { table, listener, left: false };
    this.channels.push(channel);
    return () => {
      channel.left = true;
    };
  }

  get server(): Listener {
    const channel = this.channels.at(-1);
    if (!channel) throw new Error("nobody has joined");
    return channel.listener;
  }

  /** The gateway stops. */
  lose(): void {
    this.isOpen = false;
    this.refusal = "does not open a websocket";
    this.server.ended("the connection was lost");
  }
}

let clock: FakeClock;
let connection: FakeConnection;
let subscription: Subscription;
let states: string[];
let live: string[];
let changes: Change[];

function make(random: () => number = () => 1): Subscription {
  return new Subscription(
    connection,
    { schema: "public", name: "wells" },
    {
      onStatus: (status) => states.push(status.state),
      onLive: (why) => live.push(why),
      onChange: (change) => changes.push(change),
    },
    clock,
    random,
  );
}

async function becomeLive(): Promise<void> {
  subscription.start();
  await settled();
  connection.server.system(SUBSCRIBED);
}

beforeEach(() => {
  clock = new FakeClock();
  connection = new FakeConnection();
  [states, live, changes] = [[], [], []];
  subscription = make();
});

describe("Live", () => {
  test("only when the server says that changes flow: not when the socket opens, not when the channel is joined", async () => {
    subscription.start();
    await settled();
    expect(subscription.status.state).toBe("connecting");
    connection.server.system(REPLICATION);
    expect(subscription.status.state).toBe("connecting");
    expect(live).toEqual([]);
    connection.server.system(SUBSCRIBED);
    expect(subscription.status).toEqual({ state: "live", reason: "" });
    expect(live).toEqual(["changes flow"]);
  });

  test("asks for the table that it was made for, and hands on its changes", async () => {
    await becomeLive();
    connection.server.change(CHANGE);
    expect(connection.channels[0]?.table).toEqual({ schema: "public", name: "wells" });
    expect(changes).toEqual([CHANGE]);
  });

  test.each([
    ["a table that is not published", NOT_PUBLISHED],
    ["a token that ended", EXPIRED],
  ])("ends with a system error: %s", async (_, message) => {
    await becomeLive();
    connection.server.system(message);
    expect(subscription.status).toEqual({ state: "connecting", reason: message.message });
    expect(connection.channels[0]?.left).toBe(true);
  });

  test("ends when the channel does, though the socket lives", async () => {
    await becomeLive();
    connection.server.ended("Realtime closed the channel");
    expect(subscription.status).toEqual({ state: "connecting", reason: "Realtime closed the channel" });
  });

  test("ends with the connection, which is Offline until there is one again", async () => {
    await becomeLive();
    connection.lose();
    expect(subscription.status.state).toBe("offline");
    await clock.pass(60_000);
    expect(subscription.status).toEqual({ state: "offline", reason: "does not open a websocket" });
    connection.refusal = null;
    await clock.pass(15_000);
    expect(subscription.status.state).toBe("connecting");
    connection.server.system(SUBSCRIBED);
    expect(subscription.status.state).toBe("live");
    expect(live).toEqual(["changes flow", "changes flow again"]);
    expect(subscription.reconnects).toBe(1);
  });

  test("said again in mid-life, the server may have missed changes", async () => {
    await becomeLive();
    connection.server.system(SUBSCRIBED);
    expect(live).toEqual(["changes flow", "the server subscribed again"]);
    expect(subscription.reconnects).toBe(0);
  });
});

describe("coming back", () => {
  test("waits twice as long each time, up to 15 s, and at random half of it", async () => {
    connection.refusal = "down";
    for (const [random, longest] of [
      [() => 1, [1000, 2000, 4000, 8000, 15_000, 15_000]],
      [() => 0, [500, 1000, 2000, 4000, 7500, 7500]],
    ] as const) {
      connection.opened = 0;
      const one = make(random);
      one.start();
      await settled();
      for (const [index, delay] of longest.entries()) {
        expect(connection.opened).toBe(index + 1);
        await clock.pass(delay - 1);
        expect(connection.opened).toBe(index + 1);
        await clock.pass(1);
      }
      one.stop();
    }
  });

  test("begins with the shortest delay after it was steady, and not when it flaps", async () => {
    await becomeLive();
    for (const delay of [1000, 2000, 4000]) {
      connection.server.system(EXPIRED);
      await clock.pass(delay - 1);
      const before = connection.channels.length;
      await clock.pass(1);
      expect(connection.channels.length).toBe(before + 1);
      connection.server.system(SUBSCRIBED);
    }
    await clock.pass(10_000);
    connection.server.system(EXPIRED);
    const before = connection.channels.length;
    await clock.pass(1000);
    expect(connection.channels.length).toBe(before + 1);
  });

  test("each attempt is a new channel, and what the former one still says counts for nothing", async () => {
    await becomeLive();
    const former = connection.server;
    former.ended("Realtime closed the channel");
    former.system(SUBSCRIBED);
    former.change(CHANGE);
    expect(subscription.status.state).toBe("connecting");
    await clock.pass(1000);
    former.ended("once more");
    former.system(NOT_PUBLISHED);
    expect(connection.channels).toHaveLength(2);
    expect(connection.channels[1]?.left).toBe(false);
    expect(changes).toEqual([]);
  });

  test("a server that never says that changes flow is asked anew after 20 s", async () => {
    subscription.start();
    await clock.pass(19_999);
    expect(connection.channels).toHaveLength(1);
    await clock.pass(1);
    expect(subscription.status.reason).toContain("within 20 s");
    await clock.pass(1000);
    expect(connection.channels).toHaveLength(2);
  });

  test("at once when the page or the network is back", async () => {
    connection.refusal = "down";
    subscription.start();
    await clock.pass(8000);
    connection.refusal = null;
    const before = connection.opened;
    subscription.wake();
    await settled();
    expect(connection.opened).toBe(before + 1);
    connection.server.system(SUBSCRIBED);
    expect(subscription.status.state).toBe("live");
  });

  test("does not disturb an attempt that is under way", async () => {
    connection.hanging = true;
    subscription.start();
    await settled();
    subscription.wake();
    await settled();
    expect(connection.opened).toBe(1);
  });

  test("a page that slept reads the rows anew, though the connection seems to have lived", async () => {
    await becomeLive();
    subscription.wake();
    expect(live).toHaveLength(1);
    await clock.pass(60_000);
    subscription.wake();
    subscription.wake();
    expect(live).toEqual(["changes flow", "the page has slept"]);
  });
});

describe("held by somebody who sees the server's side", () => {
  test("is Offline although the socket is open, and Live again with the rows read anew", async () => {
    await becomeLive();
    subscription.release("slot 1");
    expect(live).toHaveLength(1);
    subscription.hold("no replication slot is active");
    expect(subscription.status).toEqual({ state: "offline", reason: "no replication slot is active" });
    expect(connection.channels[0]?.left).toBe(false);
    subscription.release("slot 2");
    expect(subscription.status.state).toBe("live");
    expect(live).toEqual(["changes flow", "changes flow again"]);
    expect(subscription.reconnects).toBe(1);
  });

  test("another slot than before, unnoticed: the rows are read anew", async () => {
    await becomeLive();
    subscription.release("slot 1");
    subscription.release("slot 1");
    subscription.release("slot 2");
    expect(live).toEqual(["changes flow", "changes may have been missed"]);
    expect(subscription.reconnects).toBe(0);
  });

  test("released without a server that sends, it is not Live", async () => {
    subscription.hold("stopped");
    subscription.start();
    await settled();
    subscription.release("slot 1");
    expect(subscription.status.state).toBe("connecting");
    expect(live).toEqual([]);
  });

  test("goes on trying meanwhile", async () => {
    await becomeLive();
    subscription.hold("stopped");
    connection.lose();
    connection.refusal = null;
    await clock.pass(1000);
    connection.server.system(SUBSCRIBED);
    expect(subscription.status.state).toBe("offline");
    subscription.release("slot 1");
    expect(subscription.status.state).toBe("live");
  });
});

describe("the end", () => {
  test("leaves the channel, tries nothing more and leaves no timer behind", async () => {
    await becomeLive();
    subscription.stop();
    expect(connection.channels[0]?.left).toBe(true);
    expect(clock.timers).toBe(0);
    connection.server.ended("closed");
    subscription.wake();
    await clock.pass(60_000);
    expect(connection.opened).toBe(1);
  });

  test("also while the connection is being opened", async () => {
    subscription.start();
    subscription.stop();
    await settled();
    expect(connection.channels).toHaveLength(0);
  });
});

describe("the page", () => {
  test("wakes it when it is online, shown or thawed, until told otherwise", () => {
    const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
    const page = Object.assign(new EventTarget(), { document });
    let woken = 0;
    const end = wakeWithPage({ wake: () => (woken += 1) }, page as unknown as Window);
    page.dispatchEvent(new Event("online"));
    page.dispatchEvent(new Event("pageshow"));
    document.dispatchEvent(new Event("visibilitychange"));
    document.dispatchEvent(new Event("resume"));
    expect(woken).toBe(4);
    document.visibilityState = "hidden";
    document.dispatchEvent(new Event("visibilitychange"));
    end();
    document.visibilityState = "visible";
    document.dispatchEvent(new Event("visibilitychange"));
    expect(woken).toBe(4);
  });
});
