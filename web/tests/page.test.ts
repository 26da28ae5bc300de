// @vitest-environment jsdom

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import * as api from "../src/api";
import { Checks } from "../src/checks";
import { figures, LAST, LatencyPlot, scale } from "../src/latency";
import { PathView, summary, worst } from "../src/path";
import { parseJson, sameJson } from "../src/realtime/json";

const SIGNAL = new AbortController().signal;

function finding(status: api.FindingStatus, more: Partial<api.Finding> = {}): api.Finding {
  return {
    check: "postgres.slots",
    title: "Slots are free",
    hop: "slot",
    status,
    seen: "8 of 10",
    likely: null,
    cure: null,
    page: null,
    ...more,
  };
}

function answer(body: string, status = 200, type = "application/json"): void {
  vi.stubGlobal("fetch", () => Promise.resolve(new Response(body, { status, headers: { "Content-Type": type } })));
}

/** A stream whose pieces end wherever a network cuts them. */
function stream(...pieces: string[]): void {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(encoder.encode(piece));
      controller.close();
    },
  });
  vi.stubGlobal("fetch", () => Promise.resolve(new Response(body)));
}

describe("JSON", () => {
  test("keeps the digits of integers beyond 2^53, and nothing else is touched", () => {
    const text =
      '{"a":9007199254740993,"b":[-9007199254740993],"c":"9007199254740993","d":1.2345678901234567890,"e":9007199254740991,"f\\"1234567890123456789":1e300}';
    expect(parseJson(text)).toEqual({
      a: "9007199254740993",
      b: ["-9007199254740993"],
      c: "9007199254740993",
      d: 1.2345678901234568,
      e: 9007199254740991,
      'f"1234567890123456789': 1e300,
    });
  });

  test("is the same whatever the order of an object's members", () => {
    expect(sameJson({ a: [1, { b: null }], c: "x" }, { c: "x", a: [1, { b: null }] })).toBe(true);
    expect(sameJson({ a: 1 }, { a: 1, b: 2 })).toBe(false);
    expect(sameJson({ a: 1 }, { b: 1 })).toBe(false);
    expect(sameJson([1, 2], [2, 1])).toBe(false);
    expect(sameJson([], {})).toBe(false);
    expect(sameJson(null, {})).toBe(false);
    expect(sameJson("1", 1)).toBe(false);
  });
});

describe("the console's API", () => {
  test("an error has the server's words and its cure", async () => {
    answer('{"error":"new row violates row-level security policy","cure":"add a policy"}', 403);
    await expect(api.insertRow("public.wells", "anon")).rejects.toMatchObject({
      status: 403,
      message: "new row violates row-level security policy",
      cure: "add a policy",
    });
  });

  test("a refusal without the cookie is one line of text", async () => {
    answer("open the URL that the console printed\n", 403, "text/plain");
    await expect(api.readStack()).rejects.toThrow("open the URL that the console printed");
  });

  test("a console that is gone is named", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("Failed to fetch")));
    await expect(api.readStack()).rejects.toThrow("the console does not answer");
  });

  test("a write names the table, the role and the key, as JSON", async () => {
    const fetched = vi.fn(() => Promise.resolve(new Response("{}")));
    vi.stubGlobal("fetch", fetched);
    await api.deleteRow("public.wells", "anon", { id: "9007199254740993" });
    expect(fetched).toHaveBeenCalledWith("api/rows", {
      credentials: "same-origin",
      method: "DELETE",
      headers: { "Content-Type": "application/json" },
      body: '{"table":"public.wells","role":"anon","key":{"id":"9007199254740993"}}',
    });
  });

  test("events come whole, however the stream is cut, and comments are none", async () => {
    stream(": hello\n\nevent: fl", 'ow\ndata: {"flowing":tr', "ue}\n", "\nevent: done\r\ndata: 1\r\n\r\n");
    const got: api.ServerEvent[] = [];
    for await (const event of api.events("api/flow", SIGNAL)) got.push(event);
    expect(got).toEqual([
      { name: "flow", data: { flowing: true } },
      { name: "done", data: 1 },
    ]);
  });
});

describe("the examination", () => {
  const run = async (): Promise<unknown[]> => {
    const told: unknown[] = [];
    await new Promise<void>((resolve) => {
      new Checks({
        onBegin: () => told.push("begin"),
        onFinding: (one) => told.push(one.status),
        onEnd: (done, error) => {
          told.push(done?.exit_status ?? null, error);
          resolve();
        },
      }).run();
    });
    return told;
  };

  test("tells each finding as it comes, and the end", async () => {
    stream(
      `event: finding\ndata: ${JSON.stringify(finding("ok"))}\n\n`,
      `event: finding\ndata: ${JSON.stringify(finding("failed"))}\n\n`,
      'event: done\ndata: {"root":"x","exit_status":2,"seconds":1}\n\n',
    );
    expect(await run()).toEqual(["begin", "ok", "failed", 2, null]);
  });

  test("that breaks off says so", async () => {
    stream('event: error\ndata: {"error":"the examination broke off: OSError","cure":null}\n\n');
    expect(await run()).toEqual(["begin", null, "the examination broke off: OSError"]);
    stream("event: finding\n");
    expect(await run()).toEqual(["begin", null, "the examination broke off"]);
  });
});

describe("the path", () => {
  let path: PathView;
  let dialog: HTMLDialogElement;
  const hop = (name: string): HTMLButtonElement => {
    const found = document.querySelector<HTMLButtonElement>(`[data-testid=hop-${name}]`);
    if (!found) throw new Error(`no hop ${name}`);
    return found;
  };

  beforeEach(() => {
    document.body.innerHTML = '<div id="path"></div><dialog><h2>-</h2><div class="dialog-body"></div></dialog>';
    const [place, found] = [document.querySelector<HTMLElement>("#path"), document.querySelector("dialog")];
    if (!place || !found) throw new Error("the document is not as it was written");
    dialog = found;
    // jsdom has no modal dialogs.
    dialog.showModal = () => dialog.setAttribute("open", "");
    path = new PathView(place, dialog);
  });

  afterEach(() => document.body.replaceChildren());

  test("a hop is as bad as the worst of its findings", () => {
    expect(worst([finding("ok"), finding("failed"), finding("warning")])).toBe("failed");
    expect(worst([finding("ok"), finding("warning"), finding("skipped")])).toBe("warning");
    expect(worst([finding("ok"), finding("not reached")])).toBe("ok");
    expect(worst([finding("not reached"), finding("skipped")])).toBe("unknown");
    expect(worst([])).toBe("unknown");
  });

  test("it says how many passed, or what was seen", () => {
    expect(summary([finding("ok"), finding("ok")])).toBe("2 checks passed");
    expect(summary([finding("ok"), finding("failed", { seen: "no slot" })])).toBe("no slot");
    expect(summary([finding("not reached", { seen: "postgres.reachable failed" })])).toBe("postgres.reachable failed");
  });

  test("its status is told by text and shape as well as by colour", () => {
    path.begin();
    path.add(finding("failed"));
    expect(hop("slot").dataset["status"]).toBe("failed");
    expect(hop("slot").textContent).toBe("SlotFailed8 of 10");
    const shape = hop("slot").querySelector("path")?.getAttribute("d");
    expect(shape).not.toBe(hop("browser").querySelector("path")?.getAttribute("d"));
    expect(hop("table").dataset["status"]).toBe("unknown");
  });

  test("another examination replaces the findings of the former", () => {
    path.begin();
    path.add(finding("failed"));
    path.end();
    path.begin();
    expect(hop("slot").dataset["status"]).toBe("failed");
    path.add(finding("ok"));
    expect(hop("slot").dataset["status"]).toBe("ok");
  });

  test("an examination that broke off leaves nothing green that it did not look at", () => {
    path.add(finding("ok"));
    path.add(finding("ok", { hop: "table" }));
    path.begin();
    path.add(finding("ok", { hop: "table" }));
    path.end("the console does not answer");
    expect(hop("table").dataset["status"]).toBe("ok");
    expect(hop("slot").dataset["status"]).toBe("unknown");
    expect(hop("slot").textContent).toContain("the console does not answer");
  });

  test("the browser's hop is the subscription's state", () => {
    path.setBrowser({ state: "live", reason: "" });
    expect(hop("browser").dataset["status"]).toBe("ok");
    path.setBrowser({ state: "offline", reason: "the slot is not active" });
    expect(hop("browser").dataset["status"]).toBe("failed");
    expect(hop("browser").textContent).toContain("the slot is not active");
  });

  test("a click shows cause and cure, the worst first", () => {
    path.add(finding("ok", { title: "Fine" }));
    path.add(finding("failed", { title: "Broken", likely: "a stale slot", cure: "drop it" }));
    hop("slot").click();
    expect(dialog.open).toBe(true);
    expect(dialog.querySelector("h2")?.textContent).toBe("Slot");
    const text = dialog.querySelector(".dialog-body")?.textContent ?? "";
    expect(text).toContain("Cause: a stale slot");
    expect(text).toContain("Cure: drop it");
    expect(text.indexOf("Broken")).toBeLessThan(text.indexOf("Fine"));
  });

  test("what the server says is text, and never markup", () => {
    path.add(finding("failed", { seen: "<img src=x>", title: "<b>" }));
    hop("slot").click();
    expect(document.querySelector("img, b")).toBeNull();
  });
});

describe("latency", () => {
  test("the figures are median and longest", () => {
    expect(figures([])).toBeNull();
    expect(figures([5])).toEqual({ median: 5, worst: 5 });
    expect(figures([30, 10, 20, 400])).toEqual({ median: 20, worst: 400 });
  });

  test.each([
    [0, 100],
    [100, 100],
    [101, 200],
    [450, 500],
    [501, 1000],
    [12_000, 20_000],
  ])("the scale for %i ms ends at %i", (longest, end) => {
    expect(scale(longest)).toBe(end);
  });

  test("the plot has the last sixty, and no clock makes one negative", async () => {
    const plot = new LatencyPlot(document.body);
    for (let value = -1; value < LAST + 20; value += 1) plot.add(value);
    await new Promise((resolve) => requestAnimationFrame(resolve));
    expect(document.querySelectorAll("rect")).toHaveLength(LAST);
    expect(document.querySelector("svg")?.getAttribute("aria-label")).toContain("longest 79 ms of the last 60");
    document.body.replaceChildren();
  });
});
