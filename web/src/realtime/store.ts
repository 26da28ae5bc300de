/**
 * The rows of one table, merged from two sources that overtake each other: events, as Realtime sends them, and
 * snapshots, read in pages. A refetch never loses an event, and a late event never overwrites what is newer.
 *
 * What is known of the order in time:
 *
 * - An event has the time C of its commit, cut to milliseconds.
 * - A page has a time H, `asOf`: every transaction that committed before H is in it. Later ones may be in it or not.
 * - Whoever asks for a page after an event has come, gets a page with that event in it: a transaction is visible
 *   before anybody hears of it. (It may become visible a moment late, with synchronous standbys for instance. What a
 *   refetch replaces on this ground alone is counted as `unsettled`; refetch once more.)
 *
 * So a page's row wins over an event that came before the refetch began, and over one with C < H; any other event
 * stays. An event is dropped as late if C is before that of the event which the row comes from, or before H of the
 * snapshot that it comes from. Equal C: the order of arrival, which is the order of the log.
 *
 * A row's absence is decided at the end of a refetch and not page by page: which key is between two others is known to
 * Postgres alone (collations), so that an absent key belongs to no page. The oldest H of the refetch stands for all.
 *
 * Not known is the order of a page's row and an event with C ≥ H that comes after: it is applied. If the page had an
 * even newer version, the row is that of the event until the newer version's own event comes, which is on its way.
 */

import { type Json, sameJson } from "./json";

export type Row = Readonly<Record<string, Json>>;

/** An event of Realtime's. `at` is the commit's time in ms, NaN when the event does not say. */
export interface Change {
  readonly type: "INSERT" | "UPDATE" | "DELETE";
  readonly at: number;
  readonly new: Row;
  readonly old: Row;
  /** Why Realtime left columns out, like "Error 401: Unauthorized". */
  readonly errors: readonly string[];
}

/** One key. `row` is null for a tombstone: what came before `at` is no news of a key that was deleted at `at`. */
export interface Entry {
  /** The values of the primary key, as JSON. */
  readonly key: string;
  readonly row: Row | null;
  /** Of the event's commit, or the snapshot's H; ms. */
  readonly at: number;
  readonly from: "event" | "snapshot";
  /** The store's clock when this was written: later is greater. */
  readonly written: number;
}

export interface Counts {
  readonly events: number;
  /** Dropped, because what the store held was newer. */
  readonly late: number;
  /** Differences that a refetch found and no event had told of. */
  readonly caughtUp: number;
  /** Events without a row to merge. */
  readonly unreadable: number;
}

export type Outcome = "applied" | "late" | "unreadable";

/** One reading of the whole table in pages. */
export interface Refetch {
  /** Takes a page. False: another refetch has begun meanwhile, stop reading. */
  page(rows: readonly Row[], asOf: number): boolean;
  /**
   * After the last page: forgets what no page had. Call it not at all if a page failed. With `whole` false there were
   * more pages than one wanted; what was beyond them is forgotten too, since nobody knows what became of it.
   */
  end(whole?: boolean): { readonly unsettled: number };
}

/** After so many new tombstones, those older than TOMBSTONE_MS are forgotten: no event is as late as that. */
const TOMBSTONES = 10_000;
const TOMBSTONE_MS = 10 * 60_000;

export class Store {
  /** In the order in which they were first read or last written by an event. */
  readonly #entries = new Map<string, Entry>();
  readonly #primaryKey: readonly string[];
  #size = 0;
  #written = 0;
  /** The oldest H of the last refetch that came to its end: an event from before is late, whatever its key. */
  #floor = Number.NEGATIVE_INFINITY;
  #refetches = 0;
  #tombstonesAllowed = TOMBSTONES;
  #counts = { events: 0, late: 0, caughtUp: 0, unreadable: 0 };

  constructor(primaryKey: readonly string[]) {
    if (primaryKey.length === 0) throw new Error("rows can be merged only by a primary key, and the table has none");
    this.#primaryKey = primaryKey;
  }

  /** How many rows there are. */
  get size(): number {
    return this.#size;
  }

  get counts(): Counts {
    return { ...this.#counts };
  }

  get(key: string): Row | undefined {
    return this.#entries.get(key)?.row ?? undefined;
  }

  keyOf(row: Row): string {
    return JSON.stringify(this.#primaryKey.map((column) => row[column] ?? null));
  }

  /** The rows, the one written last first. */
  recent(): Array<Entry & { readonly row: Row }> {
    return [...this.#entries.values()].filter(present).reverse();
  }

  /** The rows by primary key. The order is for the eye: that of Postgres depends on its collations. */
  byKey(): Array<Entry & { readonly row: Row }> {
    return [...this.#entries.values()].filter(present).sort((one, other) => {
      for (const column of this.#primaryKey) {
        const order = compare(one.row[column] ?? null, other.row[column] ?? null);
        if (order !== 0) return order;
      }
      return 0;
    });
  }

  /** Merges an event. */
  apply(change: Change): Outcome {
    const named = change.type === "DELETE" ? change.old : change.new;
    if (
      change.errors.length > 0 ||
      Number.isNaN(change.at) ||
      this.#primaryKey.some((column) => named[column] === undefined)
    ) {
      this.#counts.unreadable += 1;
      return "unreadable";
    }
    this.#counts.events += 1;
    const key = this.keyOf(named);
    if (change.type === "UPDATE" && this.#primaryKey.every((column) => change.old[column] !== undefined)) {
      const former = this.keyOf(change.old);
      // The row has another key now. Whether that is news of the one key has nothing to do with the other.
      if (former !== key && !this.#isLate(former, change.at)) this.#write(former, null, change.at, "event");
    }
    if (this.#isLate(key, change.at)) {
      this.#counts.late += 1;
      return "late";
    }
    if (change.type === "DELETE") {
      this.#write(key, null, change.at, "event");
      this.#forgetOldTombstones(change.at);
      return "applied";
    }
    // An UPDATE is without the columns that are stored out of line (TOAST) and did not change.
    const before = change.type === "UPDATE" ? this.#entries.get(key)?.row : null;
    this.#write(key, { ...before, ...change.new }, change.at, "event");
    return "applied";
  }

  /** Begins to read the table anew. Call it before the first page is asked for; a former refetch ends with it. */
  refetch(): Refetch {
    this.#refetches += 1;
    const refetch = this.#refetches;
    const begun = this.#written;
    const first = this.#floor === Number.NEGATIVE_INFINITY;
    const seen = new Set<string>();
    let oldest = Number.POSITIVE_INFINITY;
    let unsettled = 0;

    /** Whether what a snapshot says counts more than this entry. */
    const wins = (entry: Entry, asOf: number): boolean => entry.at < asOf || entry.written <= begun;
    const differs = (entry: Entry | undefined, asOf: number): void => {
      if (!first) this.#counts.caughtUp += 1;
      if (entry?.from === "event" && entry.at >= asOf) unsettled += 1;
    };

    return {
      page: (rows, asOf) => {
        if (refetch !== this.#refetches) return false;
        oldest = Math.min(oldest, asOf);
        for (const row of rows) {
          const key = this.keyOf(row);
          seen.add(key);
          const entry = this.#entries.get(key);
          if (entry && !wins(entry, asOf)) continue;
          if (!entry?.row || !sameJson(entry.row, row)) differs(entry, asOf);
          // What was dropped as late on account of the entry stays late.
          this.#write(key, row, Math.max(asOf, entry?.at ?? asOf), "snapshot");
        }
        return true;
      },
      end: (whole = true) => {
        if (refetch !== this.#refetches) return { unsettled: 0 };
        this.#refetches += 1;
        if (oldest === Number.POSITIVE_INFINITY) return { unsettled };
        for (const [key, entry] of this.#entries) {
          if (seen.has(key) || !wins(entry, oldest)) continue;
          if (entry.row && whole) differs(entry, oldest);
          if (entry.row) this.#size -= 1;
          if (entry.at < oldest) this.#entries.delete(key);
          else this.#entries.set(key, { ...entry, row: null });
        }
        this.#floor = Math.max(this.#floor, oldest);
        return { unsettled };
      },
    };
  }

  #isLate(key: string, at: number): boolean {
    return at < (this.#entries.get(key)?.at ?? this.#floor);
  }

  #write(key: string, row: Row | null, at: number, from: Entry["from"]): void {
    const before = this.#entries.get(key);
    this.#size += (row ? 1 : 0) - (before?.row ? 1 : 0);
    // Deleted first, so that it goes to the end. A snapshot leaves a row in its place.
    if (from === "event" || !before?.row) this.#entries.delete(key);
    this.#written += 1;
    this.#entries.set(key, { key, row, at, from, written: this.#written });
  }

  #forgetOldTombstones(now: number): void {
    if (this.#entries.size - this.#size <= this.#tombstonesAllowed) return;
    for (const [key, entry] of this.#entries) {
      if (!entry.row && entry.at < now - TOMBSTONE_MS) this.#entries.delete(key);
    }
    this.#tombstonesAllowed = this.#entries.size - this.#size + TOMBSTONES;
  }
}

function present(entry: Entry): entry is Entry & { readonly row: Row } {
  return entry.row !== null;
}

function compare(one: Json, other: Json): number {
  if (typeof one === "number" && typeof other === "number") return one - other;
  const [left, right] = [text(one), text(other)];
  // A bigint beyond 2^53 is a string of digits (json.ts).
  if (DIGITS.test(left) && DIGITS.test(right)) {
    const difference = BigInt(left) - BigInt(right);
    return difference < 0n ? -1 : difference > 0n ? 1 : 0;
  }
  return left < right ? -1 : left > right ? 1 : 0;
}

const DIGITS = /^-?\d+$/;

function text(value: Json): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
