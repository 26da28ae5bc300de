/** The console's page: what flows, what does not, and a table that changes before one's eyes. */

import * as api from "./api";
import { Checks } from "./checks";
import { LatencyPlot } from "./latency";
import { PathView } from "./path";
import { RealtimeConnection } from "./realtime/client";
import { type Change, type Row, Store } from "./realtime/store";
import { type Status, Subscription, wakeWithPage } from "./realtime/subscription";
import { shown, TableView } from "./realtime/view";

const PAGE_ROWS = 500;
const MOST_ROWS = 10_000;
/** The console says every 2 s whether changes flow; after so long without a word it is not there. */
const FLOW_SILENCE_MS = 6000;
const FLOW_RETRY_MS = 1000;
const REFETCH_RETRY_MS = 3000;
const CHECK_AFTER_MS = 3000;
const DRAW_EVERY_MS = 50;
const WORDS = { live: "Live", connecting: "Connecting", offline: "Offline" } as const;

function part<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no element with the id ${id}`);
  return found as T;
}

/** What is shown: a table as a role sees it. */
class Showing {
  readonly store: Store;
  readonly view: TableView;
  readonly subscription: Subscription;
  readonly #console: Console;
  readonly #table: api.DeclaredTable;
  readonly #role: string;
  readonly #ended = new AbortController();
  readonly #sleepless: () => void;
  #reading: AbortController | null = null;
  /** Whether the notice that is shown is of a reading. */
  #failing = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** As the server estimates it, when it did not send all. */
  total: number | null = null;
  cut = false;

  constructor(page: Console, connection: RealtimeConnection, table: api.DeclaredTable, role: string) {
    this.#console = page;
    this.#table = table;
    this.#role = role;
    this.store = new Store(table.primary_key);
    const body = part("rows-body");
    body.replaceChildren();
    this.view = new TableView(body, {
      columns: table.columns.map((column) => column.name),
      label: `Rows of ${api.nameOf(table)} as ${role} sees them`,
      isMarked: (key) => page.isTestRow(key),
      onOpen: ({ key, row }) => page.openRow(key, row),
    });
    this.subscription = new Subscription(
      connection,
      { schema: table.schema, name: table.name },
      {
        onStatus: (status) => page.onStatus(status),
        onLive: () => void this.read(),
        onChange: (change) => this.#changed(change),
      },
    );
    this.#sleepless = wakeWithPage(this.subscription, window);
  }

  end(): void {
    this.#ended.abort();
    this.#reading?.abort();
    clearTimeout(this.#timer);
    this.#sleepless();
    this.subscription.stop();
    this.view.destroy();
  }

  /** Reads all rows anew. A reading that is under way ends: it may have begun before what is to be caught up. */
  async read(): Promise<void> {
    this.#reading?.abort();
    clearTimeout(this.#timer);
    const reading = new AbortController();
    this.#reading = reading;
    const refetch = this.store.refetch();
    try {
      let after: string | null = null;
      let count = 0;
      do {
        const page = await api.readRows(api.nameOf(this.#table), this.#role, after, PAGE_ROWS, reading.signal);
        if (!refetch.page(page.rows, Date.parse(page.as_of))) return;
        after = page.next;
        count += page.rows.length;
        this.total = page.total ?? (count === page.rows.length ? null : this.total);
        this.#console.refresh();
      } while (after !== null && count < MOST_ROWS);
      this.cut = after !== null;
      const { unsettled } = refetch.end(!this.cut);
      this.#console.refresh();
      if (this.#failing) this.#console.notice(null);
      this.#failing = false;
      if (unsettled > 0) this.#readLater();
    } catch (error) {
      if (reading.signal.aborted) return;
      this.#failing = true;
      this.#console.notice(error);
      this.#readLater();
    }
  }

  #readLater(): void {
    if (!this.#ended.signal.aborted) this.#timer = setTimeout(() => void this.read(), REFETCH_RETRY_MS);
  }

  #changed(change: Change): void {
    const outcome = this.store.apply(change);
    if (outcome === "unreadable") {
      // Too large for Realtime, for one: that something changed is known, and so is where to look.
      if (!change.errors.some((error) => error.includes("401"))) this.#readLater();
      if (change.errors.length > 0)
        this.#console.notice(new Error(`Realtime left out a row: ${change.errors.join(", ")}`));
    } else {
      this.#console.latency.add(Date.now() - change.at);
    }
    this.#console.refresh();
  }
}

class Console {
  readonly latency = new LatencyPlot(part("latency"));
  readonly #stack: api.Stack;
  readonly #path = new PathView(part("path"), part<HTMLDialogElement>("dialog"));
  readonly #connection: RealtimeConnection;
  readonly #checks: Checks;
  readonly #tables = part<HTMLSelectElement>("table");
  readonly #roles = part<HTMLSelectElement>("role");
  readonly #order = part<HTMLSelectElement>("order");
  readonly #pause = part<HTMLButtonElement>("pause");
  readonly #closed = new AbortController();
  /** Keys of the rows that were inserted here, by table. */
  readonly #testRows = new Map<string, Map<string, Row>>();
  #showing: Showing | null = null;
  #flow: api.Flow | string = "asking the console whether changes flow";
  #drawing = false;
  #drawnAt = 0;
  #pausedAt: number | null = null;
  #checkTimer: ReturnType<typeof setTimeout> | undefined;
  #unwell = false;
  /** Of the connection's token. */
  #role: string;
  /** Of the tables that were shown before. */
  #reconnects = 0;

  constructor(stack: api.Stack) {
    this.#stack = stack;
    this.#role = stack.tables[0]?.read[0] ?? stack.roles[0] ?? "anon";
    part("stack").textContent = stack.stack;
    fill(this.#tables, stack.tables.map(api.nameOf));
    this.#connection = new RealtimeConnection({
      url: stack.url,
      apiKey: stack.anon_key,
      token: () => api.readToken(this.#role),
    });
    this.#checks = new Checks({
      onBegin: () => {
        this.#path.begin();
        part("checked").textContent = "checking…";
      },
      onFinding: (finding) => this.#path.add(finding),
      onEnd: (done, error) => {
        this.#path.end(error);
        this.#unwell = done?.exit_status !== 0;
        const when = new Date().toLocaleTimeString();
        part("checked").textContent = error ?? `checked at ${when}, ${done?.seconds.toFixed(1)} s`;
      },
    });

    this.#tables.addEventListener("change", () => this.#show());
    this.#roles.addEventListener("change", () => this.#show());
    this.#order.addEventListener("change", () => this.refresh());
    this.#pause.addEventListener("click", () => this.#togglePause());
    part("check").addEventListener("click", () => this.#checks.run());
    part("insert").addEventListener("click", () => void this.#insert());
    part("change").addEventListener("click", () => void this.#touch("change"));
    part("delete").addEventListener("click", () => void this.#touch("delete"));
    addEventListener("pagehide", () => this.#close());
    // Of a page that the browser kept: everything was closed when it went.
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  }

  start(): void {
    this.#show();
    this.#checks.run();
    void this.#watchFlow();
  }

  // The state

  onStatus(status: Status): void {
    document.documentElement.dataset["state"] = status.state;
    part("state").dataset["state"] = status.state;
    part("state-word").textContent = WORDS[status.state];
    part("reason").textContent = status.reason;
    document.title = `${WORDS[status.state]} · ${this.#stack.stack}`;
    this.#path.setBrowser(status);
    this.refresh();
    clearTimeout(this.#checkTimer);
    if (status.state !== "live") this.#checkTimer = setTimeout(() => this.#checks.run(), CHECK_AFTER_MS);
    else if (this.#unwell) this.#checks.run();
  }

  async #watchFlow(): Promise<void> {
    while (!this.#closed.signal.aborted) {
      const watching = new AbortController();
      const close = (): void => watching.abort();
      this.#closed.signal.addEventListener("abort", close);
      let silence = setTimeout(close, FLOW_SILENCE_MS);
      let failure = "the console does not answer";
      try {
        for await (const event of api.events("api/flow", watching.signal)) {
          clearTimeout(silence);
          silence = setTimeout(close, FLOW_SILENCE_MS);
          if (event.name === "flow") this.#flows(event.data as unknown as api.Flow);
        }
      } catch (error) {
        if (error instanceof api.ApiError) failure = error.message;
      }
      clearTimeout(silence);
      this.#closed.signal.removeEventListener("abort", close);
      if (this.#closed.signal.aborted) return;
      this.#flows(failure);
      await new Promise((resolve) => setTimeout(resolve, FLOW_RETRY_MS));
    }
  }

  #flows(flow: api.Flow | string): void {
    this.#flow = flow;
    const subscription = this.#showing?.subscription;
    if (typeof flow === "string") subscription?.hold(flow);
    else if (flow.flowing) subscription?.release(flow.generation);
    else subscription?.hold(flow.reason ?? "changes do not flow");
  }

  // What is shown

  #show(): void {
    const table = this.#stack.tables.find((one) => api.nameOf(one) === this.#tables.value);
    if (!table) {
      this.notice(new Error("the stack declares no table: there is nothing to show"));
      return;
    }
    this.#reconnects += this.#showing?.subscription.reconnects ?? 0;
    this.#showing?.end();
    const before = this.#roles.value;
    fill(this.#roles, this.#stack.roles);
    this.#roles.value = this.#stack.roles.includes(before) ? before : (table.read[0] ?? this.#stack.roles[0] ?? "");
    if (this.#roles.value === "") this.#roles.value = this.#stack.roles[0] ?? "";
    this.notice(null);
    this.#pausedAt = null;
    this.#showPause();
    let showing: Showing;
    try {
      if (table.unusable) throw new Error(table.unusable);
      showing = new Showing(this, this.#connection, table, this.#roles.value);
    } catch (error) {
      this.#showing = null;
      this.notice(error);
      return;
    }
    this.#showing = showing;
    this.onStatus(showing.subscription.status);
    if (typeof this.#flow !== "string") this.#flows(this.#flow);
    void showing.read();
    void this.#connectAs(this.#roles.value).then(() => {
      if (this.#showing === showing) showing.subscription.start();
    });
    this.refresh();
  }

  async #connectAs(role: string): Promise<void> {
    if (role === this.#role) return;
    this.#role = role;
    await this.#connection.useToken(() => api.readToken(role));
  }

  /** Soon, and for many changes once: thousands of rows are sorted each time. */
  refresh(): void {
    if (this.#drawing) return;
    this.#drawing = true;
    const since = performance.now() - this.#drawnAt;
    setTimeout(
      () =>
        requestAnimationFrame(() => {
          this.#drawing = false;
          this.#drawnAt = performance.now();
          this.#draw();
        }),
      Math.max(0, DRAW_EVERY_MS - since),
    );
  }

  #draw(): void {
    const showing = this.#showing;
    if (!showing) return;
    const { store, subscription, view } = showing;
    const { counts } = store;
    if (this.#pausedAt === null) {
      const rows = this.#order.value === "key" ? store.byKey() : store.recent();
      view.update(rows);
    }
    part("row-count").textContent = String(store.size);
    part("events").textContent = String(counts.events);
    part("reconnects").textContent = String(this.#reconnects + subscription.reconnects);
    part("caught-up").textContent = String(counts.caughtUp);
    part("late").textContent = String(counts.late);
    part("unreadable").textContent = String(counts.unreadable);
    const held = this.#pausedAt === null ? "" : `paused, ${counts.events - this.#pausedAt} events behind`;
    const of = showing.total !== null && showing.total > store.size ? ` of about ${showing.total}` : "";
    const cut = showing.cut ? `the first ${store.size}${of}, and what has changed since` : `${store.size}${of}`;
    part("shown").textContent = held || cut;
    const test = this.#testKey();
    const writable = this.#stack.roles.includes(this.#roles.value);
    part<HTMLButtonElement>("insert").disabled = !writable;
    part<HTMLButtonElement>("change").disabled = !writable || test === null;
    part<HTMLButtonElement>("delete").disabled = !writable || test === null;
  }

  #togglePause(): void {
    this.#pausedAt = this.#pausedAt === null ? (this.#showing?.store.counts.events ?? 0) : null;
    this.#showPause();
    this.refresh();
  }

  #showPause(): void {
    this.#pause.setAttribute("aria-pressed", String(this.#pausedAt !== null));
  }

  notice(error: unknown): void {
    const element = part("notice");
    element.hidden = error === null;
    if (error === null) return;
    const message = error instanceof Error ? error.message : String(error);
    const cure = error instanceof api.ApiError && error.cure ? ` — ${error.cure}` : "";
    element.textContent = message + cure;
  }

  openRow(key: string, row: Row): void {
    const dialog = part<HTMLDialogElement>("dialog");
    part("dialog-title").textContent = `Row ${key}`;
    const list = document.createElement("dl");
    list.className = "row-values";
    for (const [column, value] of Object.entries(row)) {
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = column;
      description.textContent = shown(value);
      list.append(term, description);
    }
    dialog.querySelector(".dialog-body")?.replaceChildren(list);
    dialog.showModal();
  }

  // Test rows

  isTestRow(key: string): boolean {
    return this.#testRows.get(this.#tables.value)?.has(key) ?? false;
  }

  /** The marked row if it is a test row, else the last one that was made. */
  #testKey(): { readonly key: string; readonly values: Row } | null {
    const rows = this.#testRows.get(this.#tables.value);
    const key = this.#showing?.view.active?.key;
    const chosen = key !== undefined && rows?.has(key) ? key : [...(rows?.keys() ?? [])].at(-1);
    const values = chosen === undefined ? undefined : rows?.get(chosen);
    return chosen === undefined || values === undefined ? null : { key: chosen, values };
  }

  async #insert(): Promise<void> {
    const [table, role, store] = [this.#tables.value, this.#roles.value, this.#showing?.store];
    await this.#write(async () => {
      const made = await api.insertRow(table, role);
      if (!made.key || !store) return;
      const rows = this.#testRows.get(table) ?? new Map<string, Row>();
      rows.set(store.keyOf(made.key), made.key);
      this.#testRows.set(table, rows);
    });
  }

  async #touch(what: "change" | "delete"): Promise<void> {
    const [table, role, test] = [this.#tables.value, this.#roles.value, this.#testKey()];
    if (!test) return;
    await this.#write(async () => {
      if (what === "change") {
        await api.changeRow(table, role, test.values);
      } else {
        await api.deleteRow(table, role, test.values);
        this.#testRows.get(table)?.delete(test.key);
      }
    });
  }

  async #write(work: () => Promise<void>): Promise<void> {
    try {
      await work();
      this.notice(null);
    } catch (error) {
      this.notice(error);
    }
    this.refresh();
  }

  #close(): void {
    this.#closed.abort();
    this.#checks.stop();
    this.#showing?.end();
    void this.#connection.close();
  }
}

function fill(select: HTMLSelectElement, values: readonly string[]): void {
  if (select.options.length === values.length) return;
  select.replaceChildren(...values.map((value) => new Option(value, value)));
}

async function open(): Promise<void> {
  try {
    const stack = await api.readStack();
    const page = new Console(stack);
    // Connects once the page is to be seen: the first paint does not wait for anything of the stack.
    requestAnimationFrame(() => setTimeout(() => page.start()));
  } catch (error) {
    document.documentElement.dataset["state"] = "offline";
    part("state").dataset["state"] = "offline";
    part("state-word").textContent = WORDS.offline;
    const notice = part("notice");
    notice.hidden = false;
    notice.textContent = error instanceof Error ? error.message : String(error);
  }
}

void open();
