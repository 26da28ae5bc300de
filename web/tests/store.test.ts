import { describe, expect, test } from "vitest";
import { type Change, type Row, Store } from "../src/realtime/store";

const insert = (at: number, row: Row): Change => ({ type: "INSERT", at, new: row, old: {}, errors: [] });
const update = (at: number, row: Row, old: Row = {}): Change => ({ type: "UPDATE", at, new: row, old, errors: [] });
const remove = (at: number, old: Row): Change => ({ type: "DELETE", at, new: {}, old, errors: [] });

function rows(store: Store): Row[] {
  return store.byKey().map((entry) => entry.row);
}

function loaded(asOf: number, ...page: Row[]): Store {
  const store = new Store(["id"]);
  const refetch = store.refetch();
  refetch.page(page, asOf);
  refetch.end();
  return store;
}

describe("events", () => {
  test("insert, update and delete by primary key", () => {
    const store = new Store(["id"]);
    store.apply(insert(1, { id: 1, name: "a" }));
    store.apply(insert(2, { id: 2, name: "b" }));
    store.apply(update(3, { id: 1, name: "c" }));
    store.apply(remove(4, { id: 2 }));
    expect(rows(store)).toEqual([{ id: 1, name: "c" }]);
    expect(store.size).toBe(1);
  });

  test("one that comes after a newer one changes nothing and is counted", () => {
    const store = new Store(["id"]);
    store.apply(update(5, { id: 1, name: "new" }));
    expect(store.apply(update(4, { id: 1, name: "old" }))).toBe("late");
    store.apply(remove(7, { id: 1 }));
    expect(store.apply(insert(6, { id: 1, name: "risen from the dead" }))).toBe("late");
    expect(rows(store)).toEqual([]);
    expect(store.counts).toEqual({ events: 4, late: 2, caughtUp: 0, unreadable: 0 });
  });

  test("two of the same millisecond count in the order in which they come", () => {
    const store = new Store(["id"]);
    store.apply(insert(5, { id: 1, name: "first" }));
    store.apply(update(5, { id: 1, name: "second" }));
    expect(rows(store)).toEqual([{ id: 1, name: "second" }]);
  });

  test("another value of the key moves the row", () => {
    const store = loaded(1, { id: 1, name: "a" });
    store.apply(update(2, { id: 9, name: "a" }, { id: 1 }));
    expect(rows(store)).toEqual([{ id: 9, name: "a" }]);
  });

  test("an update without the columns that did not change keeps them", () => {
    const store = loaded(1, { id: 1, name: "a", text: "stored out of line" });
    store.apply(update(2, { id: 1, name: "b" }));
    expect(rows(store)).toEqual([{ id: 1, name: "b", text: "stored out of line" }]);
  });

  test.each<[string, Change]>([
    ["Error 401", { ...insert(Number.NaN, {}), errors: ["Error 401: Unauthorized"] }],
    [
      "Error 413, with the columns that are short",
      { ...insert(3, { id: 1 }), errors: ["Error 413: Payload Too Large"] },
    ],
    ["no columns", insert(3, {})],
    ["no time", insert(Number.NaN, { id: 1 })],
  ])("one with %s is no row", (_, change) => {
    const store = new Store(["id"]);
    expect(store.apply(change)).toBe("unreadable");
    expect(store.counts).toEqual({ events: 0, late: 0, caughtUp: 0, unreadable: 1 });
    expect(rows(store)).toEqual([]);
  });

  test("keys of several columns, and beyond 2^53, stay apart", () => {
    const store = new Store(["a", "b"]);
    store.apply(insert(1, { a: "9007199254740993", b: "x" }));
    store.apply(insert(1, { a: "9007199254740992", b: "x" }));
    store.apply(insert(1, { a: "9007199254740992", b: "w" }));
    expect(store.byKey().map((entry) => entry.key)).toEqual([
      '["9007199254740992","w"]',
      '["9007199254740992","x"]',
      '["9007199254740993","x"]',
    ]);
  });

  test("a table without a primary key is refused", () => {
    expect(() => new Store([])).toThrow("primary key");
  });

  test("tombstones do not pile up", () => {
    const store = new Store(["id"]);
    const hour = 3_600_000;
    for (let id = 0; id < 30_000; id += 1) store.apply(remove((id * hour) / 1000, { id }));
    expect(store.size).toBe(0);
    expect(store.apply(insert(0, { id: 1 }))).toBe("applied");
  });
});

describe("a refetch", () => {
  test("finds what was missed, and counts it", () => {
    const store = loaded(10, { id: 1, name: "a" }, { id: 2, name: "b" }, { id: 3, name: "c" });
    expect(store.counts.caughtUp).toBe(0);
    const refetch = store.refetch();
    refetch.page(
      [
        { id: 1, name: "a" },
        { id: 2, name: "changed" },
      ],
      20,
    );
    refetch.page([{ id: 4, name: "new" }], 21);
    refetch.end();
    expect(rows(store)).toEqual([
      { id: 1, name: "a" },
      { id: 2, name: "changed" },
      { id: 4, name: "new" },
    ]);
    expect(store.counts.caughtUp).toBe(3);
  });

  test("does not lose an event that comes while it reads", () => {
    const store = loaded(10, { id: 1, name: "a" });
    const refetch = store.refetch();
    store.apply(update(25, { id: 1, name: "newer" }));
    store.apply(insert(25, { id: 2, name: "new" }));
    refetch.page([{ id: 1, name: "a" }], 20);
    refetch.end();
    expect(rows(store)).toEqual([
      { id: 1, name: "newer" },
      { id: 2, name: "new" },
    ]);
  });

  test("does not bring back what an event deleted meanwhile", () => {
    const store = loaded(10, { id: 1 });
    const refetch = store.refetch();
    store.apply(remove(25, { id: 1 }));
    refetch.page([{ id: 1 }], 20);
    refetch.end();
    expect(rows(store)).toEqual([]);
  });

  test("makes an event late that it contains", () => {
    const store = loaded(20, { id: 1, name: "newer" });
    expect(store.apply(update(19, { id: 1, name: "older" }))).toBe("late");
    expect(store.apply(insert(19, { id: 2, name: "deleted since" }))).toBe("late");
    expect(rows(store)).toEqual([{ id: 1, name: "newer" }]);
  });

  test("finds a change that was missed, though a long transaction holds the snapshot's time back", () => {
    const store = loaded(10, { id: 1, name: "a" });
    store.apply(update(30, { id: 1, name: "b" }));
    store.apply(insert(31, { id: 2 }));
    // Missed: c, and that 2 was deleted. A transaction that has been writing since 20 is still open.
    const refetch = store.refetch();
    refetch.page([{ id: 1, name: "c" }], 20);
    expect(refetch.end()).toEqual({ unsettled: 2 });
    expect(rows(store)).toEqual([{ id: 1, name: "c" }]);
    expect(store.apply(update(29, { id: 1, name: "before b" }))).toBe("late");
    expect(store.apply(insert(29, { id: 2 }))).toBe("late");
  });

  test("another one that begins takes its place", () => {
    const store = loaded(10, { id: 1, name: "a" });
    const former = store.refetch();
    const latter = store.refetch();
    expect(former.page([{ id: 1, name: "stale" }], 15)).toBe(false);
    former.end();
    latter.page([{ id: 1, name: "b" }], 20);
    latter.end();
    expect(rows(store)).toEqual([{ id: 1, name: "b" }]);
  });

  test("that stops before the end forgets what is beyond, which is no difference that was found", () => {
    const store = loaded(10, { id: 1 }, { id: 2 });
    store.apply(insert(15, { id: 99 }));
    const refetch = store.refetch();
    store.apply(insert(25, { id: 100 }));
    refetch.page([{ id: 1 }, { id: 2 }], 20);
    expect(refetch.end(false)).toEqual({ unsettled: 0 });
    expect(rows(store)).toEqual([{ id: 1 }, { id: 2 }, { id: 100 }]);
    expect(store.size).toBe(3);
    expect(store.counts.caughtUp).toBe(0);
  });

  test("of an empty table removes all", () => {
    const store = loaded(10, { id: 1 });
    const refetch = store.refetch();
    refetch.page([], 20);
    refetch.end();
    expect(rows(store)).toEqual([]);
    expect(store.counts.caughtUp).toBe(1);
  });

  test("shows the row that was written last first", () => {
    const store = loaded(10, { id: 1 }, { id: 2 }, { id: 3 });
    store.apply(update(20, { id: 2, name: "changed" }));
    expect(store.recent().map((entry) => entry.row["id"])).toEqual([2, 3, 1]);
  });
});

// A table, its log, and a page that hears of it late, loses connections and reads at any moment.

/** A generator of random numbers with a seed (mulberry32), so that a failure can be repeated. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

interface Writing {
  readonly begun: number;
  readonly changes: Array<readonly ["write" | "delete" | "move", number, number]>;
}

interface Schedule {
  /** Whether the events of a connection may overtake each other; those of one ms cannot be told apart then. */
  readonly overtaking: boolean;
  /** Whether transactions stay open for long and hold H back. */
  readonly long: boolean;
  /** How many transactions commit in one ms at most. */
  readonly perMs: number;
  /** Whether pages come with H; without, they come with 0. */
  readonly proof?: boolean;
}

const KEYS = 8;
const PAGE = 3;

/** Plays a random schedule; ends with everything delivered and read. Returns what was seen to go wrong on the way. */
function play(
  seed: number,
  { overtaking, long, perMs, proof = true }: Schedule,
): { store: Store; table: Map<number, Row>; back: string[] } {
  const random = randomOf(seed);
  const table = new Map<number, Row>();
  const store = new Store(["id"]);
  const back: string[] = [];
  let now = 1000;
  let version = 0;
  let connected = false;
  let toRead = true;
  const open: Writing[] = [];
  /** Committed and visible, not yet delivered. */
  let underWay: Change[] = [];
  let reading: {
    refetch: ReturnType<Store["refetch"]>;
    after: number;
    answer: { rows: Row[]; asOf: number } | null;
  } | null = null;

  /** The newest version of a key, a deletion being one too, that the store has been told of. */
  const known = new Map<number, number>();
  const versions = new Map<Change, number>();
  const learn = (id: number, told: number): void => void known.set(id, Math.max(known.get(id) ?? 0, told));
  const check = (what: string, ids: Iterable<number>, least: (id: number) => number): void => {
    for (const id of ids) {
      const held = store.get(`[${id}]`)?.["version"];
      if (typeof held === "number" && held < least(id)) back.push(`${what}: ${id} has ${held}, not ${least(id)}`);
    }
  };

  const send = (change: Change): void => {
    versions.set(change, version);
    underWay.push(change);
  };

  const commit = (writing: Writing): void => {
    for (const [what, id, other] of writing.changes) {
      version += 1;
      const before = table.get(id);
      if (what === "write") {
        table.set(id, { id, version });
        send(before ? update(now, { id, version }, { id }) : insert(now, { id, version }));
      } else if (before && what === "delete") {
        table.delete(id);
        send(remove(now, { id }));
      } else if (before && !table.has(other)) {
        table.delete(id);
        table.set(other, { id: other, version });
        send(update(now, { id: other, version }, { id }));
      }
    }
  };

  const deliver = (): void => {
    const change = underWay.splice(overtaking ? random(underWay.length) : 0, 1)[0];
    if (!change || !connected) return;
    const outcome = store.apply(change);
    const id = Number((change.type === "DELETE" ? change.old : change.new)["id"]);
    if (outcome !== "applied") return;
    // A snapshot may have had more than this event, unless it is proven to be older: it is where H is the present.
    check("event", [id], (one) => known.get(one) ?? 0);
    learn(id, versions.get(change) ?? 0);
  };

  const ask = (): void => {
    if (!reading) {
      if (!connected || !toRead) return;
      toRead = false;
      reading = { refetch: store.refetch(), after: -1, answer: null };
    }
    if (reading.answer) return;
    const { after } = reading;
    const ids = [...table.keys()].filter((id) => id > after).sort((one, other) => one - other);
    const asOf = proof ? Math.min(now, ...open.map((writing) => writing.begun)) : 0;
    // Of this ms more may commit yet; and the page may have what committed after H.
    reading.answer = { rows: ids.slice(0, PAGE).map((id) => table.get(id) ?? {}), asOf };
    reading.after = ids.length > PAGE ? (ids[PAGE - 1] ?? -1) : Number.POSITIVE_INFINITY;
  };

  const answer = (): void => {
    if (!reading?.answer) return;
    const { refetch, answer: page, after } = reading;
    reading.answer = null;
    const ids = page.rows.map((row) => Number(row["id"]));
    if (refetch.page(page.rows, page.asOf)) check("page", ids, (id) => known.get(id) ?? 0);
    if (perMs === 1) for (const row of page.rows) learn(Number(row["id"]), Number(row["version"]));
    if (after !== Number.POSITIVE_INFINITY) return;
    refetch.end();
    reading = null;
  };

  const disconnect = (): void => {
    connected = false;
    underWay = [];
    reading = null;
  };

  for (let step = 0; step < 300; step += 1) {
    const what = random(100);
    if (what < 25) now += random(3);
    else if (what < 45) {
      const changes: Writing["changes"] = [];
      for (let count = perMs === 1 ? 1 : 1 + random(2); count > 0; count -= 1) {
        const kind = (["write", "write", "delete", "move"] as const)[random(4)] ?? "write";
        changes.push([kind, random(KEYS), random(KEYS)]);
      }
      open.push({ begun: now, changes });
      if (perMs === 1) now += 1;
    }
    const ready = long ? open.filter(() => random(100) < 15) : open;
    for (const writing of [...ready]) {
      open.splice(open.indexOf(writing), 1);
      commit(writing);
      if (perMs === 1) now += 1;
    }
    if (what >= 45 && what < 75) deliver();
    else if (what >= 75 && what < 85) ask();
    else if (what >= 85 && what < 95) answer();
    else if (what === 95) disconnect();
    else if (what > 95 && !connected) {
      connected = true;
      underWay = [];
      toRead = true;
    }
  }

  for (const writing of open.splice(0)) {
    now += 1;
    commit(writing);
  }
  if (!connected) {
    connected = true;
    underWay = [];
    toRead = true;
  }
  while (toRead || reading) {
    ask();
    if (random(2) === 0) deliver();
    answer();
  }
  while (underWay.length > 0) deliver();
  return { store, table, back };
}

const SCHEDULES = 3000;

describe("whatever the schedule", () => {
  test.each<[string, Schedule]>([
    ["in order, one commit per ms", { overtaking: false, long: false, perMs: 1 }],
    ["overtaking each other, one commit per ms", { overtaking: true, long: false, perMs: 1 }],
    ["in order, many commits per ms", { overtaking: false, long: false, perMs: 9 }],
    ["in order, with transactions that stay open for long", { overtaking: false, long: true, perMs: 9 }],
    ["in order, with pages that prove nothing", { overtaking: false, long: true, perMs: 9, proof: false }],
  ])("the store becomes the table and no row goes back: events %s", (_, schedule) => {
    for (let seed = 1; seed <= SCHEDULES; seed += 1) {
      const { store, table, back } = play(seed, schedule);
      const wanted = [...table.values()].sort((one, other) => Number(one["id"]) - Number(other["id"]));
      expect(rows(store), `seed ${seed}`).toEqual(wanted);
      expect(store.size, `seed ${seed}`).toBe(table.size);
      expect(back, `seed ${seed}`).toEqual([]);
    }
  });
});
